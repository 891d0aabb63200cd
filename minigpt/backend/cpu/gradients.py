"""Gradients into one buffer on a CPU, and their sum of squares; by blocks."""

import numpy as np

from minigpt.backend.cpu.blocking import row_blocks


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
    """As the op; BLAS reads g once and writes no squares, a block at a time."""
    total = 0.0  # of double precision
    for _, block in row_blocks(g):
        total += float(np.dot(block, block))
    return np.array([total])
