"""Activations on a GPU: the slope is recomputed in the backward pass."""

import cupy

from minigpt.backend.gpu.launch import launch, supported
from minigpt.backend.gpu.linear import COLUMNS, column_sums, parts_of
from minigpt.ops import activation

KINDS = ("gelu", "gelu_tanh", "relu")  # numbered as in activation.cu


def activation_forward(x, kind, b=None):
    activation.check_bias(x, b)
    if not supported(x, b):
        return NotImplemented
    y = cupy.empty(x.shape, x.dtype)
    N, C, G = parts_of(x)
    args = (x, b, y, N, C, KINDS.index(kind))
    launch("activation_forward", x.dtype, (-(-C // COLUMNS), G), (COLUMNS // 4,), args)
    return y, (x, b, kind, None)


def activation_backward(dy, cache):
    x, b, kind, slope = cache
    if slope is not None or dy.shape != x.shape or not supported(dy, x, b):
        return NotImplemented
    dx = cupy.empty(x.shape, x.dtype)
    N, C, G = parts_of(x)
    parts = None if b is None else cupy.empty((G, C), "f")
    args = (dy, x, b, dx, parts, N, C, KINDS.index(kind))
    launch("activation_backward", x.dtype, (-(-C // COLUMNS), G), (COLUMNS // 4,), args)
    return dx, {} if b is None else {"b": column_sums(parts, x.dtype)}
