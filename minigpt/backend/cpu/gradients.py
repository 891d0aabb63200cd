"""Gradients into one buffer on a CPU, and their sum of squares; by blocks."""

import numpy as np

from minigpt.backend.cpu.blocking import row_blocks

WIDTH = 4096  # elements of a sum in the precision of g


def gather(flat, shards, add=False):
    """As the op; the shards of a block are added while it is in the cache."""
    same = all(array.dtype == flat.dtype for arrays in shards for array in arrays)
    if not same or sum(array.size for array in shards[0]) != flat.size:
        return NotImplemented
    start = 0
    for arrays in zip(*(map(np.ravel, arrays) for arrays in shards), strict=True):
        size = arrays[0].size
        for _, out, first, *rest in row_blocks(flat[start : start + size], *arrays):
            if add:
                rest = [first, *rest]
            elif rest:
                np.add(first, rest.pop(0), out=out)
            else:
                out[...] = first
            for other in rest:
                out += other
        start += size
    return None


def sum_of_squares(g):
    """As the op; BLAS reads g once and writes no squares, WIDTH elements at a time.

    Longer sums in float32 would lose what is small behind what is large: 2e-6 of the norm.
    """
    n = g.size - g.size % WIDTH
    rows, rest = g[:n].reshape(-1, WIDTH), g[n:]
    with np.errstate(over="ignore", invalid="ignore"):  # the norm tells
        parts = np.append(np.vecdot(rows, rows), np.dot(rest, rest))
    return parts.sum(dtype=np.float64).reshape(1)
