"""Linear layer and activation on the CPU: bias and activation in one pass over the product."""

import numpy as np

from minigpt.backend.cpu.activation import activate, multiply_by_slope, takes
from minigpt.backend.cpu.linear import linear_backward, linear_forward
from minigpt.ops.linear import check_bias


def linear_activation_forward(x, w, b=None, *, kind):
    """As the op."""
    if not takes(kind, w.dtype):
        return NotImplemented
    check_bias(w, b)
    h, _ = linear_forward(x, w)
    y, slope = activate(h, kind, b)
    return y, ((x, w, b), (None, kind, slope), None)


def linear_activation_backward(dy, cache):
    """As the op; db is summed up by blocks while dh is in the cache."""
    (x, w, b), (_, _, slope), _ = cache
    if slope is None:
        return NotImplemented
    db = None if b is None else np.zeros(len(b), slope.dtype)
    dh = multiply_by_slope(dy, slope, db)
    dx, grads = linear_backward(dh, (x, w, None))
    return dx, grads if b is None else {**grads, "b": db}
