"""What a run costs, known before it starts: parameters, memory, floating-point operations."""

import math

from minigpt.cli import plural
from minigpt.model import count_parameters
from minigpt.params import leaves
from minigpt.sample.tasks import task_of

SCRATCH = 2**20  # numbers in a thread's buffers of a fixed size, and in its chunk's unused part


def count_layers(config):
    """Return the numbers of (blocks, encoder blocks, cross attentions) of a model."""
    names = [name for name, _ in leaves(config.shapes())]
    blocks = [name for name in names if name.endswith(".attn.c_attn.w")]
    encoder = [name for name in blocks if name.startswith("encoder.")]
    return len(blocks), len(encoder), sum(name.endswith(".c_kv.w") for name in names)


def flops_per_step(config, train_config):
    """Return floating-point operations of one step, forward and backward.

    Two per multiply-add, three products per weight (y, dx, dw) and token: 6 per weight of a linear
    layer, the head included, which Kaplan et al. 2020, arXiv:2001.08361, table 1, leave out.
    Attention is counted as in that table: nanoGPT's estimate (PaLM, arXiv:2204.02311, appendix B),
    halved by the mask. Elementwise work is not counted. Of an encoder-decoder it is what a step can
    take at most: sources and targets of block_size tokens.
    """
    T, C = config.block_size, config.n_embd
    tokens = train_config.batch_size * train_config.gradient_accumulation_steps * T
    blocks, encoder, cross = count_layers(config)
    weights = (12 * blocks + 4 * cross) * C * C + config.vocab_size * C
    # Two products a token and layer: with (T + 1) / 2 keys under the mask, with T without it.
    seen = ((blocks - encoder) * (T + 1) + (encoder + cross) * 2 * T) * C
    return 6 * (weights + seen) * tokens


def memory(config, train_config):
    """Return {part: bytes} of a training step.

    The threads share the weights, but each makes the gradients of its own shard. What the passes
    see and make may be in float16; all else is float32. The coefficients of the activations were
    fitted to the peaks of real steps on NumPy, hence "about".
    """
    n, threads = count_parameters(config), train_config.shards()
    itemsize = 2 if train_config.dtype == "float16" else 4
    T, C = config.block_size, config.n_embd
    # Kept per token and layer: the inputs of the two layernorms and what they return, q k v, what
    # attention returns, the MLP's activation and its slope; weights of attention if T is short.
    weights = config.n_head * T if T <= 64 and train_config.backend == "numpy" else 0
    block = (2 + 2 + 3 + 1 + 8) * C + weights
    cross = (2 + 1 + 2 + 1) * C + weights  # layernorm, q, k v, output
    blocks, _, crosses = count_layers(config)
    in_flight = 24 * C  # of one layer or outside of all, in both passes
    kept = train_config.batch_size * T * (blocks * block + crosses * cross + in_flight)
    return {
        "weights": 4 * n + (2 * n if itemsize == 2 else 0),
        "gradients": 4 * n + threads * itemsize * n,
        "optimizer (two moments)": 8 * n,
        "activations (about)": itemsize * (kept + threads * SCRATCH),
    }


def human(number, unit=""):
    """Return a number with three digits and a prefix, k to E."""
    scales = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
    for prefix, scale in scales.items():
        if abs(number) >= 0.9995 * scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def describe_model(config):
    """Return the sizes of a model, in words."""
    return (
        f"{plural(config.n_layer, 'layer')}, {plural(config.n_head, 'head')}, "
        f"{config.n_embd} channels, context {config.block_size}"
    )


def describe(config, train_config):
    """Return the lines that --dry-run prints."""
    n, per_step = count_parameters(config), flops_per_step(config, train_config)
    sequences = train_config.batch_size * train_config.gradient_accumulation_steps
    tokens, parts = sequences * config.block_size, memory(config, train_config)
    named = leaves(config.shapes())
    positions = sum(math.prod(shape) for name, shape in named if name.endswith("wpe"))
    bracket = f" ({n - positions:,} without positions)" if positions else ""
    where = f"on {plural(train_config.shards(), 'thread')}"
    if train_config.backend != "numpy":
        where = "on the GPU"
    steps, seconds = train_config.max_iters, train_config.max_seconds
    rows = {
        "model": f"{describe_model(config)}, vocabulary {config.vocab_size}",
        "parameters": f"{n:,}{bracket}",
        "a step": f"{sequences} x {config.block_size} = {tokens:,} tokens{task_of(config).sides}, "
        f"{human(per_step, 'FLOP')}",
        "the run": f"{steps:,} steps, {steps * tokens:,} tokens, {human(steps * per_step, 'FLOP')}"
        if seconds is None
        else f"{seconds:g} seconds, as many steps as they allow",
        "memory": f"about {human(sum(parts.values()), 'B')} {where}",
    }
    rows |= {f"  {part}": human(value, "B") for part, value in parts.items()}
    return [f"{name:<27}{value}" for name, value in rows.items()]
