"""A frozen linear layer with a low-rank adapter beside it: Hu et al. 2021, arXiv:2106.09685.

Fine-tuning changes w by a matrix of low rank, which is all that is learnt: w + s a b, with a
(C_in, r), b (r, C_out). rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) is another scale s.
"""

from typing import Any, NamedTuple

from minigpt.backend import overridable
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.linear import check_bias


class LoraCache(NamedTuple):
    """What the backward pass needs; without an adapter, that is w alone.

    Attributes
    ----------
    dropped : (..., C_in) or None
        d(x), from which u was made.
    u : (..., r) or None
    w, lora_a, lora_b, scale : as lora_forward was given them
    dropout : cache of dropout_forward, or None
    """

    dropped: Any
    u: Any
    w: Any
    lora_a: Any
    lora_b: Any
    scale: float
    dropout: Any


def check_factors(w, lora_a, lora_b):
    """Raise a ValueError if lora_a and lora_b are not two factors of a matrix like w."""
    if (lora_a is None) != (lora_b is None):
        raise ValueError("lora: lora_a and lora_b come together, or not at all")
    if lora_a is not None and (lora_a.shape[0], lora_b.shape[1]) != w.shape:
        raise ValueError(f"lora: lora_a is {lora_a.shape}, lora_b {lora_b.shape}, but w {w.shape}")


@overridable
def lora_forward(x, w, b=None, lora_a=None, lora_b=None, scale=1.0, dropout=0.0, rng=None):
    """y = x @ w + b + s u @ lora_b, with u = d(x) @ lora_a and d for dropout.

    Parameters
    ----------
    x : (..., C_in) float
    w : (C_in, C_out), dtype of x
    b : (C_out,), dtype of x, optional
        Like w, it is frozen.
    lora_a, lora_b : (C_in, r), (r, C_out), dtype of x, optional
        The adapter; without it this is a linear layer that is not trained.
    scale : float
        s: alpha / r, in rsLoRA alpha / sqrt(r).
    dropout : float
        Of the adapter's input alone.
    rng : Rng, optional
        None is no dropout.

    Returns
    -------
    y : (..., C_out), dtype of x
    cache : LoraCache

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    check_bias(w, b)
    check_factors(w, lora_a, lora_b)
    y = x @ w if b is None else x @ w + b
    if lora_a is None:
        return y, LoraCache(None, None, w, None, None, scale, None)
    dropped, dropout_cache = dropout_forward(x, dropout, rng)
    u = dropped @ lora_a
    y = y + (scale * u) @ lora_b
    return y, LoraCache(dropped, u, w, lora_a, lora_b, scale, dropout_cache)


@overridable
def lora_backward(dy, cache):
    """Gradients of x and of the adapter; w and b are constants and have none.

    x reaches y on two ways, through w and through u, and gets the sum of what comes back on both.
    Each product is a linear layer, so that dx = dy w^T and dw = x^T dy there give here

        du = s dy lora_b^T
        dlora_b = s u^T dy
        dlora_a = d(x)^T du
        dx = dy w^T + d'(du lora_a^T)          d' multiplies by the mask of the forward pass

    What freezing saves is dw = x^T dy, a third of the work of a linear layer. While lora_b is 0,
    as it is before the first step, dlora_a is 0 as well.

    Returns
    -------
    dx : (..., C_in)
    grads : {"lora_a": (C_in, r), "lora_b": (r, C_out)}, or {} without an adapter
    """
    dropped, u, w, lora_a, lora_b, scale, dropout_cache = cache
    dx = dy @ w.T
    if lora_a is None:
        return dx, {}
    du = scale * (dy @ lora_b.T)
    du2, dy2 = du.reshape(-1, lora_a.shape[1]), dy.reshape(-1, w.shape[1])
    grads = {
        "lora_a": dropped.reshape(-1, w.shape[0]).T @ du2,
        "lora_b": scale * (u.reshape(du2.shape).T @ dy2),
    }
    return dx + dropout_backward(du @ lora_a.T, dropout_cache), grads
