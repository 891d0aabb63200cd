"""How attention on the CPU is cut into tiles, and the memory that they are computed in."""

import functools
import math

import numpy as np

from minigpt.backend.cpu import crew
from minigpt.backend.cpu.dropout import mix, random_words
from minigpt.backend.cpu.pool import empty
from minigpt.ops.dropout import GAMMA, LANES, threshold

TILE = 2**17  # scores that exist at one time: 512 KB in float32, half of an L2 cache
KEYS = 512  # columns of a tile
KEPT = 2**12  # Tq * Tk up to which the weights are kept between the passes: 16 KB a head


def query_rows(Tq, causal):
    """Return the rows of a tile.

    Products of more rows are faster, but half of each tile on a causal diagonal is wasted work.
    """
    return min(Tq, 256 if Tq > 2048 or not causal else 128 if Tq > 256 else 64)


@functools.lru_cache(8)
def causal_mask(n, dtype):
    """Return the mask of n queries to add to scores, (n, n): -inf above the diagonal, else 0."""
    return np.triu(np.full((n, n), -math.inf, dtype), 1)


class Tiles:
    """The tiles of one call: which there are, and what masks and dropout do to them.

    g = (b, heads) is the index of some heads of a sequence, i and j are slices of queries and
    keys. Tiles above the diagonal do not occur.
    """

    def __init__(self, q, k, causal, key_mask, dropout, rng):
        self.B, self.H, self.Tq, self.D = q.shape
        self.Tk, self.dtype = k.shape[2], q.dtype
        self.scale = 1 / math.sqrt(self.D)
        self.past = self.Tk - self.Tq  # query i may see keys up to i + past
        self.causal, self.key_mask = causal, key_mask
        self.dropout, self.rng = (dropout, rng) if rng is not None and dropout else (0.0, None)
        self.short = self.Tq * self.Tk <= KEPT  # one tile, whose weights are kept
        self.rows = self.Tq if self.short else query_rows(self.Tq, causal)
        self.columns = self.Tk if self.short else min(self.Tk, KEYS)
        each = -(-self.H // crew.size())  # heads of a thread
        self.group = min(each, max(1, TILE // (self.rows * self.columns)))
        # Parts of a head's queries: one, but where there are threads for more that are worth it
        worth = crew.parts(-(-self.Tq // self.rows), 2 * self.Tq * self.Tk * self.D)
        self.cuts = min(len(worth), max(1, crew.size() // (self.B * self.H)))
        self.causal_mask = causal_mask(self.rows, q.dtype) if causal else None

    def heads(self):
        """Yield g for all heads of all sequences."""
        for b in range(self.B):
            for h in range(0, self.H, self.group):
                yield b, slice(h, min(h + self.group, self.H))

    def parts(self):
        """Return [(g, part)], what threads share: all heads, each with a part of its queries."""
        return [(g, part) for g in self.heads() for part in range(self.cuts)]

    def queries(self, part):
        """Yield slices of a part of the queries, last first: that of the first part sees all keys.

        Under the tril mask later queries see more keys. Of two parts the first has the tiles 0, 3,
        4, 7, ... from the end, the other 1, 2, 5, 6, ...: about as many keys.
        """
        stops, turn = range(self.Tq, 0, -self.rows), 2 * self.cuts
        for stop in sorted((*stops[part::turn], *stops[turn - 1 - part :: turn]), reverse=True):
            yield slice(max(0, stop - self.rows), stop)

    def keys(self, i):
        """Yield slices of the keys that queries i may see."""
        seen = min(self.Tk, max(0, i.stop + self.past)) if self.causal else self.Tk
        for start in range(0, seen, self.columns):
            yield slice(start, min(start + self.columns, seen))

    def scores(self, q, kt, g, i, j, out):
        """Return the tile of q @ k^T, masked; `out` makes the array."""
        s = out(g[1].stop - g[1].start, i.stop - i.start, j.stop - j.start)
        np.matmul(q[g][:, i], kt[g][..., j], out=s)
        self.mask(s, g[0], i, j)
        return s

    def mask(self, s, b, i, j):
        """Put -inf into the tile s (..., queries i, keys j) where a key may not be seen.

        b is a sequence, or a slice of them where s is (sequences, heads, queries, keys).
        """
        n, width = s.shape[-2:]
        diagonal = i.start + self.past - j.start  # the first query's last key, in this tile
        first = max(0, diagonal)
        if self.causal and first < width:
            s[..., first:] += self.causal_mask[:n, first - diagonal : width - diagonal]
        if self.key_mask is not None:
            hidden = ~self.key_mask[b, j]
            s[
                np.broadcast_to(hidden[..., None, None, :] if s.ndim == 4 else hidden, s.shape)
            ] = -math.inf

    def drop(self, b, h, i, j):
        """Return 0 or 1 / (1 - p) for each weight: keep_mask's bits for its place.

        Sequences b, heads h, queries i and keys j, all slices: (sequences, heads, i, j).
        """
        sequence, head, query = (
            np.arange(x.start, x.stop, dtype=np.uint64).reshape(shape)
            for x, shape in ((b, (-1, 1, 1)), (h, (-1, 1)), (i, -1))
        )
        row = ((sequence + self.rng.row) * self.H + head) * self.Tq + query
        place = row[..., None] * self.Tk + j.start
        width = j.stop - j.start
        limit, scale = threshold(self.dropout)
        if self.Tk % LANES == 0 and j.start % LANES == 0:  # words begin where rows do
            words = random_words(self.rng.key, place // LANES, -(-width // LANES))
            bits = words.view(np.uint16)[..., :width]
        else:
            place = place + np.arange(width, dtype=np.uint64)
            word = mix((place // LANES + 1) * GAMMA + self.rng.key)
            bits = (word >> (place % LANES * 16)).astype(np.uint16)
        return np.multiply(bits >= limit, scale, dtype=self.dtype)


def transpose(x, scale=1.0):
    """Return scale * x^T, (B, H, D, T): BLAS multiplies faster by small matrices that lie so."""
    B, H, T, D = x.shape
    return np.multiply(x.swapaxes(2, 3), scale, out=empty((B, H, D, T), x.dtype))


def tile_buffer(tiles):
    """Return a function that gives an uninitialised (heads, n, m), the same memory every time."""
    n, m = tiles.rows, tiles.columns
    buffer = empty((tiles.group * max(n * m, max(n, m) * tiles.D),), tiles.dtype)
    return lambda *shape: buffer[: math.prod(shape)].reshape(shape)


def batches(tiles):
    """Yield slices of the batch whose scores together are about a TILE."""
    n = max(1, TILE // (tiles.H * tiles.Tq * tiles.Tk))
    for start in range(0, tiles.B, n):
        yield slice(start, min(start + n, tiles.B))


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
        return tuple(empty((B, Tq, 3, H, D), q.dtype).transpose(2, 0, 3, 1, 4))
    return heads_last(q), heads_last(k), heads_last(k)
