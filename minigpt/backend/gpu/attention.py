"""Attention on a GPU by tiles, and heads that merge without a copy: see attention.cu.

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
PIECE = 16  # bytes that these kernels copy at a time
ARRAYS = 8
PROBLEM = np.dtype(  # the struct Problem of attention.cu
    [("sizes", "i4", 6), ("first_sequence", "i8"), ("key", "u8"), ("steps", "i8", (ARRAYS, 3))]
)


def supported(*xs):
    """Tell whether the kernels take these arrays (B, H, T, D), which may be views of others."""
    dtype = xs[0].dtype
    if dtype.char not in OPTIONS:
        return False
    for x in xs:
        fits = x.dtype == dtype and x.size and x.shape[3] <= WIDTHS[-1]
        if not fits or x.strides[3] != dtype.itemsize:
            return False
    return True


@functools.cache
def has_tensor_cores(device):
    """Tell whether the kernels of attention_mma.cu run there; on a CPU their emulation does."""
    if not cupy.cuda.runtime.is_hip:
        return int(cupy.cuda.Device(device).compute_capability) >= TENSOR_CORES_CAPABILITY
    warp = cupy.cuda.runtime.getDeviceProperties(device)["warpSize"]
    return bool(os.environ.get("CUPY_ON_CPU")) and warp == 32


def kernels(*xs):
    """Return the prefix of the names of the kernels for these arrays, which are `supported`.

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
def layout(causal, drop, size, *arrays):
    """Return a struct Problem, without the key of the random bits.

    The arrays, whose elements take `size` bytes, are given as (shape, strides): q, k, v, y and,
    in the backward pass, dy, dq, dk and dv.
    """
    (_, H, Tq, D), (_, _, Tk, _) = arrays[0][0], arrays[1][0]
    steps = [[step // size for step in strides[:3]] for _, strides in arrays]
    steps += [(0, 0, 0)] * (ARRAYS - len(arrays))
    return np.array(((H, Tq, Tk, D, causal, drop), 0, 0, steps), PROBLEM)


def problem(causal, dropout, rng, *arrays):
    """Return the struct Problem of these arrays."""
    drop = 0 if rng is None else threshold(dropout)[0]
    p = layout(causal, drop, arrays[0].itemsize, *[(x.shape, x.strides) for x in arrays])
    if drop:
        p = p.copy()
        p["key"], p["first_sequence"] = rng
    return p


def run(kernel, q, T, args):
    """Launch a kernel for heads of q's size, with blocks for the T queries or keys of each."""
    B, H, _, D = q.shape
    i = bisect.bisect_left(WIDTHS, D)
    launch(f"{kernel}_{WIDTHS[i]}", q.dtype, (B * H, -(-T // ROWS[kernel][i])), BLOCK, args)


def attention_forward(q, k, v, causal=False, key_mask=None, dropout=0.0, rng=None):
    """As the op; keeps lse, in float32, and no weights."""
    if not supported(q, k, v):
        return NotImplemented
    B, H, T, _ = q.shape
    seen = None if key_mask is None else cupy.ascontiguousarray(key_mask, bool)
    (y,) = split_like(q, 1)
    lse = empty((B, H, T, 1), np.float32)
    p = problem(causal, dropout, rng, q, k, v, y)
    kernel = "attention_decode" if T <= DECODE_MAX_QUERIES else f"{kernels(q, k, v)}_forward"
    run(kernel, q, T, (q, k, v, seen, y, lse, p))
    return y, LseCache(q, k, v, y, lse, causal, key_mask, dropout, rng)


def attention_backward(dy, cache):
    """As the op; from the lse of the override's forward pass."""
    if not isinstance(cache, LseCache):
        return NotImplemented
    q, k, v, y, lse, causal, key_mask, dropout, rng = cache
    if not supported(q, k, v, y, dy):
        return NotImplemented
    seen = None if key_mask is None else cupy.ascontiguousarray(key_mask, bool)
    dq, dk, dv = gradients_like(q, k, v)
    delta = empty(lse.shape, lse.dtype)
    p = problem(causal, dropout, rng, q, k, v, y, dy, dq, dk, dv)
    prefix = kernels(q, k, v, y, dy)
    args = (q, k, v, seen, y, dy, lse, delta, dq, p)
    run(f"{prefix}_backward_queries", q, q.shape[2], args)
    args = (q, k, v, seen, dy, lse, delta, dk, dv, p)
    run(f"{prefix}_backward_keys", q, k.shape[2], args)
    return dq, dk, dv


def gradients_like(q, k, v):
    """Return arrays for dq, dk and dv that merge_heads can join as q, k and v were split."""
    if join((q, k, v)) is not None:
        return split_like(q, 3)
    return split_like(q, 1) + split_like(k, 2)


def strides_within(x, n):
    """Return the strides of each of n arrays like x (B, H, T, D) that are split from one."""
    _, H, T, D = x.shape
    part = H * D * x.itemsize
    return T * n * part, D * x.itemsize, n * part, x.itemsize


def split_like(x, n):
    """Return n new arrays like x, split from one (B, T, n C) as split_heads does it, but faster."""
    B, H, T, D = x.shape
    whole, strides = empty((B, T, n, H, D), x.dtype).data, strides_within(x, n)
    return [
        cupy.ndarray(x.shape, x.dtype, whole + i * H * D * x.itemsize, strides) for i in range(n)
    ]


def join(xs):
    """Return the array (B, T, n C) that split_heads made xs of, or None if there is none."""
    first, n = xs[0], len(xs)
    B, H, T, D = first.shape
    shape, dtype, strides = first.shape, first.dtype, strides_within(first, n)
    for i, x in enumerate(xs):
        place = first.data.ptr + i * H * D * first.itemsize
        if (x.shape, x.dtype, x.strides, x.data.ptr) != (shape, dtype, strides, place):
            return None
    return cupy.ndarray((B, T, n * H * D), dtype, first.data)


def merge_heads(*xs):
    """As the op; a view where the arrays lie as split_heads leaves them."""
    whole = join(xs)
    return NotImplemented if whole is None else whole
