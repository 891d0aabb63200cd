"""Attention on the CPU by tiles, after FlashAttention: Dao et al. 2022, arXiv:2205.14135.

Scores exist one tile at a time and never above the tiles of the diagonal. The backward pass
recomputes the weights from one number per query, lse = log sum exp s, as in FlashAttention-2 (Dao
2023, arXiv:2307.08691, section 3.1). Only for short sequences the weights are kept.

What keeps the work on a tile small, beside its matrix products:

- the softmax is shifted by the row's maximum only where a bound says that exp could overflow:
  |s_ij| <= |q_i| max_j |k_j| / sqrt(D), Cauchy-Schwarz. Without a shift it is the same quotient.
  Each query decides by the keys that it may see, so that none of its bits depends on the future;
- the quotient's denominator divides y once, at the end, and not w (FlashAttention-2, section 3.1);
- the scale 1/sqrt(D) goes into the transposed copies of k and v, which cost a copy anyway;
- sum_j w_j dw_j, which the softmax's gradient needs, is y . dy (ops/attention.py): no second pass
  over the keys.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minigpt.backend.attention_cache import LseCache
from minigpt.backend.cpu.attention_tiles import (
    Tiles,
    batches,
    gradients_like,
    heads_last,
    tile_buffer,
    transpose,
)
from minigpt.backend.cpu.blocking import constant
from minigpt.backend.cpu.crew import share
from minigpt.backend.cpu.pool import empty, zeros
from minigpt.ops.attention import AttentionCache, scores

LEAST = -3e38  # finite in float32
SAFE = 64.0  # exp(64) summed over any sequence that fits in memory stays finite in float32


def shifts(q, k, kt, tiles):
    """Return what is subtracted from each score before exp, (B, H, Tq, 1), or None for nothing.

    It is the row's maximum where exp could overflow, and 0 elsewhere.
    """
    q_norm, k_norm = (np.einsum("bhtd,bhtd->bht", x, x) for x in (q, k))
    limit = (SAFE * math.sqrt(tiles.D)) ** 2
    if is_below(limit, q_norm.max(), k_norm.max()):
        return None
    if tiles.key_mask is not None:
        k_norm = np.where(tiles.key_mask[:, None], k_norm, 0)
    if tiles.causal:
        last = np.arange(tiles.Tq) + tiles.past  # the last key that each query sees
        k_norm = np.maximum.accumulate(k_norm, axis=-1)[..., np.maximum(last, 0)]
    else:
        k_norm = k_norm.max(axis=-1, keepdims=True)
    top = np.full(q.shape[:3], -math.inf, q.dtype)
    scratch = tile_buffer(tiles)
    for g, part in tiles.parts():
        for i in tiles.queries(part):
            for j in tiles.keys(i):
                s = tiles.scores(q, kt, g, i, j, scratch)
                np.maximum(top[g][:, i], s.max(axis=-1), out=top[g][:, i])
    top[is_below(limit, q_norm, k_norm) | (top == -math.inf)] = 0
    return top[..., None]


def is_below(limit, a, b):
    """Tell where a * b is below a limit; where the product overflows or is a nan, it is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return a * b < limit


def forward(q, k, v, causal, key_mask, dropout, rng):
    """attention_forward by tiles; see there."""
    tiles = Tiles(q, k, causal, key_mask, dropout, rng)
    kt = transpose(k, tiles.scale)
    shift = shifts(q, k, kt, tiles)
    if tiles.short:
        y, w = short_forward(q, kt, v, tiles, shift)
        return y, AttentionCache(q, k, v, y, w, causal, key_mask, dropout, rng)
    y, total = heads_last(q), np.zeros((*q.shape[:3], 1), q.dtype)
    ones = constant(tiles.columns, 1, q.dtype)

    def attend(parts):
        scratch, y_scratch = tile_buffer(tiles), tile_buffer(tiles)
        for g, part in parts:
            for i in tiles.queries(part):
                yi, ti = y[g][:, i], total[g][:, i]
                for j in tiles.keys(i):
                    s = tiles.scores(q, kt, g, i, j, scratch)
                    if shift is not None:
                        s -= shift[g][:, i]
                    np.exp(s, out=s)
                    ti[..., 0] += s @ ones[: s.shape[2]]
                    if tiles.rng is not None:
                        s *= tiles.drop(slice(g[0], g[0] + 1), g[1], i, j)[0]
                    put(s, v[g][:, j], yi, j.start == 0, y_scratch)
                if not ti.all():  # queries that see nothing: y = 0 / 1
                    yi[np.broadcast_to(ti == 0, yi.shape)] = 0
                    ti[ti == 0] = 1
                yi /= ti

    share(attend, tiles.parts())
    lse = np.log(total) if shift is None else np.log(total) + shift
    return y, LseCache(q, k, v, y, lse, causal, key_mask, dropout, rng)


