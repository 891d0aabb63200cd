"""The residual connection and the layernorm behind it: what stands at the head of every sublayer.

He et al. 2015, arXiv:1512.03385, eq. 1: a layer adds what it has found to a stream that runs past
it. Pre-norm: the next layer reads the stream through a layernorm (Xiong et al. 2020,
arXiv:2002.04745, figure 1b). One op, since dropout, sum and layernorm pass over the same array.
"""

from minigpt.backend import overridable
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.layernorm import EPS, layernorm_backward, layernorm_forward


@overridable
def add_norm_forward(x, h, w, b=None, dropout=0.0, rng=None, eps=EPS):
    """Add what a layer has found to the stream, and normalize the sum for the next layer.

        x' = x + dropout(h)
        y  = layernorm(x'; w, b)

    Parameters
    ----------
    x : (B, ..., C) float or None
        The stream; None where it begins: x' = dropout(h), with h the embedding.
    h : (B, ..., C), dtype of x
    w, b : (C,), dtype of x
        Gain and bias of the layernorm; b may be None.
    dropout : float
        The share of h that is dropped.
    rng : Rng, optional
        None is no dropout.
    eps : float
        As in layernorm_forward.

    Returns
    -------
    (x', y) : both as h
    cache : (x', w, b, mu, rstd, dropout, rng, x is None)
        x', w and b by reference; mu and rstd are (B, ..., 1).
    """
    h, (dropout, rng) = dropout_forward(h, dropout, rng)
    stream = h if x is None else x + h
    y, norm_cache = layernorm_forward(stream, w, b, eps)
    return (stream, y), (*norm_cache, dropout, rng, x is None)


@overridable
def add_norm_backward(dx, dy, cache):
    """Gradients of x, h, w and b. The stream divides behind the sum, into y and past it:

        dx' = dx + layernorm_backward(dy)

    and a sum passes its gradient to both of its terms, x and dropout(h).

    Parameters
    ----------
    dx : (B, ..., C) or None
        What comes back along the stream; None is 0: behind the last layernorm it ends.
    dy : (B, ..., C)

    Returns
    -------
    dx : (B, ..., C), or None if x was
    dh : (B, ..., C); without dropout it is the same array as dx
    grads : {"w": dw} and "b": db if there is a b, each (C,)
    """
    *norm_cache, dropout, rng, begins = cache
    dstream, grads = layernorm_backward(dy, norm_cache)
    if dx is not None:
        dstream = dx + dstream
    dh = dropout_backward(dstream, (dropout, rng))
    return None if begins else dstream, dh, grads
