"""Faster namesakes of the ops on the CPU: in place, in blocks of rows that fit the L2 cache.

Each has the signature, the results (to rounding) and the cache of its op, so that the passes of
the two can be mixed. Delete this file and everything still works, only slower.

What makes them fast: a block of rows goes through all steps of an op while it is in the cache;
results are written into memory that is reused (`pool`); sums over rows or columns are products
with a vector, which BLAS does at the speed of the memory.
"""

import math

import numpy as np

from minigpt.backend import attention_numpy
from minigpt.backend.activation_numpy import BLOCK, activation_forward
from minigpt.backend.pool import empty
from minigpt.backend.tiles_numpy import words_of
from minigpt.backend.vocabulary_numpy import (
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
)
from minigpt.ops import attention, softmax
from minigpt.ops.dropout import LANES, threshold

__all__ = [
    "activation_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding_backward",
]


def row_blocks(n, width):
    """Yield slices of rows 0 .. n - 1 that hold about BLOCK elements each."""
    rows = max(1, BLOCK // max(width, 1))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def rows_of(x, width):
    """Return x as (N, width): a view where it is contiguous, as nearly everything here is."""
    return x.reshape(-1, width)


def linear_forward(x, w, b=None):
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear_forward: b is {b.shape}, but w {w.shape} needs {w.shape[1:]}")
    y = empty((*x.shape[:-1], w.shape[1]), w.dtype)
    y2 = rows_of(y, w.shape[1])
    np.matmul(rows_of(x, w.shape[0]), w, out=y2)
    if b is not None:
        for rows in row_blocks(*y2.shape):
            y2[rows] += b
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


def column_sums(x):
    """Return the sum over the rows of x (N, C): (C,)."""
    return np.ones(len(x), x.dtype) @ x


def layernorm_forward(x, w, b=None, eps=1e-5):
    C = x.shape[-1]
    if w.shape != (C,) or (b is not None and b.shape != (C,)):
        raise ValueError(
            f"layernorm_forward: w is {w.shape} and b is {None if b is None else b.shape}, "
            f"but the last axis of x {x.shape} needs ({C},)"
        )
    y = empty(x.shape, x.dtype)
    x2, y2 = rows_of(x, C), rows_of(y, C)
    mu, rstd = np.empty((2, len(x2), 1), x.dtype)
    mean = np.full(C, 1 / max(C, 1), x.dtype)
    for rows in row_blocks(*x2.shape):
        yr, m, r = y2[rows], mu[rows], rstd[rows]
        np.matmul(x2[rows], mean, out=m[:, 0])
        np.subtract(x2[rows], m, out=yr)
        np.einsum("nc,nc->n", yr, yr, out=r[:, 0])
        r *= 1 / C
        r += eps
        np.sqrt(r, out=r)
        np.reciprocal(r, out=r)
        yr *= r
        yr *= w
        if b is not None:
            yr += b
    kept = (*x.shape[:-1], 1)
    return y, (x, w, b, mu.reshape(kept), rstd.reshape(kept))


def layernorm_backward(dy, cache):
    x, w, b, mu, rstd = cache
    C = x.shape[-1]
    dx = empty(x.shape, x.dtype)
    x2, dy2, dx2 = rows_of(x, C), rows_of(dy, C), rows_of(dx, C)
    mu, rstd = mu.reshape(-1, 1), rstd.reshape(-1, 1)
    dw = np.zeros(C, x.dtype)
    wn = w * (1 / max(C, 1))
    scratch = empty((min(len(x2), max(1, BLOCK // max(C, 1))), C), x.dtype)
    for rows in row_blocks(*x2.shape):
        dyr, dxr, r = dy2[rows], dx2[rows], rstd[rows]
        xhat = np.subtract(x2[rows], mu[rows], out=scratch[: len(r)])
        xhat *= r
        np.multiply(dyr, xhat, out=dxr)
        dw += column_sums(dxr)
        along = dxr @ wn  # mean(xhat * dxhat)
        shift = dyr @ wn  # mean(dxhat)
        np.multiply(dyr, w, out=dxr)
        xhat *= along[:, None]
        dxr -= shift[:, None]
        dxr -= xhat
        dxr *= r
    return dx, {"w": dw} if b is None else {"w": dw, "b": column_sums(dy2)}


def add(x, h):
    return np.add(x, h, out=empty(x.shape, x.dtype))


def softmax_forward(x):
    n = x.shape[-1]
    if x.size == 0:
        return softmax.softmax_forward.reference(x)
    y, ones = empty(x.shape, x.dtype), np.ones(n, x.dtype)
    x2, y2 = rows_of(x, n), rows_of(y, n)
    for rows in row_blocks(*x2.shape):
        top = x2[rows].max(axis=-1, keepdims=True)
        top[top == -math.inf] = 0
        np.subtract(x2[rows], top, out=y2[rows])
        np.exp(y2[rows], out=y2[rows])
        total = y2[rows] @ ones
        total[total == 0] = 1
        y2[rows] /= total[:, None]
    return y, (y,)


def softmax_backward(dy, cache):
    (y,) = cache
    if y.size == 0:
        return softmax.softmax_backward.reference(dy, cache)
    n = y.shape[-1]
    dx = empty(y.shape, y.dtype)
    y2, dy2, dx2 = (rows_of(a, n) for a in (y, dy, dx))
    for rows in row_blocks(*y2.shape):
        along = np.einsum("nc,nc->n", y2[rows], dy2[rows])
        np.subtract(dy2[rows], along[:, None], out=dx2[rows])
        dx2[rows] *= y2[rows]
    return dx


def activation_backward(dy, cache):
    (slope,) = cache
    return np.multiply(dy, slope, out=empty(dy.shape, dy.dtype))


def dropout_forward(x, p, rng):
    if rng is None or p == 0:
        return x, (p, None)
    y = empty(x.shape, x.dtype)
    xs, ys = x.reshape(-1), y.reshape(-1)
    limit, scale = threshold(p)
    base = rng.row * math.prod(x.shape[1:])
    for part in row_blocks(x.size, 1):
        start, stop = base + part.start, base + part.stop
        first = start // LANES
        words = words_of(rng.key, np.arange(first + 1, -(-stop // LANES) + 1, dtype=np.uint64))
        bits = words.view(np.uint16)[start - first * LANES :][: stop - start]
        np.multiply(xs[part], bits >= limit, out=ys[part])
        ys[part] *= scale
    return y, (p, rng)


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
    first, shape = xs[0], xs[0].shape
    B, H, T, D = shape
    whole = first.base
    if whole is None or whole.size != first.size * len(xs) or not whole.flags.c_contiguous:
        return attention.merge_heads.reference(*xs)
    joined = whole.reshape(B, T, len(xs), H, D)
    expected = joined.transpose(2, 0, 3, 1, 4)
    for x, y in zip(xs, expected, strict=True):
        if x.strides != y.strides or address(x) != address(y):
            return attention.merge_heads.reference(*xs)
    return joined.reshape(B, T, len(xs) * H * D)


def address(x):
    """Return where the first element of x lies in memory."""
    return x.__array_interface__["data"][0]


def adamw_step(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale=1.0):
    # With bias corrections moved out of the arrays:
    # lr mhat / (sqrt(vhat) + eps) = a m / (sqrt(v) + c)
    root = math.sqrt(1 - beta2**step)
    a, c = lr * root / (1 - beta1**step), eps * root
    scratch = empty((2, min(p.size, BLOCK)), p.dtype)
    for part in row_blocks(p.size, 1):
        pp, mp, vp = p[part], m[part], v[part]
        t, u = scratch[:, : pp.size]
        np.multiply(g[part], scale, out=t)
        np.multiply(t, 1 - beta1, out=u)
        mp *= beta1
        mp += u
        t *= t
        t *= 1 - beta2
        vp *= beta2
        vp += t
        np.sqrt(vp, out=t)
        t += c
        np.divide(mp, t, out=t)
        t *= a
        if weight_decay:
            pp *= 1 - lr * weight_decay
        pp -= t


def sum_of_squares(g):
    return np.dot(g, g)
