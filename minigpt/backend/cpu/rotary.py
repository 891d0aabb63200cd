"""Rotary positions on the CPU: a pair of channels is a complex number, rotated by a product."""

import numpy as np

from minigpt.backend.cpu.pool import empty
from minigpt.ops import rotary


def rotary_qkv_forward(qkv, n_head, start=0):
    """As the op; in the packed array."""
    cos, sin = rotary.angles(qkv, start, qkv.shape[1], qkv.shape[2] // (3 * n_head))
    return rotate(qkv, n_head, cos, sin), (n_head, cos, sin)


def rotary_qkv_backward(dy, cache):
    """As the op; in the packed array."""
    n_head, cos, sin = cache
    return rotate(dy, n_head, cos, -sin)


def rotate(x, n_head, cos, sin):
    """Multiply the first two thirds of the channels by exp(i angle); copy the rest."""
    C = x.shape[-1] // 3
    x, y = np.ascontiguousarray(x), empty(x.shape, x.dtype)
    factor = factors(cos, sin, n_head)
    pairs, out = (a[..., : 2 * C].view(factor.dtype) for a in (x, y))
    np.multiply(pairs, factor, out=out)
    y[..., 2 * C :] = x[..., 2 * C :]
    return y


def factors(cos, sin, n_head):
    """Return exp(i angle) for the pairs of the queries' and keys' channels: (T, C) complex."""
    return np.tile(cos + 1j * sin, 2 * n_head)
