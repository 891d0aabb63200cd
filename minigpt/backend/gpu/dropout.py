"""Dropout on a GPU."""

import math

from minigpt.backend.gpu.launch import each, empty, launch, supported
from minigpt.ops.dropout import threshold

NO_MASK = 0, 0, 0, 1.0


def mask_of(shape, p, rng):
    """Return the arguments of a kernel that makes a dropout mask: (start, key, limit, scale).

    start is the number of the first element in the whole batch; limit 0 is no dropout.
    """
    if rng is None or p == 0:
        return NO_MASK
    key = rng.key - (rng.key >> 63 << 64)  # the same 64 bits as a long long
    start = rng.row and rng.row * math.prod(shape[1:])
    return start, key, *threshold(p)


def dropout_forward(x, p, rng):
    """As the op."""
    if rng is None or p == 0:
        return x, (p, None)
    if not supported(x):
        return NotImplemented
    y = empty(x.shape, x.dtype)
    args = (x, y, x.size, *mask_of(x.shape, p, rng))
    grid = (-(-x.size // (256 * each(x.dtype))),)
    launch("dropout_forward", x.dtype, grid, (256,), args)
    return y, (p, rng)


def dropout_backward(dy, cache):
    """As the op."""
    p, rng = cache
    if rng is not None and p and not supported(dy):
        return NotImplemented
    return dropout_forward(dy, p, rng)[0]
