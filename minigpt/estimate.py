"""What a run costs, known before it starts: parameters, memory, floating-point operations."""

from minigpt.gpt import count_parameters


def flops_per_step(config, train):
    """Return floating-point operations of one step, forward and backward.

    Two per multiply-add, three products per weight (y, dx, dw) and token; attention by what lies
    on or below the diagonal. Elementwise work is not counted. Kaplan et al. 2020,
    arXiv:2001.08361, table 1, without the part of attention that the mask makes needless.
    """
    T, C = config.block_size, config.n_embd
    tokens = train.batch_size * train.gradient_accumulation_steps * T
    weights = 12 * config.n_layer * C * C + config.vocab_size * C
    seen = config.n_layer * (T + 1) * C  # two products with T/2 keys each, per token
    return 6 * (weights + seen) * tokens


def memory(config, train):
    """Return {part: bytes} of a training step in float32; threads share the weights."""
    size = 4 * count_parameters(config)
    tokens = train.batch_size * config.block_size
    # Kept per token and layer: input, mean and rstd of both layernorms (x, h), q k v, y, its
    # merged form is the same memory; MLP's input, activation and slope.
    per_layer = (2 + 2 + 3 + 1 + 8) * config.n_embd
    per_token = config.n_layer * per_layer + 4 * config.n_embd
    return {
        "weights": size,
        "gradients": size,
        "optimizer (two moments)": 2 * size,
        "activations (about)": 4 * tokens * per_token,
    }


def human(number, unit=""):
    """Return a number with three digits and k, M, G or T."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def describe(config, train):
    """Return the lines that --dry-run prints."""
    per_step = flops_per_step(config, train)
    batch = train.batch_size * train.gradient_accumulation_steps
    tokens = batch * config.block_size
    parts = memory(config, train)
    positions = config.block_size * config.n_embd
    n = count_parameters(config)
    lines = [
        f"model        {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
        f"context {config.block_size}, vocabulary {config.vocab_size}",
        f"parameters   {n:,} ({n - positions:,} without positions)",
        f"step         {batch} x {config.block_size} = {tokens:,} tokens, "
        f"{human(per_step, 'FLOP')}",
        f"run          {train.max_iters:,} steps, {train.max_iters * tokens:,} tokens, "
        f"{human(per_step * train.max_iters, 'FLOP')}",
        f"memory       {human(sum(parts.values()), 'B')} in all",
    ]
    return lines + [f"  {name:<26} {human(value, 'B'):>8}" for name, value in parts.items()]
