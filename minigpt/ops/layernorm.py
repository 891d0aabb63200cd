"""Layer normalization: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4, with an eps as in GPT-2.

Departure from the paper: the bias may be left out, as in nanoGPT.
"""

from minigpt.backend import overridable

EPS = 1e-5  # GPT-2's


def check_vectors(x, w, b):
    """Raise a ValueError if w or b is not (C,): it would broadcast without a word."""
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
    cache : (x, w, b, mu, rstd)
        x, w and b by reference; mu and rstd are (..., 1).

    Raises
    ------
    ValueError
        If w or b is not (C,): other shapes would broadcast without a word.
    """
    check_vectors(x, w, b)
    mu = x.mean(axis=-1, keepdims=True)  # (..., 1)
    xc = x - mu
    # Two passes: in float32 mean(x^2) - mean(x)^2 can cancel to below zero.
    rstd = ((xc * xc).mean(axis=-1, keepdims=True) + eps) ** -0.5  # (..., 1)
    y = w * (xc * rstd)
    return (y if b is None else y + b), (x, w, b, mu, rstd)


@overridable
def layernorm_backward(dy, cache):
    """Gradients of x, w and b. With dxhat = w * dy, and sums over all axes but the last:

        db = sum(dy)
        dw = sum(dy * xhat)
        dx = rstd * (dxhat - mean(dxhat) - xhat * mean(xhat * dxhat))

    The two means are there because mu and rstd move with x. They remove from dxhat its part
    along (1, ..., 1) and, but for eps, along xhat: shifting or scaling x does not move xhat.

    Returns
    -------
    dx : (..., C)
    grads : {"w": dw} and "b": db if there is a b, each (C,)
    """
    x, w, b, mu, rstd = cache
    C = x.shape[-1]
    xhat = (x - mu) * rstd  # made again, so that the forward keeps one (..., C) array less
    grads = {"w": (dy * xhat).reshape(-1, C).sum(axis=0)}
    if b is not None:
        grads["b"] = dy.reshape(-1, C).sum(axis=0)
    dxhat = w * dy
    dx = dxhat - dxhat.mean(axis=-1, keepdims=True)
    dx -= xhat * (xhat * dxhat).mean(axis=-1, keepdims=True)
    dx *= rstd
    return dx, grads
