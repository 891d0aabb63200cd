"""The optimizer on a GPU: three launches a step, and nothing that waits for them."""

import math

import cupy
import numpy as np

from minigpt import optim, params
from minigpt.backend.kernels_cupy import launch, supported

THREADS = 256
WIDTH = 4096  # elements of a block in gather
EACH = 4  # elements of a thread in adamw_step
ARRAYS = 240  # in one launch of gather, as in optimizer.cu
TABLE = np.dtype([("at", np.uint64, ARRAYS), ("start", np.int64, ARRAYS)])
FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)


def gather(flat, shards, add=False):
    """As the op; one launch for every ARRAYS arrays."""
    arrays = [x if x.flags.c_contiguous else cupy.ascontiguousarray(x) for x in shards[0]]
    edges = [0, *np.cumsum([x.size for x in arrays]).tolist()]
    dtypes = {x.dtype for x in arrays}
    if (
        not supported(flat)
        or flat.dtype != FLOAT32
        or dtypes not in ({FLOAT32}, {FLOAT16})
        or (len(shards), edges[-1]) != (1, flat.size)
    ):
        return params.gather.reference(flat, shards, add)
    starts = range(0, len(arrays), ARRAYS)
    spans = [(edges[i], edges[min(i + ARRAYS, len(arrays))]) for i in starts]
    blocks = [-(-(stop - start) // WIDTH) for start, stop in spans]
    squares, at = cupy.empty(sum(blocks), np.float32), 0
    for i, (start, stop), n in zip(starts, spans, blocks, strict=True):
        part = arrays[i : i + ARRAYS]
        table = np.zeros((), TABLE)
        table["at"][: len(part)] = [x.data.ptr for x in part]
        table["start"][: len(part)] = edges[i : i + len(part)]
        table["start"] -= start
        args = (flat[start:stop], squares[at:], table, len(part), stop - start, WIDTH, int(add))
        if n:
            launch("gather", arrays[0].dtype, (n,), (THREADS,), args)
        at += n
    return squares


def clip(state, squares, max_norm, growth=0, loss=None):
    """As the op; one block."""
    if loss is not None:
        loss = cupy.asarray(loss, state.dtype)
    if state.dtype != FLOAT32 or not supported(state, squares, loss):
        return optim.clip.reference(state, squares, max_norm, growth, loss)
    args = (state, squares, squares.size, float(max_norm), float(growth), optim.LARGEST, loss)
    launch("clip", FLOAT32, (1,), (1024,), args)


def adamw_step(p, g, m, v, lr, beta1, beta2, eps, weight_decay, decayed, step, scale=1.0, low=None):
    """As the op; whether the step is taken is found out on the device."""
    step, scale = (cupy.asarray(x, p.dtype) for x in (step, scale))
    whole = low is None or supported(low) and low.dtype == FLOAT16
    if p.dtype != FLOAT32 or not supported(p, g, m, v, step, scale) or not whole:
        return optim.adamw_step.reference(
            p, g, m, v, lr, beta1, beta2, eps, weight_decay, decayed, step, scale, low
        )
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    args = (p, g, m, v, low, p.size, decayed, step, scale, lr, beta1, beta2, *logs)
    launch(
        "adamw_step",
        FLOAT32 if low is None else FLOAT16,
        (-(-p.size // (THREADS * EACH)),),
        (THREADS,),
        (*args, eps, weight_decay),
    )
