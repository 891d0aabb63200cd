"""Gradients into one buffer on the CPU, and their squares; by blocks."""

import numpy as np

from minigpt.backend.cpu.blocking import row_blocks


def sum_of_squares(g):
    """As the op; BLAS does not write the squares down."""
    return np.dot(g, g)


def gather(flat, shards, add=False):
    """As the op; each block is squared while it is in the cache."""
    plain = all(array.dtype == flat.dtype for arrays in shards for array in arrays)
    if not plain or sum(array.size for array in shards[0]) != flat.size:
        return NotImplemented
    total, at = 0.0, 0
    for arrays in zip(*(map(np.ravel, arrays) for arrays in shards), strict=True):
        size = arrays[0].size
        for _, out, first, *rest in row_blocks(flat[at : at + size], *arrays):
            if add:
                rest = [first, *rest]
            elif rest:
                np.add(first, rest.pop(0), out=out)
            else:
                out[...] = first
            for other in rest:
                out += other
            total += float(np.dot(out, out))
        at += size
    return np.array([total])
