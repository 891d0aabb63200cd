"""Blocks that are run again in the backward pass give the same bits, and keep less."""

import weakref

import numpy as np
import pytest

from minigpt.backend import to_device, to_host
from minigpt.model import encoder_decoder, gpt
from minigpt.model.blocks import block_backward, block_forward
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter
from minigpt.model.recompute import Again, without_cache
from minigpt.ops.dropout import Rng
from minigpt.params import leaves
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.options import gpt_config, rows, train_config

TEXT = {"vocab_size": 11, "block_size": 8, "n_layer": 3, "n_head": 3, "n_embd": 12}
PAIRS = TEXT | {"source_vocab_size": 8}
RNG = Rng.of(1337, 5)


def batch_of_text(xp):
    rng = np.random.default_rng(1)
    return [to_device(x, xp) for x in rng.integers(0, 11, (2, 3, 8)).astype(np.int32)]


def batch_of_pairs(xp):
    rng = np.random.default_rng(2)
    source, targets = rng.integers(0, 8, (3, 5)), rng.integers(0, 11, (3, 7))
    source[1, 3:], targets[2, 4:] = -1, -1
    return [to_device(x.astype(np.int32), xp) for x in (source, targets)]


def both(task, config, xp, batch, dtype):
    """Return loss and gradients, flat, without recomputation and with it."""
    params = init_params(config, 0, xp).tree
    found = []
    for recompute in (False, True):
        p = in_precision(params, dtype)
        loss, grads = task.loss_and_gradients(*batch, p, config, RNG, recompute=recompute)
        named = dict(leaves(grads))
        found.append([to_host(loss), *(to_host(named[name]) for name in sorted(named))])
    return found


def in_precision(tree, dtype):
    """Return a tree of parameters in that precision."""
    if isinstance(tree, dict):
        return {key: in_precision(value, dtype) for key, value in tree.items()}
    if isinstance(tree, list):
        return [in_precision(value, dtype) for value in tree]
    return tree.astype(dtype)


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", rows("share_embedding").values(), ids=rows().keys())
def test_a_gpt_has_the_same_bits_with_blocks_that_run_again(xp, options, dtype):
    config = gpt_config(**TEXT, **options)
    for x, y in zip(*both(gpt, config, xp, batch_of_text(xp), dtype), strict=True):
        assert (x == y).all()


@pytest.mark.cupy
@pytest.mark.parametrize("options", rows().values(), ids=rows().keys())
def test_an_encoder_decoder_has_the_same_bits_with_blocks_that_run_again(xp, options):
    config = Seq2SeqConfig(**PAIRS, **options)
    for x, y in zip(*both(encoder_decoder, config, xp, batch_of_pairs(xp), "float32"), strict=True):
        assert (x == y).all()


LORA = {"init_from": "x", "lora_rank": 4, "lora_targets": "c_attn,c_proj,c_fc"}


@pytest.mark.parametrize(
    "dropout, threads, adapter",
    [
        (0.0, 1, {}),
        (0.2, 1, {}),
        (0.2, 2, {}),
        (0.0, 2, LORA),
        (0.0, 1, LORA | {"lora_dropout": 0.3}),
        (0.2, 2, LORA | {"lora_dropout": 0.3}),
    ],
)
def test_steps_of_training_have_the_same_bits(dropout, threads, adapter):
    """Arrays of this size come from the pool, and overrides fill them."""
    config = gpt_config(65, 64, 3, 4, 64, dropout=dropout, rotary=bool(dropout))
    ids = np.random.default_rng(4).integers(0, 65, 3000).astype(np.uint8)
    weights = []
    for recompute in (False, True):
        options = {"batch_size": 4, "warmup_iters": 0, "threads": threads, **adapter}
        train = train_config(recompute=recompute, **options)
        trained, frozen = init_params(config, 1, np), None
        if train.lora is not None:
            trained, frozen = init_adapter(config, train.lora, 1), trained
        with Workers(threads) as workers:
            trainer = Trainer(trained, config, train, np, workers, frozen)
            for step in range(3):
                trainer.step(ids, step)
        weights.append(trainer.params.flat)
    assert (weights[0] == weights[1]).all()


@pytest.mark.cupy
def test_a_block_keeps_its_inputs_alone(xp):
    config = gpt_config(**TEXT)
    ids, _ = batch_of_text(xp)
    p = init_params(config, 0, xp).tree
    _, (_, caches, _) = gpt.gpt_forward(ids, p, config, RNG, recompute=True)
    assert all(isinstance(cache, Again) for cache in caches)
    x, h, *_ = caches[1].args
    assert x.shape == h.shape == (3, 8, 12)


def test_the_second_pass_of_a_block_leaves_no_cache_behind():
    config = gpt_config(**TEXT)
    p = init_params(config, 0, np).tree["h"][0]
    x, h = np.random.default_rng(3).standard_normal((2, 3, 8, 12)).astype(np.float32)
    x, h, b, cache = without_cache(block_forward)(x, h, None, p, 3, "gelu", 0.3, RNG)
    arrays = [weakref.ref(array) for array in (*cache.args[:2], x, h)]
    dx, *rest = block_backward(x, h, b, cache)
    assert dx.shape == x.shape
    del x, h, b, cache
    assert [array() for array in arrays] == [None] * 4
