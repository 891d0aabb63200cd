"""Attention on a GPU by tiles, and heads that are split and merged: see attention.cu.

In 16 bits it runs on tensor cores where it can: see attention_mma.cu.
"""

import bisect
import functools
import os

import cupy
import numpy as np

from minigpt.backend.attention_cache import LseCache
from minigpt.backend.gpu.launch import OPTIONS, empty, launch
from minigpt.ops.dropout import threshold

WIDTHS = (32, 64, 128)  # head sizes that there are kernels for; others are padded with zeros
BLOCK = (128,)
DECODE_MAX_QUERIES = 16
ROWS = {  # queries of a block, or keys where the kernel is over these, by WIDTHS
    "attention_decode": (16, 16, 16),
    "attention_forward": (64, 64, 64),
    "attention_backward_queries": (64, 64, 32),
    "attention_backward_keys": (64, 64, 32),
    "attention_mma_forward": (128, 128, 64),
    "attention_mma_backward_queries": (128, 128, 64),
    "attention_mma_backward_keys": (128, 128, 64),
}
TENSOR_CORES_CAPABILITY = 80  # times 10: the first GPUs with what attention_instructions.cu has
FLOAT32 = np.dtype(np.float32)
PIECE = 16  # bytes that these kernels copy at a time
ARRAYS = 8
PROBLEM = np.dtype(  # the struct Problem of attention.cu
    [("sizes", "i4", 6), ("first_sequence", "i8"), ("key", "u8"), ("steps", "i8", (ARRAYS, 3))]
)
FIRST_SEQUENCE, KEY = (PROBLEM.fields[name][1] // 8 for name in ("first_sequence", "key"))


def locate(*xs):
    """Return where the elements of arrays (B, H, T, D) lie, which may be views of others.

    That is (shape, strides) of each; or None, if the kernels do not take them.
    """
    dtype = xs[0].dtype
    for x in xs:
        if x.dtype != dtype:
            return None
    where = tuple([(x.shape, x.strides) for x in xs])
    return where if dtype.char in OPTIONS and fit(dtype.itemsize, where) else None


@functools.lru_cache(maxsize=1024)
def fit(size, where):
    """Tell whether the kernels take arrays that lie so, whose elements take `size` bytes."""
    return all(
        0 not in shape and shape[3] <= WIDTHS[-1] and strides[3] == size for shape, strides in where
    )


@functools.cache
def has_tensor_cores(device):
    """Tell whether the kernels of attention_mma.cu run there; on a CPU their emulation does."""
    if not cupy.cuda.runtime.is_hip:
        return int(cupy.cuda.Device(device).compute_capability) >= TENSOR_CORES_CAPABILITY
    warp = cupy.cuda.runtime.getDeviceProperties(device)["warpSize"]
    return bool(os.environ.get("CUPY_ON_CPU")) and warp == 32


def kernels(*xs):
    """Return the prefix of the names of the kernels for these arrays, which `locate` has found.

    Those on tensor cores take 16 bits, in vectors that are whole pieces of memory.
    """
    first = xs[0]
    tensor_cores = (
        first.itemsize == 2
        and first.shape[3] * 2 % PIECE == 0
        and has_tensor_cores(first.data.device_id)
        and all(x.data.ptr % PIECE == 0 and not any(s % PIECE for s in x.strides[:3]) for x in xs)
    )
    return "attention_mma" if tensor_cores else "attention"


@functools.lru_cache(maxsize=1024)
def layout(causal, drop, size, where, joined):
    """Return a struct Problem as words (29,) uint64, without the key of the random bits.

    Parameters
    ----------
    size : int
        Bytes of an element.
    where : as from `locate`
        Of q, k and v, and in the backward pass of y and dy.
    joined : bool
        Whether q, k and v were split from one array.
    """
    q, k, strides = where[0][0], where[1][0], [strides for _, strides in where]
    if len(where) == 3:
        strides.append(strides_within(q, size, 1))  # y
    elif joined:
        strides += [strides_within(q, size, 3)] * 3  # dq, dk and dv
    else:
        strides += [strides_within(q, size, 1), *[strides_within(k, size, 2)] * 2]
    steps = [[step // size for step in of_array[:3]] for of_array in strides]
    steps += [(0, 0, 0)] * (ARRAYS - len(steps))
    sizes = q[1], q[2], k[2], q[3], causal, drop
    return np.array([(sizes, 0, 0, steps)], PROBLEM).view(np.uint64)


def problem(causal, dropout, rng, size, where, joined=False):
    """Return the struct Problem of arrays that lie so: see `layout`."""
    drop = 0 if rng is None else threshold(dropout)[0]
    words = layout(causal, drop, size, where, joined)
    if drop:
        words = words.copy()  # by number: fields by their names take ten times as long
        words[KEY], words[FIRST_SEQUENCE] = rng
    return words.view(PROBLEM)


def run(kernel, q, T, args):
    """Launch a kernel for heads of q's size, with blocks for the T queries or keys of each."""
    B, H, _, D = q.shape
    i = bisect.bisect_left(WIDTHS, D)
    launch(f"{kernel}_{WIDTHS[i]}", q.dtype, (B * H, -(-T // ROWS[kernel][i])), BLOCK, args)


def attention_forward(q, k, v, causal=False, key_mask=None, dropout=0.0, rng=None):
    """As the op; keeps lse, in float32, and no weights."""
    where = locate(q, k, v)
    if where is None:
        return NotImplemented
    B, H, T, _ = q.shape
    seen = None if key_mask is None else cupy.ascontiguousarray(key_mask, bool)
    (y,) = split_like(q, 1)
    lse = empty((B, H, T, 1), FLOAT32)
    p = problem(causal, dropout, rng, q.itemsize, where)
    kernel = "attention_decode" if T <= DECODE_MAX_QUERIES else f"{kernels(q, k, v)}_forward"
    run(kernel, q, T, (q, k, v, seen, y, lse, p))
    return y, LseCache(q, k, v, y, lse, causal, key_mask, dropout, rng)


def attention_backward(dy, cache):
    """As the op; from the lse of the override's forward pass."""
    if not isinstance(cache, LseCache):
        return NotImplemented
    q, k, v, y, lse, causal, key_mask, dropout, rng = cache
    where = locate(q, k, v, y, dy)
    if where is None:
        return NotImplemented
    seen = None if key_mask is None else cupy.ascontiguousarray(key_mask, bool)
    joined = are_split(where[:3], q.itemsize, [x.data.ptr for x in (q, k, v)])
    dq, dk, dv = split_like(q, 3) if joined else split_like(q, 1) + split_like(k, 2)
    delta = empty(lse.shape, FLOAT32)
    p = problem(causal, dropout, rng, q.itemsize, where, joined)
    prefix = kernels(q, k, v, y, dy)
    args = (q, k, v, seen, y, dy, lse, delta, dq, p)
    run(f"{prefix}_backward_queries", q, q.shape[2], args)
    args = (q, k, v, seen, dy, lse, delta, dk, dv, p)
    run(f"{prefix}_backward_keys", q, k.shape[2], args)
    return dq, dk, dv


def strides_within(shape, size, n):
    """Return the strides of each of n arrays (B, H, T, D) that are split from one."""
    _, H, T, D = shape
    part = H * D * size
    return T * n * part, D * size, n * part, size


def split_like(x, n):
    """Return n new arrays like x, split from one."""
    B, H, T, D = shape = x.shape
    return views(empty((B, T, n * H * D), x.dtype), shape, n)


def views(whole, shape, n):
    """Return n views (B, H, T, D) that split_heads makes of `whole` (B, T, n C)."""
    dtype, data = whole.dtype, whole.data
    part, strides = shape[1] * shape[3] * dtype.itemsize, strides_within(shape, dtype.itemsize, n)
    return [cupy.ndarray(shape, dtype, data + i * part, strides) for i in range(n)]


def split_heads(x, n, n_head):
    """As the op, without the views of views that CuPy takes long to make."""
    if not (x.size and x._c_contiguous):
        return NotImplemented
    B, T, C = x.shape
    return tuple(views(x, (B, n_head, T, C // (n * n_head)), n))


def are_split(where, size, pointers):
    """Tell whether arrays (B, H, T, D) that lie so are what split_heads makes of one."""
    shape, strides = where[0]
    part, first = shape[1] * shape[3] * size, pointers[0]
    return (
        strides == strides_within(shape, size, len(where))
        and where.count(where[0]) == len(where)
        and pointers == [first + i * part for i in range(len(where))]
    )


def merge_heads(*xs):
    """As the op; a view where the arrays lie as split_heads leaves them."""
    first, dtype = xs[0], xs[0].dtype
    where = [(x.shape, x.strides) for x in xs]
    alike = all(x.dtype == dtype for x in xs)
    if not (alike and are_split(where, dtype.itemsize, [x.data.ptr for x in xs])):
        return NotImplemented
    B, H, T, D = where[0][0]
    return cupy.ndarray((B, T, len(xs) * H * D), dtype, first.data)