def one_query(q, k, v, causal, key_mask=None):
    """attention_forward for Tq = 1, as in decoding: under the tril mask it sees all keys."""
    w = np.matmul(q, k.swapaxes(2, 3))
    w *= 1 / math.sqrt(q.shape[-1])
    if key_mask is not None:
        np.copyto(w, -math.inf, where=~key_mask[:, None, None])
    w -= np.maximum.reduce(w, axis=-1, keepdims=True, initial=LEAST)
    np.exp(w, out=w)
    total = np.add.reduce(w, axis=-1, keepdims=True)
    w /= np.maximum(total, 1, out=total)  # it is 0 where nothing may be seen, else 1 or more
    y = np.matmul(w, v)
    return y, AttentionCache(q, k, v, y, w, causal, key_mask, 0.0, None)


def put(a, b, to, first, scratch):
    """Put a @ b into the array `to`, or add it where it is not the first."""
    if first:
        np.matmul(a, b, out=to)
    else:
        to += np.matmul(a, b, out=scratch(*to.shape))


def short_forward(q, kt, v, tiles, shift):
    """Return y and the weights w: all scores of a few sequences at a time."""
    y, w = heads_last(q), empty((*q.shape[:3], tiles.Tk), q.dtype)
    ones = constant(tiles.Tk, 1, q.dtype)
    i, j = slice(0, tiles.Tq), slice(0, tiles.Tk)
    for b in batches(tiles):
        s = np.matmul(q[b], kt[b], out=w[b])
        tiles.mask(s, b, i, j)
        if shift is not None:
            s -= shift[b]
        np.exp(s, out=s)
        total = s.reshape(-1, tiles.Tk) @ ones
        total[total == 0] = 1
        s *= np.reciprocal(total, out=total).reshape(*s.shape[:3], 1)
        if tiles.rng is not None:
            s = s * tiles.drop(b, slice(0, tiles.H), i, j)
        np.matmul(s, v[b], out=y[b])
    return y, w


def backward(dy, cache):
    """attention_backward by tiles; see there."""
    q, k, v, y, kept, causal, key_mask, dropout, rng = cache
    tiles = Tiles(q, k, causal, key_mask, dropout, rng)
    vt = transpose(v, tiles.scale)
    delta = np.einsum("bhtd,bhtd->bht", dy, y)[..., None] * tiles.scale
    dq, dk, dv = gradients_like(q, k)
    has_lse = isinstance(cache, LseCache)
    if tiles.short and not has_lse:
        short_backward(dy, q, k, kept, vt, delta, tiles, (dq, dk, dv))
        return dq, dk, dv
    lse = kept if has_lse else lse_of(kept, q, k, causal, key_mask)
    kt = transpose(k, tiles.scale)
    if tiles.causal and tiles.past < 0:  # queries that see nothing
        dq[...] = 0
    sums = sums_of_parts(dk, dv, tiles)

    def differentiate(parts):
        p_scratch, ds_scratch, d_scratch = (tile_buffer(tiles) for _ in range(3))
        for g, part in parts:
            dk_sum, dv_sum = sums[part]
            for i in tiles.queries(part):
                for j in tiles.keys(i):
                    p = tiles.scores(q, kt, g, i, j, p_scratch)
                    p -= lse[g][:, i]
                    np.exp(p, out=p)
                    ds = np.matmul(dy[g][:, i], vt[g][..., j], out=ds_scratch(*p.shape))
                    if tiles.rng is not None:
                        mask = tiles.drop(slice(g[0], g[0] + 1), g[1], i, j)[0]
                        ds *= mask
                    ds -= delta[g][:, i]
                    ds *= p
                    if tiles.rng is not None:
                        p *= mask
                    last = i.stop == tiles.Tq  # these queries come first, and see all keys
                    put(p.swapaxes(1, 2), dy[g][:, i], dv_sum[g][:, j], last, d_scratch)
                    put(ds.swapaxes(1, 2), q[g][:, i], dk_sum[g][:, j], last, d_scratch)
                    put(ds, k[g][:, j], dq[g][:, i], j.start == 0, d_scratch)

    share(differentiate, tiles.parts())
    add_parts(sums)
    return dq, dk, dv


