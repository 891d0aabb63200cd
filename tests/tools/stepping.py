"""Small models and steps of their training on either backend."""

import dataclasses
import functools

import numpy as np

from minigpt.backend import to_device, to_host
from minigpt.data.dates import date_pairs
from minigpt.data.pairs import Pairs
from minigpt.data.tokenizers import PairTokenizer
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.init import init_params
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.options import gpt_config, train_config

CONFIG = gpt_config(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.2)
TRAIN = train_config(backend="cupy", batch_size=6, max_iters=50, warmup_iters=5, learning_rate=3e-3)
# Text-like: a token depends on the one before, so that there is something to learn.
STEPS = np.random.default_rng(0).integers(0, 5, 5000)
IDS = (STEPS.cumsum() % 65).astype(np.int32)


@functools.cache
def dates():
    """A Seq2SeqConfig and Pairs for it."""
    pairs = date_pairs(0)[1]
    tokenizer = PairTokenizer.from_pairs(pairs)
    sizes = {"vocab_size": tokenizer.vocab_size, "source_vocab_size": tokenizer.source.vocab_size}
    config = Seq2SeqConfig(block_size=64, n_layer=1, n_head=2, n_embd=16, dropout=0.2, **sizes)
    return config, Pairs(pairs, tokenizer)


def trainer(xp, workers, config=CONFIG, **changes):
    """A Trainer with fresh weights and the recipe TRAIN but for the changes."""
    params = init_params(config, 1337, xp)
    return Trainer(params, config, dataclasses.replace(TRAIN, **changes), xp, workers)


def losses(xp, n, config=CONFIG, split=IDS, **changes):
    """Losses of n steps, and the weights that come of them."""
    split = to_device(split, xp) if isinstance(split, np.ndarray) else split
    with Workers(1) as workers:
        this = trainer(xp, workers, config, **changes)
        found = [float(this.step(split, step)[0]) for step in range(n)]
        return np.array(found), to_host(this.params.flat)
