"""Layernorm on the CPU: add_norm where the stream begins."""

from minigpt.backend.cpu.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.add_norm import AddNormCache
from minigpt.ops.layernorm import EPS, LayerNormCache


def layernorm_forward(x, w, b=None, eps=EPS):
    """As the op."""
    (_, y), cache = add_norm_forward(None, x, w, b, eps=eps)
    return y, LayerNormCache(x, w, b, cache.mu, cache.rstd)


def layernorm_backward(dy, cache):
    """As the op."""
    x, w, b, mu, rstd = cache
    cache = AddNormCache(x, w, b, None, mu, rstd, dropout=0.0, rng=None, begins=True)
    _, dx, grads = add_norm_backward(None, dy, cache)
    return dx, grads
