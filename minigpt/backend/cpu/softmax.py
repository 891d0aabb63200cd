"""Softmax on the CPU, by blocks of rows that stay in the cache."""

import math

import numpy as np

from minigpt.backend.cpu.blocking import row_blocks, rows_of
from minigpt.backend.cpu.pool import empty


def softmax_forward(x):
    """As the op."""
    n = x.shape[-1]
    if x.size == 0:
        return NotImplemented
    y, ones = empty(x.shape, x.dtype), np.ones(n, x.dtype)
    x2, y2 = rows_of(x, n), rows_of(y, n)
    for _, xr, yr in row_blocks(x2, y2):
        top = xr.max(axis=-1, keepdims=True)
        top[top == -math.inf] = 0
        np.subtract(xr, top, out=yr)
        np.exp(yr, out=yr)
        total = yr @ ones
        total[total == 0] = 1
        yr /= total[:, None]
    return y, (y,)


def softmax_backward(dy, cache):
    """As the op."""
    (y,) = cache
    if y.size == 0:
        return NotImplemented
    n = y.shape[-1]
    dx = empty(y.shape, y.dtype)
    y2, dy2, dx2 = (rows_of(a, n) for a in (y, dy, dx))
    for _, yr, dyr, dxr in row_blocks(y2, dy2, dx2):
        along = np.vecdot(yr, dyr)
        np.subtract(dyr, along[:, None], out=dxr)
        dxr *= yr
    return dx
