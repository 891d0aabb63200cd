"""Attention on the CPU by tiles, after FlashAttention: Dao et al. 2022, arXiv:2205.14135.

Scores exist one tile at a time and never above the tiles of the diagonal. Between the passes
stands one number a query, lse = log sum exp s, from which the backward pass makes the weights
again; only where sequences are short are the weights kept.

Three devices keep the elementwise work on a tile down to one exp (and one product backwards):

- a column is appended to operands, so that the matrix product itself subtracts lse
  ([q, -lse] @ [k, 1]^T = s - lse) and delta ([dy, -delta] @ [v, 1]^T = dw - delta, where
  delta = sum_j w_j dw_j = y . dy);
- the softmax is shifted by the row's maximum only where a bound says that exp could overflow:
  |s_ij| <= |q_i| max_j |k_j| / sqrt(D), Cauchy-Schwarz. Without a shift it is the same quotient.
  Each query decides by the keys that it may see, so that none of its bits depends on the future;
- the scale 1/sqrt(D) is applied to q, which is small, and not to s.
"""

import math

import numpy as np

from minigpt.backend.pool import empty
from minigpt.backend.tiles_numpy import (
    Tiles,
    batches,
    flat,
    gradients_like,
    heads_last,
    tile_buffer,
    transposed,
)
from minigpt.ops.attention import scores

SAFE = 64.0  # exp(64) summed over any sequence that fits in memory stays finite in float32


def shifts(q, k, tiles):
    """Return what each score is lessened by before exp, (B * H, Tq, 1), or None for nothing.

    It is the row's maximum where exp could overflow, and 0 elsewhere.
    """
    q_norm, k_norm = (np.einsum("bhtd,bhtd->bht", x, x) for x in (q, k))
    limit = (SAFE * math.sqrt(tiles.D)) ** 2
    if q_norm.max() * k_norm.max() < limit:
        return None
    if tiles.key_mask is not None:
        k_norm = np.where(tiles.key_mask[:, None], k_norm, 0)
    if tiles.causal:
        last = np.arange(tiles.Tq) + tiles.past  # the last key that each query sees
        k_norm = np.maximum.accumulate(k_norm, axis=-1)[..., np.maximum(last, 0)]
    else:
        k_norm = k_norm.max(axis=-1, keepdims=True)
    safe = (q_norm * k_norm < limit).reshape(-1, tiles.Tq)
    top = np.full((tiles.B * tiles.H, tiles.Tq), -math.inf, q.dtype)
    qs, kt = flat(q, 1 / math.sqrt(tiles.D)), transposed(k)
    for h, i, j, n in tiles:
        s = tiles.scores(qs, kt, h, i, j, np.empty(n, q.dtype))
        np.maximum(top[h, i], s.max(axis=-1), out=top[h, i])
    top[safe | (top == -math.inf)] = 0
    return top[..., None]


def forward(q, k, v, causal, key_mask, dropout, rng):
    """attention_forward by tiles; see there."""
    tiles = Tiles(q, k, causal, key_mask, dropout, rng)
    B, H, Tq, D = q.shape
    shift = shifts(q, k, tiles)
    if tiles.short:
        y, w = short_forward(q, k, v, tiles, shift)
        return y, (q, k, v, y, w, None, causal, key_mask, dropout, rng)
    qs, kt, vs = flat(q, 1 / math.sqrt(D)), transposed(k), flat(v)
    total = np.zeros((B * H, Tq, 1), q.dtype)
    ya = empty((B * H, Tq, D), q.dtype)  # y times total
    ya[...] = 0
    s_scratch, y_scratch = (tile_buffer(tiles, q.dtype) for _ in range(2))
    ones = np.ones(tiles.columns, q.dtype)
    for h, i, j, n in tiles:
        s = tiles.scores(qs, kt, h, i, j, s_scratch(*n))
        if shift is not None:
            s -= shift[h, i]
        np.exp(s, out=s)
        total[h, i, 0] += (s.reshape(-1, n[2]) @ ones[: n[2]]).reshape(n[:2])
        if tiles.rng is not None:
            s *= tiles.drop(h, i, j, s.dtype)
        ya[h, i] += np.matmul(s, vs[h, j], out=y_scratch(*n[:2], D))
    total[total == 0] = 1  # a query that sees nothing: y = 0 / 1
    y = heads_last(q)
    np.divide(ya.reshape(q.shape), total.reshape(B, H, Tq, 1), out=y)
    lse = np.log(total) if shift is None else np.log(total) + shift
    return y, (q, k, v, y, None, lse.reshape(B, H, Tq, 1), causal, key_mask, dropout, rng)


