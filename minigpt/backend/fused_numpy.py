"""Faster namesakes of the ops on the CPU: in place, in blocks of rows that fit the L2 cache.

Each has the signature, the results (to rounding) and the cache of its op, so that the passes of
the two can be mixed. Delete this file and everything still works, only slower.

What makes them fast: a block of rows goes through all steps of an op while it is in the cache;
results are written into memory that is reused (`pool`); sums over rows or columns are products
with a vector, which BLAS does at the speed of the memory.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minigpt.backend import attention_numpy
from minigpt.backend.activation_numpy import activation_backward, activation_forward
from minigpt.backend.optimizer_numpy import adamw_step, gather, sum_of_squares
from minigpt.backend.pool import empty
from minigpt.backend.residual_numpy import (
    dropout_forward,
    layernorm_backward,
    layernorm_forward,
    residual_backward,
    residual_forward,
)
from minigpt.backend.rotary_numpy import rotary_backward, rotary_forward
from minigpt.backend.rows_numpy import column_sums, row_blocks, rows_of
from minigpt.backend.vocabulary_numpy import (
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
)
from minigpt.ops import attention, softmax

__all__ = [
    "activation_backward",
    "activation_forward",
    "adamw_step",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout_forward",
    "embedding_backward",
    "gather",
    "layernorm_backward",
    "layernorm_forward",
    "residual_backward",
    "residual_forward",
    "rotary_backward",
    "rotary_forward",
    "sum_of_squares",
]


def linear_forward(x, w, b=None):
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear_forward: b is {b.shape}, but w {w.shape} needs {w.shape[1:]}")
    if x.size == w.shape[0]:  # a single row, as in decoding: all else is overhead
        y = x @ w
        return y if b is None else y + b, (x, w, b)
    y = empty((*x.shape[:-1], w.shape[1]), w.dtype)
    y2 = rows_of(y, w.shape[1])
    np.matmul(rows_of(x, w.shape[0]), w, out=y2)
    if b is not None:
        for _, yr in row_blocks(y2):
            yr += b
    return y, (x, w, b)


def linear_backward(dy, cache):
    x, w, b = cache
    n_in, n_out = w.shape
    dy2 = rows_of(dy, n_out)
    dw = np.matmul(rows_of(x, n_in).T, dy2, out=empty(w.shape, w.dtype))
    grads = {"w": dw} if b is None else {"w": dw, "b": column_sums(dy2)}
    dx = empty((*dy.shape[:-1], n_in), w.dtype)
    np.matmul(dy2, w.T, out=rows_of(dx, n_in))
    return dx, grads


def softmax_forward(x):
    n = x.shape[-1]
    if x.size == 0:
        return softmax.softmax_forward.reference(x)
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
    (y,) = cache
    if y.size == 0:
        return softmax.softmax_backward.reference(dy, cache)
    n = y.shape[-1]
    dx = empty(y.shape, y.dtype)
    y2, dy2, dx2 = (rows_of(a, n) for a in (y, dy, dx))
    for _, yr, dyr, dxr in row_blocks(y2, dy2, dx2):
        along = np.vecdot(yr, dyr)
        np.subtract(dyr, along[:, None], out=dxr)
        dxr *= yr
    return dx


def attention_forward(q, k, v, causal=False, key_mask=None, dropout=0.0, rng=None):
    if q.size == 0 or k.size == 0:
        return attention.attention_forward.reference(q, k, v, causal, key_mask, dropout, rng)
    if q.shape[2] == 1 and key_mask is None and (rng is None or dropout == 0):
        return attention_numpy.one_query(q, k, v, causal)
    return attention_numpy.forward(q, k, v, causal, key_mask, dropout, rng)


def attention_backward(dy, cache):
    if dy.size == 0 or cache[1].size == 0:
        return attention.attention_backward.reference(dy, cache)
    return attention_numpy.backward(dy, cache)


def merge_heads(*xs):
    first = xs[0]
    B, H, T, D = first.shape
    if len(xs) == 1:
        return first.transpose(0, 2, 1, 3).reshape(B, T, H * D)
    n, size = len(xs), first.itemsize
    strides = (T * n * H * D * size, D * size, n * H * D * size, size)
    for i, x in enumerate(xs):
        beside = address(x) == address(first) + i * H * D * size
        if not beside or x.strides != strides or x.base is None or x.base is not first.base:
            return attention.merge_heads.reference(*xs)
    return as_strided(first, (B, T, n * H * D), (strides[0], strides[2], size))


def address(x):
    """Return where the first element of x lies in memory."""
    return x.__array_interface__["data"][0]
