"""Layernorm on the CPU: an add_norm whose stream begins."""

from minigpt.backend.cpu.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.layernorm import EPS


def layernorm_forward(x, w, b=None, eps=EPS):
    """As the op: a stream that begins."""
    (_, y), cache = add_norm_forward(None, x, w, b, eps=eps)
    return y, cache[:5]


def layernorm_backward(dy, cache):
    """As the op."""
    _, dx, grads = add_norm_backward(None, dy, (*cache, 0.0, None, True))
    return dx, grads
