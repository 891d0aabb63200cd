"""Softmax over the last axis, shifted by the maximum so that exp cannot overflow."""

import math

from minigpt.backend import array_module, overridable


@overridable
def softmax_forward(x):
    """y_i = exp(x_i) / sum_j exp(x_j).

    Subtracting max(x) from every x_i changes nothing in the quotient. An x_i of -inf is a masked
    position: its y_i is exactly 0. A row of nothing but -inf gives zeros.

    Parameters
    ----------
    x : (..., N) float

    Returns
    -------
    y : (..., N), dtype of x
    cache : (y,)
    """
    xp = array_module(x)
    if x.shape[-1] == 0:
        return x.copy(), (x,)
    top = x.max(axis=-1, keepdims=True)
    e = xp.exp(x - xp.where(top == -math.inf, 0.0, top))
    total = e.sum(axis=-1, keepdims=True)
    y = e / xp.where(total == 0, 1.0, total)
    return y, (y,)


@overridable
def softmax_backward(dy, cache):
    """dx_i = y_i * (dy_i - sum_j y_j dy_j).

    With e_i = exp(x_i) and S = sum_j e_j, so that y_i = e_i / S, the quotient rule gives

        partial y_i / partial x_j = (e_i 1[i = j] S - e_i e_j) / S^2 = y_i (1[i = j] - y_j)

    This is the symmetric matrix diag(y) - y y^T, and dx = (diag(y) - y y^T) dy. A constant dy
    gives dx = 0: adding one number to every x_j does not move y.

    Returns
    -------
    dx : (..., N)
    """
    (y,) = cache
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))
