"""A few steps of tiny models that together launch every kernel: what a sanitizer can watch.

compute-sanitizer makes a program ten times to a hundred times slower, and takes from CuPy's memory
pool as much as from a single array. Here every array has memory of its own, and all models together
take some seconds. Sizes are odd, so that the last tile of every kernel is not full.
"""

import itertools

import numpy as np

from bench.lib.rates import dtype_of
from bench.lib.report import WrongResult
from minigpt.backend import to_device
from minigpt.data.dates import date_pairs
from minigpt.data.pairs import Pairs
from minigpt.data.tokenizers import PairTokenizer
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter
from minigpt.ops import add_norm, layernorm, softmax
from minigpt.sample import beam
from minigpt.sample.generate import generate
from minigpt.train.config import TrainConfig
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

STEPS, NEW_TOKENS = 3, 5
PLAIN = {"rotary": False, "bigram": False}
# Heads of 24, 64 and 128 channels; sequences of less than a tile, of one and of more, all odd.
MODELS = {
    "gelu, bias, heads of 24": {"n_embd": 48, "block_size": 33, "bias": True, "activation": "gelu"}
    | PLAIN,
    "rotary, bigram, heads of 64": {"n_embd": 128, "block_size": 131, "dropout": 0.2},
    "own head, heads of 128": {"n_embd": 256, "block_size": 65, "tie_head": False}
    | {"head_bias": True, "activation": "gelu_tanh", "dropout": 0.1, "vocab_size": 301}
    | PLAIN,
}
UNIFORM = {"sampler": "uniform"}
TRAINING = {"gelu, bias, heads of 24": {"optimizer": "adamw", "recompute": True}}
# Relative difference of a loss from NumPy's: what training of a few steps may grow rounding to.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 2e-2}


def problems():
    """Yield (name, config, training split, changes of TrainConfig)."""
    for name, options in MODELS.items():
        config = GPTConfig(**{"vocab_size": 65, "n_layer": 1, "n_head": 2} | options)
        ids = np.random.default_rng(0).integers(0, config.vocab_size, 3000, dtype=np.int32)
        yield name, config, ids, TRAINING.get(name, {})
        if config.bias:
            adapter = {"optimizer": "adamw", "lora_rank": 3, "lora_dropout": 0.1, "lora_alpha": 3.0}
            adapter |= {"lora_targets": "c_attn,c_fc", "init_from": "here"}
            yield f"{name}, LoRA", config, ids, adapter
    pairs = date_pairs(0, validation=9)[1][:500]
    tokenizer = PairTokenizer.from_pairs(pairs)
    sizes = {"vocab_size": tokenizer.vocab_size, "source_vocab_size": tokenizer.source.vocab_size}
    sizes |= {"block_size": 48, "n_layer": 1, "n_head": 2, "n_embd": 48, "dropout": 0.1}
    yield "pairs of many lengths", Seq2SeqConfig(**sizes), Pairs(pairs, tokenizer), UNIFORM


def trainer(xp, workers, config, changes, dtype):
    """Return a Trainer with fresh weights."""
    task = "seq2seq" if isinstance(config, Seq2SeqConfig) else "text"
    values = {"task": task, "batch_size": 2, "max_iters": STEPS, "dtype": dtype, "threads": 1}
    values |= {"backend": xp.__name__, "warmup_iters": 0, "learning_rate": 3e-3}
    train_config = TrainConfig(**values | changes)
    params, frozen = init_params(config, 1337, xp), None
    if train_config.lora:
        params, frozen = init_adapter(config, train_config.lora, 1337, xp), params
    return Trainer(params, config, train_config, xp, workers, frozen)


def losses(xp, config, split, changes, dtype):
    """Return the losses of the steps and of an evaluation after them; then draw a few tokens."""
    text = isinstance(split, np.ndarray)
    train = to_device(split, xp) if text else split
    with Workers(1) as workers:
        this = trainer(xp, workers, config, changes, dtype)
        found = [float(this.step(train, step)[0]) for step in range(STEPS)]
        if text:
            found.append(this.evaluate(train[: 2 * config.block_size + 1]))
            list(generate(this.tree, config, split[None, :7], NEW_TOKENS))
        else:
            found.append(this.evaluate(train, range(4)))
            beam.search(split.source.rows([0, 1]), this.tree, config, beam=2)
    return found


def run(xp, dtype, most=None):
    """Train every model, or so many of them, for a few steps; yield (name, losses).

    Raises
    ------
    WrongResult
        If a loss is another than NumPy's.
    """
    xp.cuda.set_allocator(None)
    for name, config, split, changes in itertools.islice(problems(), most):
        found = losses(xp, config, split, changes, dtype)
        right = losses(np, config, split, changes, "float32")
        error = np.max(np.abs(np.array(found) / right - 1))
        if not error <= TOLERANCE[dtype]:
            raise WrongResult(f"{name}: losses {found} in {dtype}, but {right} on NumPy")
        yield name, found
    kernels_of_ops(xp, dtype)


def kernels_of_ops(xp, dtype):
    """Launch what no step of a small model does: a softmax by itself, wide rows of add_norm."""
    rng, dtype = np.random.default_rng(1), dtype_of(dtype)
    x = to_device(rng.standard_normal((5, 333)).astype(dtype), xp)
    y, cache = softmax.softmax_forward(x)
    softmax.softmax_backward(y, cache)
    for C in (601, 2003):
        x = to_device(rng.standard_normal((5, C)).astype(dtype), xp)
        y, cache = layernorm.layernorm_forward(x, x[0], x[1])
        layernorm.layernorm_backward(y, cache)
        (_, y), cache = add_norm.add_norm_forward(None, x, x[0], x[1], h_b=x[2])
        add_norm.add_norm_backward(None, y, cache)
