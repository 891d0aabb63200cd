"""Tiled attention on the CPU, after FlashAttention: Dao et al. 2022, arXiv:2205.14135.

Scores exist one tile at a time and never above the diagonal. Between the passes stands one number
a query, lse = log sum exp s, from which the backward pass makes the weights again; only where
sequences are short are the weights kept.

Three devices keep the elementwise work on a tile down to one exp (and one product backwards):

- a column is appended to each operand, so that the matrix product itself subtracts the row's
  shift or lse ([q, -lse] @ [k, 1]^T = s - lse), sums the weights (w @ [v, 1]) and subtracts
  delta ([dy, -delta] @ [v, 1]^T = dw - delta);
- the softmax is shifted by the row's maximum only where a bound says that exp could overflow:
  |s_ij| <= |q_i| max_j |k_j| / sqrt(D), Cauchy-Schwarz. Without a shift it is the same quotient;
- the scale 1/sqrt(D) is applied to q, which is small, and not to s.
"""

import math

import numpy as np

from minigpt.backend.pool import empty
from minigpt.ops.dropout import GAMMA, LANES, mix, threshold

TILE = 2**17  # scores that exist at one time: 512 KB in float32, half of an L2 cache
QUERIES = 128  # rows of a tile; what a tile on the diagonal computes in vain grows with them
KEYS = 1024  # columns of a tile
KEPT = 2**12  # Tq * Tk up to which the weights are kept between the passes
SAFE = 64.0  # exp(64) summed over any sequence that fits in memory stays finite in float32


