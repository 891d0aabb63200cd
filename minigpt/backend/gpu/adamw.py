"""AdamW on a GPU: one launch, and nothing that waits for it."""

import math

import cupy
import numpy as np

from minigpt.backend.gpu.launch import launch, supported

THREADS = 256
EACH = 4  # elements of a thread
FLOAT32 = np.dtype(np.float32)


def adamw_step(
    p, g, m, v, lr, beta1, beta2, eps, weight_decay, decayed, step, scale=1.0, half=None
):
    """As the op; the kernel finds out by itself whether the step is skipped."""
    step, scale = (cupy.asarray(x, p.dtype) for x in (step, scale))
    half_fits = half is None or supported(half) and half.itemsize == 2
    if p.dtype != FLOAT32 or not supported(p, g, m, v, step, scale) or not half_fits:
        return NotImplemented
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    args = (p, g, m, v, half, p.size, decayed, step, scale, lr, beta1, beta2, *logs)
    launch(
        "adamw_step",
        FLOAT32 if half is None else half.dtype,
        (-(-p.size // (THREADS * EACH)),),
        (THREADS,),
        (*args, eps, weight_decay),
    )
    return None
