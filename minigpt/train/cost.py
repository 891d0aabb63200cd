"""What a run costs, known before it starts: parameters, memory, floating-point operations."""

from minigpt.model.models import SEQ2SEQ, count_parameters, model_of

SCRATCH = 2**20  # numbers in a thread's buffers of a fixed size, and in its chunk's unused part


def flops_per_step(config, train):
    """Return floating-point operations of one step, forward and backward.

    Two per multiply-add, three products per weight (y, dx, dw) and token; attention by what lies
    on or below the diagonal. Elementwise work is not counted. Kaplan et al. 2020,
    arXiv:2001.08361, table 1, without the part of attention that the mask makes needless. Of an
    encoder-decoder it is what a step can take at most: sources and targets of block_size tokens.
    """
    T, C = config.block_size, config.n_embd
    tokens = train.batch_size * train.gradient_accumulation_steps * T
    weights = 12 * config.n_layer * C * C + config.vocab_size * C
    seen = config.n_layer * (T + 1) * C  # two products with T/2 keys each, per token
    if model_of(config) is SEQ2SEQ:  # an encoder, which sees T keys, and cross attention
        weights += 16 * config.n_layer * C * C
        seen += 4 * config.n_layer * T * C
    return 6 * (weights + seen) * tokens


def memory(config, train):
    """Return {part: bytes} of a training step.

    The threads share the weights, but each makes the gradients of its own shard. What the passes
    see and make may be in float16; all else is float32. The coefficients of the activations were
    fitted to the peaks of real steps on NumPy, hence "about".
    """
    n, threads = count_parameters(config), train.shards()
    itemsize = 2 if train.dtype == "float16" else 4
    T, C = config.block_size, config.n_embd
    # Kept per token and layer: the inputs of the two layernorms and what they return, q k v, what
    # attention returns, the MLP's activation and its slope; weights of attention if T is short.
    kept_weights = config.n_head * T if T <= 64 and train.backend == "numpy" else 0
    layer = (2 + 2 + 3 + 1 + 8) * C + kept_weights
    if model_of(config) is SEQ2SEQ:  # an encoder's; cross attention: layernorm, q, k v, output
        layer += layer + (2 + 1 + 2 + 1) * C + kept_weights
    in_flight = 24 * C  # of one layer or outside of all, in both passes
    kept = train.batch_size * T * (config.n_layer * layer + in_flight)
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


def describe(config, train):
    """Return the lines that --dry-run prints."""
    n, per_step = count_parameters(config), flops_per_step(config, train)
    sequences = train.batch_size * train.gradient_accumulation_steps
    tokens, parts = sequences * config.block_size, memory(config, train)
    sides = 2 if model_of(config) is SEQ2SEQ else 1
    positions = 0 if config.rotary else sides * config.block_size * config.n_embd
    where = f"on {train.shards()} threads" if train.backend == "numpy" else "of the device"
    of_each = ", of sources and of targets, at most" if sides == 2 else ""
    rows = {
        "model": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
        f"context {config.block_size}, vocabulary {config.vocab_size}",
        "parameters": f"{n:,} ({n - positions:,} without positions)",
        "a step": f"{sequences} x {config.block_size} = {tokens:,} tokens{of_each}, "
        f"{human(per_step, 'FLOP')}",
        "the run": f"{train.max_iters:,} steps, {train.max_iters * tokens:,} tokens, "
        f"{human(train.max_iters * per_step, 'FLOP')}"
        if train.max_seconds is None
        else f"{train.max_seconds:g} seconds, as many steps as they allow",
        "memory": f"about {human(sum(parts.values()), 'B')} {where}",
    }
    rows |= {f"  {part}": human(value, "B") for part, value in parts.items()}
    return [f"{name:<27}{value}" for name, value in rows.items()]
