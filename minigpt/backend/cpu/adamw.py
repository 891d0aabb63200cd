"""AdamW on the CPU, by blocks."""

import math

import numpy as np

from minigpt.backend.cpu.blocking import block_rows, row_blocks
from minigpt.backend.cpu.pool import empty


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
