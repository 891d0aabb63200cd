"""AdamW on a CPU, by blocks."""

import math

import numpy as np

from minigpt.backend.cpu.blocking import block_rows, row_blocks
from minigpt.backend.cpu.pool import empty


def adamw_step(
    p, g, m, v, lr, beta1, beta2, eps, weight_decay, decayed, step, scale=1.0, half=None
):
    """As the op; by blocks."""
    step, scale = int(step), float(scale)
    if not math.isfinite(scale):
        return
    # With the bias corrections moved out of the arrays:
    # lr mhat / (sqrt(vhat) + eps) = a m / (sqrt(v) + c)
    root = math.sqrt(1 - beta2**step)
    a, c = lr * root / (1 - beta1**step), eps * root
    scratch = empty((2, block_rows(p.size, 1)), p.dtype)
    for start, pb, gb, mb, vb, hb in row_blocks(p, g, m, v, half):
        t, u = scratch[:, : pb.size]
        np.multiply(gb, scale, out=t)
        np.multiply(t, 1 - beta1, out=u)
        mb *= beta1
        mb += u
        t *= t
        t *= 1 - beta2
        vb *= beta2
        vb += t
        np.sqrt(vb, out=t)
        t += c
        np.divide(mb, t, out=t)
        t *= a
        if start < decayed:
            pb[: decayed - start] *= 1 - lr * weight_decay
        pb -= t
        if half is not None:
            hb[...] = pb
