"""Gradients into one buffer on a GPU, and their sum of squares: a launch for many arrays."""

import functools

import cupy
import numpy as np

from minigpt.backend.gpu.launch import OPTIONS, empty, launch, supported

THREADS = 256
WIDTH = 4096  # elements of a block
ARRAYS = 240  # in one launch of gather, as in gradients.cu
TABLE = np.dtype([("at", np.uint64, ARRAYS), ("start", np.int64, ARRAYS)])
FLOAT32 = np.dtype(np.float32)


def gather(flat, shards, add=False):
    """As the op; one launch for every ARRAYS arrays."""
    arrays = [x if x._c_contiguous else cupy.ascontiguousarray(x) for x in shards[0]]
    sizes, dtypes = [x.size for x in arrays], {x.dtype for x in arrays}
    if (
        not supported(flat)
        or flat.dtype != FLOAT32
        or (len(shards), sum(sizes)) != (1, flat.size)
        or len(dtypes) != 1
        or arrays[0].dtype.char not in OPTIONS
    ):
        return NotImplemented
    for start, stop, count, table in tables(tuple([x.data.ptr for x in arrays]), tuple(sizes)):
        args = (flat[start:stop], table, count, stop - start, WIDTH, int(add))
        launch("gather", arrays[0].dtype, (-(-(stop - start) // WIDTH),), (THREADS,), args)
    return None


@functools.lru_cache(maxsize=16)
def tables(pointers, sizes):
    """Return (start, stop, count, struct Arrays) of each launch for arrays that lie there, end to
    end in flat. Remembered: the pool gives the gradients of most steps the same memory.
    """
    edges, found = [0, *np.cumsum(sizes).tolist()], []
    for i in range(0, len(sizes), ARRAYS):
        part = pointers[i : i + ARRAYS]
        start, stop = edges[i], edges[i + len(part)]
        if start == stop:
            continue
        table = np.zeros((), TABLE)
        table["at"][: len(part)] = part
        table["start"][: len(part)] = edges[i : i + len(part)]
        table["start"] -= start
        found.append((start, stop, len(part), table))
    return found


def sum_of_squares(g):
    """As the op; a part for every WIDTH elements."""
    if g.dtype != FLOAT32 or not supported(g):
        return NotImplemented
    n = -(-g.size // WIDTH)
    parts = empty(n, FLOAT32)
    launch("sum_of_squares", FLOAT32, (n,), (THREADS,), (g, parts, g.size, WIDTH))
    return parts