def sums_of_parts(dk, dv, tiles):
    """Return where each part of the queries adds up dk and dv: the arrays, and zeros like them."""
    more = range(1, tiles.cuts)
    return [(dk, dv), *((zeros(dk.shape, dk.dtype), zeros(dv.shape, dv.dtype)) for _ in more)]


def add_parts(sums):
    """Add the sums of all parts to those of the first, in order."""
    for more in sums[1:]:
        for x, part in zip(sums[0], more, strict=True):
            x += part


def short_backward(dy, q, k, w, vt, delta, tiles, outs):
    """Put dq, dk and dv into `outs`, from weights that were kept."""
    for b in batches(tiles):
        ds, dropped = dy[b] @ vt[b], w[b]
        if tiles.rng is not None:
            mask = tiles.drop(b, *(slice(0, n) for n in w.shape[1:]))
            ds *= mask
            dropped = w[b] * mask
        ds -= delta[b]
        ds *= w[b]
        np.matmul(ds, k[b], out=outs[0][b])
        np.matmul(ds.swapaxes(2, 3), q[b], out=outs[1][b])
        np.matmul(dropped.swapaxes(2, 3), dy[b], out=outs[2][b])


def lse_of(w, q, k, causal, key_mask):
    """Return lse (B, H, Tq, 1) of weights w that the reference op kept: from s - log w."""
    s = scores(q, k, causal, key_mask)
    top = s.max(axis=-1, keepdims=True)
    seen = top > -math.inf
    largest = np.where(seen, w.max(axis=-1, keepdims=True), 1)
    return np.where(seen, top - np.log(largest), 0)


def attention_forward(q, k, v, causal=False, key_mask=None, dropout=0.0, rng=None):
    """As the op; a single query, short sequences and long ones go three ways."""
    if q.size == 0 or k.size == 0:
        return NotImplemented
    if q.shape[2] == 1 and (rng is None or dropout == 0):
        return one_query(q, k, v, causal, key_mask)
    return forward(q, k, v, causal, key_mask, dropout, rng)


def attention_backward(dy, cache):
    """As the op; from kept weights or by tiles."""
    if dy.size == 0 or cache.k.size == 0:
        return NotImplemented
    return backward(dy, cache)


def merge_heads(*xs):
    """As the op; a view where the arrays lie as split_heads leaves them."""
    first = xs[0]
    B, H, T, D = first.shape
    if len(xs) == 1:
        return first.transpose(0, 2, 1, 3).reshape(B, T, H * D)
    n, size = len(xs), first.itemsize
    strides = (T * n * H * D * size, D * size, n * H * D * size, size)
    for i, x in enumerate(xs):
        beside = address(x) == address(first) + i * H * D * size
        if not beside or x.strides != strides or x.base is None or x.base is not first.base:
            return NotImplemented
    return as_strided(first, (B, T, n * H * D), (strides[0], strides[2], size))


def address(x):
    """Return where the first element of x lies in memory."""
    return x.__array_interface__["data"][0]
