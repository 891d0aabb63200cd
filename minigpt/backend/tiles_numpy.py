"""How attention on the CPU is cut into tiles, and the memory that they are computed in."""

import math

import numpy as np

from minigpt.backend.pool import empty
from minigpt.ops.dropout import GAMMA, LANES, threshold

TILE = 2**17  # scores that exist at one time: 512 KB in float32, half of an L2 cache
KEYS = 512  # columns of a tile
KEPT = 2**12  # Tq * Tk up to which the weights are kept between the passes: 16 KB a head


def query_rows(Tq):
    """Return the rows of a tile.

    Products of more rows are faster, but half of a tile on the diagonal is computed in vain.
    """
    return min(Tq, 64 if Tq <= 256 else 128 if Tq <= 2048 else 256)


class Tiles:
    """The tiles of one call: which there are, and what masks and dropout do to them.

    Iteration yields (h, i, j, n): slices of the B * H heads, of queries and of keys, and the
    shape of the tile. Tiles above the diagonal do not occur.
    """

    def __init__(self, q, k, causal, key_mask, dropout, rng):
        self.B, self.H, self.Tq, self.D = q.shape
        self.Tk = k.shape[2]
        self.past = self.Tk - self.Tq  # query i may see keys up to i + past
        self.causal, self.key_mask = causal, key_mask
        self.dropout, self.rng = (dropout, rng) if rng is not None and dropout else (0.0, None)
        self.short = self.Tq * self.Tk <= KEPT  # one tile, whose weights are kept
        self.rows = self.Tq if self.short else query_rows(self.Tq)
        self.columns = self.Tk if self.short else min(self.Tk, KEYS)
        self.group = min(self.B * self.H, max(1, TILE // (self.rows * self.columns)))
        self.future = np.triu(np.full((self.rows, self.rows), -math.inf, q.dtype), 1)

    def __iter__(self):
        for head in range(0, self.B * self.H, self.group):
            h = slice(head, min(head + self.group, self.B * self.H))
            for row in range(0, self.Tq, self.rows):
                i = slice(row, min(row + self.rows, self.Tq))
                seen = min(self.Tk, max(0, i.stop + self.past)) if self.causal else self.Tk
                for column in range(0, seen, self.columns):
                    j = slice(column, min(column + self.columns, seen))
                    yield h, i, j, (h.stop - h.start, i.stop - i.start, j.stop - j.start)

    def scores(self, q, kt, h, i, j, out):
        """Return the tile of q @ k^T, masked, in `out`."""
        np.matmul(q[h, i], kt[h, :, j], out=out)
        self.mask(out, h, i, j)
        return out

    def mask(self, s, h, i, j):
        """Add -inf to the tile s (heads h, queries i, keys j) where a key may not be seen."""
        n, width = s.shape[1:]
        diagonal = i.start + self.past - j.start  # the first query's last key, in this tile
        first = max(0, diagonal)
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
            words = -(-width // LANES)
            word = place // LANES + np.arange(1, words + 1, dtype=np.uint64)
            bits = words_of(self.rng.key, word).view(np.uint16)[..., :width]
        else:
            place = place + np.arange(width, dtype=np.uint64)
            word = words_of(self.rng.key, place // LANES + 1)
            bits = (word >> (place % LANES * 16)).astype(np.uint16)
        return np.multiply(bits >= limit, scale, dtype=dtype)


def words_of(key, counter):
    """Return ops.dropout's words of these counters (uint64, from 1), written over them."""
    z = counter
    z *= GAMMA
    z += key
    shifted = np.right_shift(z, 30, out=empty(z.shape, z.dtype))
    z ^= shifted
    z *= 0xBF58476D1CE4E5B9
    z ^= np.right_shift(z, 27, out=shifted)
    z *= 0x94D049BB133111EB
    z ^= np.right_shift(z, 31, out=shifted)
    return z


def flat(x, scale=1.0, column=None):
    """Return scale * x, with a column (B, H, T) appended if given: (B * H, T, D or D + 1)."""
    B, H, T, D = x.shape
    y = empty((B, H, T, D + (column is not None)), x.dtype)
    np.multiply(x, scale, out=y[..., :D])
    if column is not None:
        y[..., D] = column
    return y.reshape(B * H, T, y.shape[-1])


def transposed(x, ones=0):
    """Return x^T, with rows of ones below: (B * H, D + ones, T).

    BLAS multiplies by small matrices faster when they lie so.
    """
    B, H, T, D = x.shape
    y = empty((B, H, D + ones, T), x.dtype)
    y[:, :, :D] = x.swapaxes(2, 3)
    y[:, :, D:] = 1
    return y.reshape(B * H, D + ones, T)


def tile_buffer(tiles, dtype):
    """Return a function that gives an uninitialised (heads, n, m), the same memory every time."""
    n, m = tiles.rows, tiles.columns
    buffer = empty((tiles.group * max(n * m, max(n, m) * tiles.D),), dtype)
    return lambda *shape: buffer[: math.prod(shape)].reshape(shape)


def batches(tiles):
    """Yield slices of the batch whose scores together are about a TILE, with their heads."""
    n = max(1, TILE // (tiles.H * tiles.Tq * tiles.Tk))
    for start in range(0, tiles.B, n):
        b = slice(start, min(start + n, tiles.B))
        yield b, slice(b.start * tiles.H, b.stop * tiles.H)


def heads_last(x):
    """Return an array like x (B, H, T, D) in memory that is (B, T, H, D): heads merge for free."""
    B, H, T, D = x.shape
    return empty((B, T, H, D), x.dtype).transpose(0, 2, 1, 3)


def gradients_like(q, k):
    """Return arrays for dq, dk and dv: views (B, H, T, D) of memory that is (B, T, ..., H, D).

    Where q, k and v are of one length, one buffer (B, T, 3, H, D) takes all three, so that
    joining them for the backward pass of their common product is free.
    """
    B, H, Tq, D = q.shape
    if Tq == k.shape[2]:
        return empty((B, Tq, 3, H, D), q.dtype).transpose(2, 0, 3, 1, 4)
    return heads_last(q), heads_last(k), heads_last(k)
