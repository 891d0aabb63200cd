"""Softmax on a GPU: one block of threads per row."""

from minigpt.backend.gpu.launch import empty, launch, supported, threads


def softmax_forward(x):
    """As the op."""
    if not supported(x):
        return NotImplemented
    y, C = empty(x.shape, x.dtype), x.shape[-1]
    launch("softmax_forward", x.dtype, (x.size // C,), threads(C), (x, y, C))
    return y, (y,)


def softmax_backward(dy, cache):
    """As the op."""
    (y,) = cache
    if dy.shape != y.shape or not supported(dy, y):
        return NotImplemented
    dx, C = empty(y.shape, y.dtype), y.shape[-1]
    launch("softmax_backward", y.dtype, (y.size // C,), threads(C), (dy, y, dx, C))
    return dx
