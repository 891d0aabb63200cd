"""The windows of a batch on a GPU, in one launch."""

import numpy as np

from minigpt.backend.gpu.launch import empty, launch

FLOAT32 = np.dtype(np.float32)  # any type of the kernels: there is no T here
IDS = tuple(map(np.dtype, ("u1", "u2", "i4")))  # what data/token_files.py writes


def windows(ids, starts, block_size):
    """As the op."""
    size = len(starts) * block_size
    contiguous = ids.flags.c_contiguous and starts.flags.c_contiguous
    if not size or not contiguous or ids.dtype not in IDS or starts.dtype != np.int64:
        return NotImplemented
    x, y = (empty((len(starts), block_size), np.int32) for _ in range(2))
    args = (ids, starts, x, y, size, block_size, ids.itemsize)
    launch("windows", FLOAT32, (-(-size // 256),), (256,), args)
    return x, y
