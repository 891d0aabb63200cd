"""Linear layer and activation on a GPU: bias and activation in one pass over the product."""

from minigpt.backend.gpu.activation import KINDS, activate, multiply_by_slope
from minigpt.backend.gpu.launch import supported
from minigpt.backend.gpu.linear import linear_backward, linear_forward
from minigpt.ops.linear import check_bias


def linear_activation_forward(x, w, b=None, *, kind):
    """As the op; the product is kept as it is, without its bias."""
    check_bias(w, b)
    if kind not in KINDS or x.dtype != w.dtype or not x.size or not supported(w, b):
        return NotImplemented
    h, _ = linear_forward(x, w)
    return activate(h, kind, b), ((x, w, b), (h, kind, None), b)


def linear_activation_backward(dy, cache):
    """As the op."""
    (x, w, b), (h, kind, slope), late_bias = cache
    if kind not in KINDS or slope is not None or (b is None) != (late_bias is None):
        return NotImplemented
    if dy.shape != h.shape or not supported(dy, h, b):
        return NotImplemented
    dh, db = multiply_by_slope(dy, h, kind, b)
    dx, grads = linear_backward(dh, (x, w, None))
    return dx, grads if b is None else {**grads, "b": db}
