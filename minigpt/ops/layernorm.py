"""Layer normalization: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 3 and 4.

Departures from the paper: an eps in the root, as in GPT-2, and the bias may be left out, as in
nanoGPT.
"""

from typing import Any, NamedTuple

from minigpt.backend import overridable

EPS = 1e-5  # GPT-2's


class LayerNormCache(NamedTuple):
    """What layernorm's backward pass needs.

    Attributes
    ----------
    x : (..., C)
    w : (C,)
    b : (C,) or None
    mu : (..., 1)
        The mean of each vector of x; float32 where x has 16 bits.
    rstd : (..., 1)
        1 / its standard deviation.
    """

    x: Any
    w: Any
    b: Any
    mu: Any
    rstd: Any


def check_vectors(x, w, b):
    """Raise a ValueError if w or b is not (C,): it would broadcast silently."""
    C = x.shape[-1]
    if w.shape != (C,) or (b is not None and b.shape != (C,)):
        raise ValueError(
            f"layernorm: w is {w.shape} and b is {None if b is None else b.shape}, "
            f"but the last axis of x {x.shape} needs ({C},)"
        )


@overridable
def layernorm_forward(x, w, b=None, eps=EPS):
    """Bring every vector to mean 0 and variance 1, then apply a gain and a bias.

        mu   = mean(x)                                 means are over the last axis
        rstd = 1 / sqrt(mean((x - mu)^2) + eps)
        y    = w * xhat + b,  where xhat = (x - mu) * rstd

    Parameters
    ----------
    x : (..., C) float
    w, b : (C,), dtype of x
        Gain and bias, 1 and 0 at initialization; b may be None.
    eps : float
        Added to the variance, hence in units of x squared.

    Returns
    -------
    y : (..., C), dtype of x
    cache : LayerNormCache

    Raises
    ------
    ValueError
        If w or b is not (C,): other shapes would broadcast silently.
    """
    check_vectors(x, w, b)
    mu = x.mean(axis=-1, keepdims=True)  # (..., 1)
    xc = x - mu
    # Two passes: in float32 mean(x^2) - mean(x)^2 can cancel to below zero.
    rstd = ((xc * xc).mean(axis=-1, keepdims=True) + eps) ** -0.5  # (..., 1)
    y = w * (xc * rstd)
    return (y if b is None else y + b), LayerNormCache(x, w, b, mu, rstd)


@overridable
def layernorm_backward(dy, cache):
    """Gradients of x, w and b. With dxhat = w * dy, and sums over all axes but the last:

        db = sum(dy)
        dw = sum(dy * xhat)
        dx = rstd * (dxhat - mean(dxhat) - xhat * mean(xhat * dxhat))

    For dx, within one vector, mu and rstd move with every x_j:

        partial mu     / partial x_j = 1 / C
        partial rstd   / partial x_j = -rstd^2 * xhat_j / C
        partial xhat_i / partial x_j = rstd * (1[i = j] - 1 / C - xhat_i * xhat_j / C)

    The last is symmetric in i and j; the sum over i of dxhat_i times it is the line dx above.
    The two means remove from dxhat its part along (1, ..., 1) and, but for eps, along xhat:
    shifting or scaling x does not move xhat.

    Returns
    -------
    dx : (..., C)
    grads : {"w": dw} and "b": db if there is a b, each (C,)
    """
    x, w, b, mu, rstd = cache
    C = x.shape[-1]
    xhat = (x - mu) * rstd  # recomputed: the cache then holds one (..., C) array less
    grads = {"w": (dy * xhat).reshape(-1, C).sum(axis=0)}
    if b is not None:
        grads["b"] = dy.reshape(-1, C).sum(axis=0)
    dxhat = w * dy
    dx = dxhat - dxhat.mean(axis=-1, keepdims=True)
    dx -= xhat * (xhat * dxhat).mean(axis=-1, keepdims=True)
    dx *= rstd
    return dx, grads
