"""Layernorm on a GPU: add_norm where the stream begins."""

from minigpt.backend.gpu.add_norm import fits, normalize, normalize_backward, singles
from minigpt.backend.gpu.dropout import mask_of
from minigpt.backend.gpu.launch import empty
from minigpt.ops.layernorm import EPS, LayerNormCache


def layernorm_forward(x, w, b=None, eps=EPS):
    """As the op."""
    if not fits(x, (w, b)):
        return NotImplemented
    y, mu, rstd = normalize(None, x, w, b, None, eps, mask_of(x.shape, 0, None), None)
    return y, LayerNormCache(x, w, b, mu, rstd)


def layernorm_backward(dy, cache):
    """As the op."""
    x, w, b, mu, rstd = cache
    if not (fits(x, (w, b), dy) and singles(mu, rstd)):
        return NotImplemented
    dx = empty(x.shape, x.dtype)
    mask = mask_of(x.shape, 0, None)
    grads = normalize_backward(None, dy, (x, w, b, None, mu, rstd), mask, dx, None)
    return dx, grads
