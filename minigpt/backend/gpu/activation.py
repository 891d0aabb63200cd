"""Activations on a GPU, with or without a bias before them; backward recomputes the slope."""

from minigpt.backend.gpu.launch import empty, launch, supported
from minigpt.backend.gpu.linear import by_columns, column_sums

KINDS = ("gelu", "gelu_tanh", "relu")  # numbered as in activation.cu


def activate(x, kind, b=None):
    """Return act(x + b), in one launch; b (C,) may be None."""
    y = empty(x.shape, x.dtype)
    N, C, grid, block = by_columns(x)
    launch("activation_forward", x.dtype, grid, block, (x, b, y, N, C, KINDS.index(kind)))
    return y


def multiply_by_slope(dy, x, kind, b=None):
    """Return dx = dy * act'(x + b) and db (C,), its sums over the rows; db is None without b."""
    dx = empty(x.shape, x.dtype)
    N, C, grid, block = by_columns(x)
    parts = None if b is None else empty((grid[1], C), "f")
    args = (dy, x, b, dx, parts, N, C, KINDS.index(kind))
    launch("activation_backward", x.dtype, grid, block, args)
    return dx, None if b is None else column_sums(parts, x.dtype)


def activation_forward(x, kind):
    """As the op; x is kept, not the slope."""
    if kind not in KINDS or not supported(x):
        return NotImplemented
    return activate(x, kind), (x, kind, None)


def activation_backward(dy, cache):
    """As the op."""
    x, kind, slope = cache
    if kind not in KINDS or slope is not None or dy.shape != x.shape or not supported(dy, x):
        return NotImplemented
    dx, _ = multiply_by_slope(dy, x, kind)
    return dx
