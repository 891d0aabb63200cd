"""Add & Norm: the residual connection and the layernorm after it.

The name is from Vaswani et al. 2017, arXiv:1706.03762, figure 1, where the normalized sum is itself
the stream (post-norm). Here the sum goes on as it is, and the next layer reads its layernorm.

A pre-norm block (GPT-2) is, in nanoGPT's two lines,

    x = x + attn(ln_1(x))
    x = x + mlp(ln_2(x))

The stream x runs past every layer, and a layer adds its output to it: He et al. 2015,
arXiv:1512.03385, eq. 1. The layer reads the stream through a layernorm: Xiong et al. 2020,
arXiv:2002.04745, figure 1b. Each "+" is followed by the layernorm of the next layer, over the same
array, so that the two lines can be cut after each layer instead of after each "+". With h the
pending output of the last layer, not yet added to x:

    x, y = add_norm(x, h, ln_1);  h = attn(y)
    x, y = add_norm(x, h, ln_2);  h = mlp(y)

and add_norm(x, h, ln_f) ends the model. Dropout, sum and layernorm are one op since all three pass
over the same array. So does the bias of the linear layer that h comes from, which may be added here
instead of there.
"""

from typing import Any, NamedTuple

from minigpt.backend import overridable
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.layernorm import EPS, LayerNormCache, layernorm_backward, layernorm_forward


class AddNormCache(NamedTuple):
    """What add_norm's backward pass needs.

    Attributes
    ----------
    stream : (B, ..., C)
        x' = x + dropout(h + h_b), of which y is the layernorm.
    w, b : (C,)
        Gain and bias of the layernorm; b may be None.
    h_b : (C,) or None
        The bias that was added to h.
    mu, rstd : (B, ..., 1)
        Mean, and 1 / standard deviation, of each vector of the stream.
    dropout : float
        The probability with which an element of h was dropped.
    rng : Rng or None
        None is no dropout.
    begins : bool
        Whether the stream began here: there was no x.
    """

    stream: Any
    w: Any
    b: Any
    h_b: Any
    mu: Any
    rstd: Any
    dropout: float
    rng: Any
    begins: bool


def check_pending(h, h_b):
    """Raise a ValueError if h_b is neither None nor (C,): it would broadcast silently."""
    if h_b is not None and h_b.shape != h.shape[-1:]:
        raise ValueError(f"add_norm: h_b is {h_b.shape}, but h {h.shape} needs {h.shape[-1:]}")


@overridable
def add_norm_forward(x, h, w, b=None, h_b=None, dropout=0.0, rng=None, eps=EPS):
    """Add a layer's output h to the stream x; normalize the sum for the next layer.

        x' = x + dropout(h + h_b)
        y  = layernorm(x'; w, b)

    Parameters
    ----------
    x : (B, ..., C) float or None
        The stream; None where it begins: x' = dropout(h + h_b), with h the embedding.
    h : (B, ..., C), dtype of x
        The pending output of the last layer.
    w, b : (C,), dtype of x
        Gain and bias of the layernorm; b may be None.
    h_b : (C,), dtype of x, optional
        The bias of the linear layer whose product h is, where that has not added it.
    dropout : float
        The probability with which an element of h is dropped.
    rng : Rng, optional
        None is no dropout.
    eps : float
        As in layernorm_forward.

    Returns
    -------
    (x', y) : both as h
    cache : AddNormCache

    Raises
    ------
    ValueError
        If w, b or h_b is not (C,): other shapes would broadcast silently.
    """
    check_pending(h, h_b)
    h = h if h_b is None else h + h_b
    h, (dropout, rng) = dropout_forward(h, dropout, rng)
    stream = h if x is None else x + h
    y, norm = layernorm_forward(stream, w, b, eps)
    return (stream, y), AddNormCache(stream, w, b, h_b, norm.mu, norm.rstd, dropout, rng, x is None)


@overridable
def add_norm_backward(dx, dy, cache):
    """Gradients of x, h, w, b and h_b. The stream branches after the sum, into y and past it:

        dx' = dx + layernorm_backward(dy)

    and a sum passes its gradient on to both of its terms, x and dropout(h). So dL/dx contains what
    came back along the stream unchanged: a path on which gradients do not shrink, the lecture's
    "gradient superhighway". As in a linear layer, h_b was added to every row i of h, hence

        dh_b_j = sum_i dh_ij

    Parameters
    ----------
    dx : (B, ..., C) or None
        What comes back along the stream, dL/dx' past y; None is 0: after the last layernorm the
        stream ends.
    dy : (B, ..., C)

    Returns
    -------
    dx : (B, ..., C), or None if x was
    dh : (B, ..., C); without dropout it is the same array as dx
    grads : {"w": dw}, "b": db if there is a b, and "h_b": dh_b if there is an h_b; each (C,)
    """
    stream, w, b, h_b, mu, rstd, dropout, rng, begins = cache
    dstream, grads = layernorm_backward(dy, LayerNormCache(stream, w, b, mu, rstd))
    if dx is not None:
        dstream = dx + dstream
    dh = dropout_backward(dstream, (dropout, rng))
    if h_b is not None:
        grads["h_b"] = dh.reshape(-1, h_b.size).sum(axis=0)
    return None if begins else dstream, dh, grads
