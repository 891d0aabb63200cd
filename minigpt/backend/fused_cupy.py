"""Faster namesakes of the ops on a GPU: one kernel where the op has a dozen steps.

Each has the signature, the results (to rounding) and the cache of its op, so that the passes of
the two can be mixed; what the kernels do not take (float64, views that are not contiguous, empty
arrays, very wide rows) goes to `op.reference`. Delete this file and everything still works, only
slower. No float atomics anywhere: the same input gives the same bits.
"""

import math

import cupy
import numpy as np

from minigpt.backend.attention_cupy import attention_backward, attention_forward, merge_heads
from minigpt.backend.kernels_cupy import launch, supported
from minigpt.backend.optimizer_cupy import adamw_step, clip, gather
from minigpt.backend.vocabulary_cupy import cross_entropy_backward, cross_entropy_forward
from minigpt.ops import activation, dropout, embedding, layernorm, residual, rotary, softmax
from minigpt.ops.dropout import threshold
from minigpt.ops.layernorm import EPS

__all__ = [
    "adamw_step",
    "attention_backward",
    "attention_forward",
    "clip",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "gather",
    "merge_heads",
]

WIDEST = 4096  # channels of a row that one block normalizes, four per thread
PARTS = 512  # blocks that share the rows of a sum over rows
COLUMNS = 512  # channels of a block: four per thread
EMBEDDING_THREADS, EMBEDDING_CHANNELS = 512, 512  # as in embedding.cu
FEW = 16  # an id of the vocabulary gets a block of its own where there are FEW tokens for each
KINDS = ("gelu", "gelu_tanh", "relu")  # numbered as in kernels.cu