class Tiles:
    """The tiles of one call: which there are, and what masks and dropout do to them."""

    def __init__(self, q, k, causal, key_mask, dropout, rng):
        self.B, self.H, self.Tq, self.D = q.shape
        self.Tk = k.shape[2]
        self.past = self.Tk - self.Tq  # query i may see keys up to i + past
        self.causal, self.key_mask = causal, key_mask
        self.dropout, self.rng = (dropout, rng) if rng is not None else (0.0, None)
        self.rows, self.columns = min(self.Tq, QUERIES), min(self.Tk, KEYS)
        self.future = np.triu(np.full((self.rows, self.rows), -math.inf, q.dtype), 1)

    def heads(self):
        """Yield slices of the B * H heads whose tiles together hold about TILE scores."""
        n = max(1, TILE // (self.rows * self.columns))
        for start in range(0, self.B * self.H, n):
            yield slice(start, min(start + n, self.B * self.H))

    def queries(self):
        """Yield slices of queries, each with the slices of the keys that they may see."""
        for start in range(0, self.Tq, self.rows):
            stop = min(start + self.rows, self.Tq)
            seen = min(self.Tk, max(0, stop + self.past)) if self.causal else self.Tk
            edges = range(0, seen, self.columns)
            yield slice(start, stop), [slice(j, min(j + self.columns, seen)) for j in edges]

    def mask(self, s, h, i, j):
        """Add -inf to the tile s (heads h, queries i, keys j) where a key may not be seen."""
        n, width = s.shape[1:]
        diagonal = i.start + self.past - j.start  # the first query's last key, in this tile
        first = max(0, diagonal + 1)
        if self.causal and first < width:
            s[:, :, first:] += self.future[:n, first - diagonal : width - diagonal]
        if self.key_mask is not None:
            batch = np.arange(h.start, h.stop) // self.H
            s[~np.broadcast_to(self.key_mask[batch, None, j], s.shape)] = -math.inf

    def drop(self, h, i, j, dtype):
        """Return 0 or 1 / (1 - p) for each weight of the tile: keep_mask's bits for its places."""
        row = np.arange(h.start, h.stop, dtype=np.uint64)[:, None] * self.Tq
        row = row + np.arange(i.start, i.stop, dtype=np.uint64)  # (heads, queries)
        row += self.rng.row * self.H * self.Tq
        place = row[..., None] * self.Tk + j.start
        width = j.stop - j.start
        limit, scale = threshold(self.dropout)
        if self.Tk % LANES == 0 and j.start % LANES == 0:  # words begin where rows do
            word = place // LANES + np.arange(1, -(-width // LANES) + 1, dtype=np.uint64)
            bits = mix(word * GAMMA + self.rng.key).view(np.uint16)[..., :width]
        else:
            place = place + np.arange(width, dtype=np.uint64)
            word = mix((place // LANES + 1) * GAMMA + self.rng.key)
            bits = (word >> (place % LANES * 16)).astype(np.uint16)
        return np.multiply(bits >= limit, scale, dtype=dtype)


def with_column(x, scale=1.0, column=None):
    """Return [scale x, column]: (B * H, T, D + 1), contiguous; column is 1 or (B, H, T)."""
    B, H, T, D = x.shape
    y = empty((B, H, T, D + 1), x.dtype)
    np.multiply(x, scale, out=y[..., :D])
    y[..., D] = 1 if column is None else column
    return y.reshape(B * H, T, D + 1)


def row_maxima(qa, ka, tiles):
    """Return the largest score of each query, (B, H, Tq), 0 where it sees nothing."""
    top = np.full((tiles.B * tiles.H, tiles.Tq), -math.inf, qa.dtype)
    for h in tiles.heads():
        for i, keys in tiles.queries():
            for j in keys:
                s = qa[h, i, :-1] @ ka[h, j, :-1].swapaxes(1, 2)
                tiles.mask(s, h, i, j)
                np.maximum(top[h, i], s.max(axis=-1), out=top[h, i])
    top[top == -math.inf] = 0
    return top


def bounded(qa, ka):
    """Return whether no score can be beyond SAFE: max |q_i| max |k_j| is below it."""
    longest = [np.einsum("htd,htd->ht", x, x).max(axis=1) for x in (qa[..., :-1], ka[..., :-1])]
    return bool((longest[0] * longest[1]).max() < SAFE * SAFE)


def tile_buffer(tiles, dtype):
    """Return a function that gives an uninitialised (heads, n, m), the same memory every time."""
    most = max(h.stop - h.start for h in tiles.heads()) * tiles.rows
    buffer = empty((most * max(tiles.columns, tiles.D + 1),), dtype)
    return lambda *shape: buffer[: math.prod(shape)].reshape(shape)


def forward(q, k, v, causal, key_mask, dropout, rng):
    """attention_forward by tiles; see there."""
    tiles = Tiles(q, k, causal, key_mask, dropout, rng)
    B, H, Tq, D = q.shape
    qa, ka, va = with_column(q, 1 / math.sqrt(D), 0), with_column(k), with_column(v)
    shifted = not bounded(qa, ka)
    if shifted:
        qa[..., D] = -row_maxima(qa, ka, tiles)
    keep = Tq * tiles.Tk <= KEPT
    w = empty((B * H, Tq, tiles.Tk), q.dtype) if keep else None
    ya = empty((B * H, Tq, D + 1), q.dtype)  # unnormalised y, and the sum of the weights
    scratch = None if keep else tile_buffer(tiles, q.dtype)
    columns = slice(None) if shifted else slice(D)
    for h in tiles.heads():
        for i, keys in tiles.queries():
            if not keys:
                ya[h, i] = 0
            for j in keys:
                n = (h.stop - h.start, i.stop - i.start, j.stop - j.start)
                s = w[h, i, j] if keep else scratch(*n)
                np.matmul(qa[h, i, columns], ka[h, j, columns].swapaxes(1, 2), out=s)
                tiles.mask(s, h, i, j)
                np.exp(s, out=s)
                e = s
                if tiles.rng is not None:
                    e = tiles.drop(h, i, j, s.dtype)
                    e *= s
                if j.start == 0:
                    y = np.matmul(e, va[h, j], out=ya[h, i])
                else:
                    y = e @ va[h, j]
                if tiles.rng is not None:
                    y[..., D] = s.sum(axis=-1)
                if j.start:
                    ya[h, i] += y
            if keep and keys:
                w[h, i, keys[-1].stop :] = 0
    total = ya[..., D].reshape(B, H, Tq, 1)
    total[total == 0] = 1  # a query that sees nothing: y = 0 / 1
    y = empty((B, Tq, H, D), q.dtype).transpose(0, 2, 1, 3)  # so that merging heads is free
    np.divide(ya.reshape(B, H, Tq, D + 1)[..., :D], total, out=y)
    if keep:
        w = w.reshape(B, H, Tq, tiles.Tk)
        w /= total
        return y, (q, k, v, y, w, None, causal, key_mask, dropout, rng)
    lse = np.log(total) - qa[..., D].reshape(B, H, Tq, 1)
    return y, (q, k, v, y, None, lse, causal, key_mask, dropout, rng)


def backward(dy, cache):
    """attention_backward by tiles; see there."""
    q, k, v, y, w, lse, causal, key_mask, dropout, rng = cache
    tiles = Tiles(q, k, causal, key_mask, dropout, rng)
    B, H, Tq, D = q.shape
    Tk, dtype = tiles.Tk, q.dtype
    scale = 1 / math.sqrt(D)
    delta = np.einsum("bhtd,bhtd->bht", dy, y)
    fused = tiles.rng is None
    qa = with_column(q, scale, 0 if lse is None else -lse[..., 0])
    ka, va, dya = with_column(k), with_column(v), with_column(dy, 1, -delta if fused else 0)
    delta = delta.reshape(B * H, Tq, 1)
    dq, dk, dv = (empty((B * H, T, D), dtype) for T in (Tq, Tk, Tk))
    for x in (dq, dk, dv):
        x[...] = 0
    kept = None if w is None else w.reshape(B * H, Tq, Tk)
    s_buffer, ds_buffer, d_buffer = (tile_buffer(tiles, dtype) for _ in range(3))
    for h in tiles.heads():
        for i, keys in tiles.queries():
            for j in keys:
                n = (h.stop - h.start, i.stop - i.start, j.stop - j.start)
                if kept is None:
                    p = np.matmul(qa[h, i], ka[h, j].swapaxes(1, 2), out=s_buffer(*n))
                    tiles.mask(p, h, i, j)
                    np.exp(p, out=p)
                else:
                    p = kept[h, i, j]
                ds = np.matmul(dya[h, i], va[h, j].swapaxes(1, 2), out=ds_buffer(*n))
                if fused:
                    pd = p
                else:
                    pd = tiles.drop(h, i, j, dtype)
                    ds *= pd
                    ds -= delta[h, i]
                    pd *= p
                ds *= p
                d = d_buffer(n[0], n[2], D)
                dv[h, j] += np.matmul(pd.swapaxes(1, 2), dya[h, i, :D], out=d)
                dk[h, j] += np.matmul(ds.swapaxes(1, 2), qa[h, i, :D], out=d)
                d = d_buffer(n[0], n[1], D)
                dq[h, i] += np.matmul(ds, ka[h, j, :D], out=d)
    return in_place_of(q, k, v, dq, dk, dv, scale)


def in_place_of(q, k, v, dq, dk, dv, scale):
    """Return dq * scale, dk and dv as views (B, H, T, D) of (B, T, ..., H, D) memory.

    Where q, k and v are of one length, one buffer (B, T, 3, H, D) takes all three, so that
    joining them for the backward pass of their common product is free.
    """
    B, H, Tq, D = q.shape
    if Tq == k.shape[2]:
        outs = empty((B, Tq, 3, H, D), q.dtype).transpose(2, 0, 3, 1, 4)
    else:
        outs = [empty((B, x.shape[2], H, D), q.dtype).transpose(0, 2, 1, 3) for x in (q, k, v)]
    for out, dx, factor in zip(outs, (dq, dk, dv), (scale, 1, 1), strict=True):
        np.multiply(dx.reshape(out.shape), factor, out=out)
    return tuple(outs)
