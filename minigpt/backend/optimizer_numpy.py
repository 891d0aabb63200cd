"""The optimizer on the CPU: gradients into one buffer, their squares, AdamW; by blocks."""

import math

import numpy as np

from minigpt import params
from minigpt.backend.pool import empty
from minigpt.backend.rows_numpy import block_rows, row_blocks


def adamw_step(p, g, m, v, lr, beta1, beta2, eps, weight_decay, decayed, step, scale=1.0, low=None):
    """As the op; by blocks."""
    step, scale = int(step), float(scale)
    if not math.isfinite(scale):
        return
    # With bias corrections moved out of the arrays:
    # lr mhat / (sqrt(vhat) + eps) = a m / (sqrt(v) + c)
    root = math.sqrt(1 - beta2**step)
    a, c = lr * root / (1 - beta1**step), eps * root
    scratch = empty((2, block_rows(p.size, 1)), p.dtype)
    for start, pp, gp, mp, vp, lp in row_blocks(p, g, m, v, low):
        t, u = scratch[:, : pp.size]
        np.multiply(gp, scale, out=t)
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
        if start < decayed:
            pp[: decayed - start] *= 1 - lr * weight_decay
        pp -= t
        if low is not None:
            lp[...] = pp


def sum_of_squares(g):
    """As the op; BLAS does not write the squares down."""
    return np.dot(g, g)


def gather(flat, shards, add=False):
    """As the op; each block is squared while it is in the cache."""
    plain = all(array.dtype == flat.dtype for arrays in shards for array in arrays)
    if not plain or sum(array.size for array in shards[0]) != flat.size:
        return params.gather.reference(flat, shards, add)
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
