"""What a run costs, known before it starts: parameters, memory, floating-point operations."""

from minigpt.models import SEQ2SEQ, count_parameters, model_of

SCRATCH = 2**17  # numbers in a thread's buffers of a fixed size


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
    """Return {part: bytes} of a training step in float32.

    The threads share the weights, but each makes the gradients of its own shard. The coefficients
    of the activations were fitted to the peaks of real steps on NumPy, hence "about".
    """
    size, threads = 4 * count_parameters(config), train.shards()
    T, C = config.block_size, config.n_embd
    # Kept per token and layer: the inputs of the two layernorms and what they return, q k v, what
    # attention returns, the MLP's activation and its slope; weights of attention if T is short.
    kept_weights = config.n_head * T if T <= 64 else 0
    layer = (2 + 2 + 3 + 1 + 8) * C + kept_weights
    if model_of(config) is SEQ2SEQ:  # an encoder's; cross attention: layernorm, q, k v, output
        layer += layer + (2 + 1 + 2 + 1) * C + kept_weights
    in_flight = 24 * C  # of one layer or outside of all, in both passes
    kept = train.batch_size * T * (config.n_layer * layer + in_flight)
    return {
        "weights": size,
        "gradients": (1 + threads) * size,
        "optimizer (two moments)": 2 * size,
        "activations (about)": 4 * (kept + threads * SCRATCH),
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
    positions = sides * config.block_size * config.n_embd
    of_each = ", of sources and of targets, at most" if sides == 2 else ""
    rows = {
        "model": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
        f"context {config.block_size}, vocabulary {config.vocab_size}",
        "parameters": f"{n:,} ({n - positions:,} without positions)",
        "a step": f"{sequences} x {config.block_size} = {tokens:,} tokens{of_each}, "
        f"{human(per_step, 'FLOP')}",
        "the run": f"{train.max_iters:,} steps, {train.max_iters * tokens:,} tokens, "
        f"{human(train.max_iters * per_step, 'FLOP')}",
        "memory": f"about {human(sum(parts.values()), 'B')} on {train.shards()} threads",
    }
    rows |= {f"  {part}": human(value, "B") for part, value in parts.items()}
    return [f"{name:<27}{value}" for name, value in rows.items()]
