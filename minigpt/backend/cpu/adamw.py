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
    # What m receives, t = (1 - beta1) g, gives what v receives, too: (1 - beta2) g^2 = square t^2
    square = (1 - beta2) / (1 - beta1) ** 2
    scratch = empty((block_rows(p.size, 1),), p.dtype)
    for start, pb, gb, mb, vb, hb in row_blocks(p, g, m, v, half):
        t = scratch[: pb.size]
        np.multiply(gb, (1 - beta1) * scale, out=t)
        mb *= beta1
        mb += t
        t *= t
        t *= square
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