def threads(n):
    """Return the size of a block for n things to do: a multiple of both warp sizes."""
    return (min(max(-(-n // 64) * 64, 64), 1024),)


def parts_of(x):
    """Return N, C and in how many parts N rows are added up."""
    C = x.shape[-1]
    N = x.size // C
    return N, C, min(N, PARTS)


def mask_of(shape, p, rng):
    """Return what the kernels need to make a dropout mask: (start, key, limit, scale)."""
    if rng is None or p == 0:
        return 0, np.uint64(0), 0, 1.0
    return rng.row * math.prod(shape[1:]), np.uint64(rng.key), *threshold(p)


def column_sums(parts, dtype):
    """Return the sums over the rows of parts (N, C) float32: (C,) of that dtype."""
    N, C = parts.shape
    y = cupy.empty(C, dtype)
    launch("column_sums", y.dtype, (-(-C // 32),), (32, 16), (parts, y, N, C))
    return y


def linear_forward(x, w, b=None):
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear_forward: b is {b.shape}, but w {w.shape} needs {w.shape[1:]}")
    # In two dimensions a transposed operand is a flag of the product, in three it is a copy.
    y = x.reshape(-1, w.shape[0]) @ w
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[1]), (x, w, b)


def linear_backward(dy, cache):
    x, w, b = cache
    dy2 = dy.reshape(-1, w.shape[1])
    grads = {"w": x.reshape(-1, w.shape[0]).T @ dy2}
    if b is not None:
        grads["b"] = bias_gradient(dy2)
    return (dy2 @ w.T).reshape(x.shape), grads


def bias_gradient(dy):
    """Return the sum over the rows of dy (N, C): (C,)."""
    if not supported(dy):
        return dy.sum(axis=0)
    N, C, G = parts_of(dy)
    parts = cupy.empty((G, C), "f")
    launch("column_parts", dy.dtype, (-(-C // COLUMNS), G), (COLUMNS // 4,), (dy, parts, N, C))
    return column_sums(parts, dy.dtype)


def fits(x, w, b, *others):
    """Tell whether the kernel of residual_forward takes x, a gain, a bias, and arrays like x."""
    C = x.shape[-1]
    shapes = {y.shape for y in others if y is not None} | {x.shape}
    biases = {y.shape for y in (w, b) if y is not None}
    return C <= WIDEST and len(shapes) == 1 and biases == {(C,)} and supported(x, w, b, *others)


def normalize(x, h, w, b, eps, mask, stream):
    """Launch residual_forward; `stream` receives x + dropout(h). Return y, mu, rstd."""
    C = h.shape[-1]
    y = cupy.empty(h.shape, h.dtype)
    mu, rstd = (cupy.empty((*h.shape[:-1], 1), h.dtype) for _ in range(2))
    args = (x, h, w, b, stream, y, mu, rstd, C, eps, *mask)
    launch("residual_forward", h.dtype, (h.size // C,), threads(-(-C // 4)), args)
    return y, mu, rstd


def normalize_backward(dx, dy, cache, mask, total, dh):
    """Launch residual_backward, which fills `total` and `dh`. Return the gradients of w and b."""
    x, w, b, mu, rstd = cache
    N, C, G = parts_of(x)
    parts = cupy.empty((G, C if b is None else 2 * C), "f")
    args = (dx, dy, x, w, mu, rstd, total, dh, parts, N, C, parts.shape[1], *mask)
    launch("residual_backward", x.dtype, (G,), threads(-(-C // 4)), args)
    sums = column_sums(parts, x.dtype)
    return {"w": sums} if b is None else {"w": sums[:C], "b": sums[C:]}


def layernorm_forward(x, w, b=None, eps=EPS):
    if not fits(x, w, b):
        return layernorm.layernorm_forward.reference(x, w, b, eps)
    y, mu, rstd = normalize(None, x, w, b, eps, mask_of(x.shape, 0, None), None)
    return y, (x, w, b, mu, rstd)


def layernorm_backward(dy, cache):
    x, w, b, mu, rstd = cache
    if not (fits(x, w, b, dy) and supported(x, mu, rstd)):
        return layernorm.layernorm_backward.reference(dy, cache)
    dx = cupy.empty(x.shape, x.dtype)
    grads = normalize_backward(None, dy, cache, mask_of(x.shape, 0, None), dx, None)
    return dx, grads


def residual_forward(x, h, w, b=None, dropout=0.0, rng=None, eps=EPS):
    if not fits(h, w, b, x):
        return residual.residual_forward.reference(x, h, w, b, dropout, rng, eps)
    if dropout == 0:
        rng = None
    same = x is None and rng is None  # the stream is h itself
    stream = None if same else cupy.empty(h.shape, h.dtype)
    y, mu, rstd = normalize(x, h, w, b, eps, mask_of(h.shape, dropout, rng), stream)
    stream = h if same else stream
    return (stream, y), (stream, w, b, mu, rstd, dropout, rng, x is None)


def residual_backward(dx, dy, cache):
    x, w, b, mu, rstd, dropout, rng, begins = cache
    if not (fits(x, w, b, dx, dy) and supported(x, mu, rstd)):
        return residual.residual_backward.reference(dx, dy, cache)
    total = None if begins and rng is not None else cupy.empty(x.shape, x.dtype)
    dh = None if rng is None else cupy.empty(x.shape, x.dtype)
    mask = mask_of(x.shape, dropout, rng)
    grads = normalize_backward(dx, dy, (x, w, b, mu, rstd), mask, total, dh)
    return None if begins else total, total if dh is None else dh, grads


def activation_forward(x, kind, b=None):
    activation.check_bias(x, b)
    if not supported(x, b):
        return activation.activation_forward.reference(x, kind, b)
    y = cupy.empty(x.shape, x.dtype)
    N, C, G = parts_of(x)
    args = (x, b, y, N, C, KINDS.index(kind))
    launch("activation_forward", x.dtype, (-(-C // COLUMNS), G), (COLUMNS // 4,), args)
    return y, (x, b, kind, None)


def activation_backward(dy, cache):
    x, b, kind, slope = cache
    if slope is not None or dy.shape != x.shape or not supported(dy, x, b):
        return activation.activation_backward.reference(dy, cache)
    dx = cupy.empty(x.shape, x.dtype)
    N, C, G = parts_of(x)
    parts = None if b is None else cupy.empty((G, C), "f")
    args = (dy, x, b, dx, parts, N, C, KINDS.index(kind))
    launch("activation_backward", x.dtype, (-(-C // COLUMNS), G), (COLUMNS // 4,), args)
    return dx, {} if b is None else {"b": column_sums(parts, x.dtype)}


def softmax_forward(x):
    if not supported(x):
        return softmax.softmax_forward.reference(x)
    y, C = cupy.empty(x.shape, x.dtype), x.shape[-1]
    launch("softmax_forward", x.dtype, (x.size // C,), threads(C), (x, y, C))
    return y, (y,)


def softmax_backward(dy, cache):
    (y,) = cache
    if dy.shape != y.shape or not supported(dy, y):
        return softmax.softmax_backward.reference(dy, cache)
    dx, C = cupy.empty(y.shape, y.dtype), y.shape[-1]
    launch("softmax_backward", y.dtype, (y.size // C,), threads(C), (dy, y, dx, C))
    return dx


def turned(x, n_head, cos, sin, sign):
    """Launch rotary, by the angles or, with the sign -1, back; return y."""
    C, y = x.shape[2] // 3, cupy.empty(x.shape, x.dtype)
    block = threads(-(-3 * C // 4))
    grid = x.size // (3 * C), -(-3 * C // (4 * block[0]))
    launch("rotary", x.dtype, grid, block, (x, cos, sin, y, x.shape[1], C, C // n_head, sign))
    return y


def rotary_forward(qkv, n_head, start=0):
    if not supported(qkv):
        return rotary.rotary_forward.reference(qkv, n_head, start)
    cos, sin = rotary.angles(qkv, start, qkv.shape[1], qkv.shape[2] // (3 * n_head))
    return turned(qkv, n_head, cos, sin, 1.0), (n_head, cos, sin)


def rotary_backward(dy, cache):
    n_head, cos, sin = cache
    if not supported(dy, cos, sin):
        return rotary.rotary_backward.reference(dy, cache)
    return turned(dy, n_head, cos, sin, -1.0)


def dropout_forward(x, p, rng):
    if rng is None or p == 0 or not supported(x):
        return dropout.dropout_forward.reference(x, p, rng)
    y = cupy.empty(x.shape, x.dtype)
    args = (x, y, x.size, *mask_of(x.shape, p, rng))
    launch("dropout_forward", x.dtype, (-(-x.size // 1024),), (256,), args)
    return y, (p, rng)


def embedding_forward(ids, wte, wpe=None, start=0):
    T, C = ids.shape[1], wte.shape[1]
    odd = wpe is not None and (start + T > len(wpe) or wpe.shape[1] != C)
    if odd or ids.dtype != np.int32 or not ids.size or not supported(wte, wpe):
        return embedding.embedding_forward.reference(ids, wte, wpe, start)
    x = cupy.empty((*ids.shape, C), wte.dtype)
    args = (cupy.ascontiguousarray(ids), wte, wpe, x, T, C, start)
    launch("embedding_forward", x.dtype, (ids.size,), threads(-(-C // 4)), args)
    return x, (ids, start, wte.shape, None if wpe is None else wpe.shape)


def embedding_backward(dy, cache, dwte=None):
    ids, start, (V, C), wpe_shape = cache
    if ids.dtype != np.int32 or not supported(dy, dwte):
        return embedding.embedding_backward.reference(dy, cache, dwte)
    if dwte is None:
        dwte = cupy.zeros((V, C), dy.dtype)
    dwpe = None if wpe_shape is None else cupy.empty(wpe_shape, dy.dtype)
    by_id = ids.size >= FEW * V
    owners = V if by_id else ids.size
    args = (dy, cupy.ascontiguousarray(ids), dwte, dwpe, ids.size, ids.shape[1], C)
    grid = owners + (0 if dwpe is None else len(dwpe)), -(-C // EMBEDDING_CHANNELS)
    args += owners, int(by_id), start
    launch("embedding_backward", dy.dtype, grid, (EMBEDDING_THREADS,), args)
    return {"wte": dwte} if dwpe is None else {"wte": dwte, "wpe": dwpe}
