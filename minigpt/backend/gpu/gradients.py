"""Gradients into one buffer on a GPU: a launch for many arrays."""

import cupy
import numpy as np

from minigpt.backend.gpu.launch import launch, supported

THREADS = 256
WIDTH = 4096  # elements of a block in gather
ARRAYS = 240  # in one launch of gather, as in gradients.cu
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
        return NotImplemented
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
