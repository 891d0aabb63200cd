"""Rotary positions on the CPU: a pair of channels is a complex number, turned by a product."""

import numpy as np

from minigpt.backend.cpu.pool import empty
from minigpt.ops import rotary


def turned(x, n_head, cos, sin):
    """As the op: the first two thirds of the channels times exp(i angle), the rest as it is."""
    C = x.shape[-1] // 3
    x, y = np.ascontiguousarray(x), empty(x.shape, x.dtype)
    turn = np.tile(cos + 1j * sin, 2 * n_head)  # (T, C)
    pairs, out = (a[..., : 2 * C].view(turn.dtype) for a in (x, y))
    np.multiply(pairs, turn, out=out)
    y[..., 2 * C :] = x[..., 2 * C :]
    return y


def rotary_forward(qkv, n_head, start=0):
    """As the op."""
    cos, sin = rotary.angles(qkv, start, qkv.shape[1], qkv.shape[2] // (3 * n_head))
    return turned(qkv, n_head, cos, sin), (n_head, cos, sin)


def rotary_backward(dy, cache):
    """As the op."""
    n_head, cos, sin = cache
    return turned(dy, n_head, cos, -sin)
