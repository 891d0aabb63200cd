"""A linear layer and the activation after it, as at the head of the MLP: y = act(x @ w + b).

Nothing new to derive: both passes are the composition of those of linear and activation. It is an
op of its own because an override adds the bias and applies the activation in one pass over memory.
"""

from minigpt.backend import overridable
from minigpt.ops.activation import activation_backward, activation_forward
from minigpt.ops.linear import linear_backward, linear_forward


@overridable
def linear_activation_forward(x, w, b=None, *, kind):
    """y = act(x @ w + b).

    Parameters
    ----------
    x : (..., C_in) float
    w : (C_in, C_out), dtype of x
    b : (C_out,), dtype of x, optional
    kind : str
        The activation: gelu, gelu_tanh or relu.

    Returns
    -------
    y : (..., C_out), dtype of x
    cache : (linear_cache, activation_cache, late_bias)
        late_bias is None. An override may keep h = x @ w without its bias in activation_cache;
        then late_bias is b, which the backward pass adds to h.

    Raises
    ------
    ValueError
        If b is not (C_out,): other shapes would broadcast silently.
    """
    h, linear_cache = linear_forward(x, w, b)
    y, activation_cache = activation_forward(h, kind)
    return y, (linear_cache, activation_cache, None)


@overridable
def linear_activation_backward(dy, cache):
    """Gradients of x, w and b, from the last op to the first:

        dh = dy * act'(h),  h = x @ w + b
        dx, dw, db = linear_backward(dh)

    Returns
    -------
    dx : (..., C_in)
    grads : {"w": dw (C_in, C_out)} and "b": db (C_out,) if there is a b
    """
    linear_cache, (h, kind, slope), late_bias = cache
    if late_bias is not None:
        h = h + late_bias
    dh = activation_backward(dy, (h, kind, slope))
    return linear_backward(dh, linear_cache)