def backward(dy, cache):
    """attention_backward by tiles; see there."""
    q, k, v, y, w, lse, causal, key_mask, dropout, rng = cache
    tiles = Tiles(q, k, causal, key_mask, dropout, rng)
    if w is not None and tiles.short:
        return short_backward(dy, cache, tiles)
    if lse is None:
        lse = lse_of(w, q, k, causal, key_mask)
    D, scale = tiles.D, 1 / math.sqrt(tiles.D)
    plain = tiles.rng is None
    delta = np.einsum("bhtd,bhtd->bht", dy, y)
    qa, dya = flat(q, scale, -lse[..., 0]), flat(dy, 1, -delta if plain else 0)
    delta = delta.reshape(-1, tiles.Tq, 1)
    kt, vt, ks = transposed(k, ones=1), transposed(v, ones=1), flat(k)
    dq, dk, dv = (empty((tiles.B * tiles.H, x.shape[2], D), q.dtype) for x in (q, k, v))
    for x in (dq, dk, dv):
        x[...] = 0
    p_scratch, ds_scratch, d_scratch = (tile_buffer(tiles, q.dtype) for _ in range(3))
    for h, i, j, n in tiles:
        p = tiles.scores(qa, kt, h, i, j, p_scratch(*n))
        np.exp(p, out=p)
        ds = np.matmul(dya[h, i], vt[h, :, j], out=ds_scratch(*n))
        if not plain:
            mask = tiles.drop(h, i, j, q.dtype)
            ds *= mask
            ds -= delta[h, i]
        ds *= p
        if not plain:
            p *= mask
        to = d_scratch(n[0], n[2], D)
        dv[h, j] += np.matmul(p.swapaxes(1, 2), dya[h, i, :D], out=to)
        dk[h, j] += np.matmul(ds.swapaxes(1, 2), qa[h, i, :D], out=to)
        dq[h, i] += np.matmul(ds, ks[h, j], out=d_scratch(*n[:2], D))
    outs = gradients_like(q, k)
    for out, dx, factor in zip(outs, (dq, dk, dv), (scale, 1, 1), strict=True):
        np.multiply(dx.reshape(out.shape), factor, out=out)
    return tuple(outs)


def short_forward(q, k, v, tiles, shift):
    """Return y and the weights w: all scores of some sequences at a time."""
    B, H, Tq, D = q.shape
    Tk, dtype = tiles.Tk, q.dtype
    y, w = heads_last(q), empty((B, H, Tq, Tk), dtype)
    kt = transposed(k).reshape(B, H, D, Tk)
    ones, scale = np.ones(Tk, dtype), 1 / math.sqrt(D)
    everything = slice(0, Tq), slice(0, Tk)
    for b, h in batches(tiles):
        s = np.matmul(q[b] * scale, kt[b], out=w[b])
        s3 = s.reshape(-1, Tq, Tk)
        tiles.mask(s3, h, *everything)
        if shift is not None:
            s3 -= shift[h]
        np.exp(s, out=s)
        total = s.reshape(-1, Tk) @ ones
        total[total == 0] = 1
        s3 *= np.reciprocal(total).reshape(-1, Tq, 1)
        if tiles.rng is not None:
            s = s * tiles.drop(h, *everything, dtype).reshape(s.shape)
        np.matmul(s, v[b], out=y[b])
    return y, w


def short_backward(dy, cache, tiles):
    """Return dq, dk and dv from weights that were kept."""
    q, k, v, y, w = cache[:5]
    outs = gradients_like(q, k)
    delta = np.einsum("bhtd,bhtd->bht", dy, y)[..., None]
    vt = transposed(v).reshape(*v.shape[:2], tiles.D, tiles.Tk)
    everything = slice(0, tiles.Tq), slice(0, tiles.Tk)
    for b, h in batches(tiles):
        ds, dropped = dy[b] @ vt[b], w[b]
        if tiles.rng is not None:
            mask = tiles.drop(h, *everything, q.dtype).reshape(ds.shape)
            ds *= mask
            dropped = w[b] * mask
        ds -= delta[b]
        ds *= w[b]
        ds *= 1 / math.sqrt(tiles.D)
        for out, a, x in zip(outs, (ds, ds.swapaxes(2, 3)), (k, q), strict=False):
            np.matmul(a, x[b], out=out[b])
        np.matmul(dropped.swapaxes(2, 3), dy[b], out=outs[2][b])
    return tuple(outs)


def lse_of(w, q, k, causal, key_mask):
    """Return lse (B, H, Tq, 1) of weights w that the reference op kept: from s - log w."""
    s = scores(q, k, causal, key_mask)
    top = s.max(axis=-1, keepdims=True)
    seen = top > -math.inf
    largest = np.where(seen, w.max(axis=-1, keepdims=True), 1)
    return np.where(seen, top - np.log(largest), 0)
