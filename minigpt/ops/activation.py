"""Activations: GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415), exact and by tanh, and ReLU.

All are elementwise. Their slope dy/dx shares its costly part with y, so the forward pass makes both
and keeps the slope: the backward pass is one product.
"""

import math

from minigpt.backend import array_module, overridable

# erfc(z) = exp(-z^2) * Q(u): Chebyshev interpolation of Q on 0 <= z <= 6, where
# t = 1 / (1 + 0.4 z) and u maps t to [-1, 1]; absolute error 8e-16. Powers of u, rising.
T_SCALE, Z_MAX = 0.4, 6.0
ERFC = (
    0.3454020476563214,
    0.3927707732021464,
    0.19105733703837385,
    0.06116963384645921,
    0.010362100311530545,
    -0.00032191299443195637,
    -0.0004558338639986162,
    -6.3711707022386514e-06,
    2.4004125778816527e-05,
    -5.738110561279664e-07,
    -1.4452230177383011e-06,
    1.9076184016502206e-07,
    7.543566301580714e-08,
    -2.5898301398660988e-08,
    -1.386727350653115e-09,
    2.271406552498338e-09,
    -1.9365502493564105e-10,
    -1.0762973566319294e-10,
)


def gelu(x):
    """y = x * Phi(x), with Phi the normal distribution function; dy/dx = Phi(x) + x * phi(x).

    Phi(x) = 1 - erfc(x / sqrt 2) / 2, and phi(x) = exp(-x^2 / 2) / sqrt(2 pi) shares its exp.
    """
    xp = array_module(x)
    e = xp.exp(-0.5 * x * x)
    t = 1 / (1 + T_SCALE * xp.minimum(abs(x) * math.sqrt(0.5), Z_MAX))
    low = 1 / (1 + T_SCALE * Z_MAX)
    u = (2 * t - (1 + low)) / (1 - low)
    q = ERFC[-1]
    for c in ERFC[-2::-1]:
        q = q * u + c
    tail = 0.5 * e * q  # 1 - Phi(|x|)
    phi = xp.where(x < 0, tail, 1 - tail)
    return x * phi, phi + x * e * (1 / math.sqrt(2 * math.pi))


def gelu_tanh(x):
    """y = x/2 * (1 + tanh v), v = sqrt(2/pi) * (x + 0.044715 x^3): GPT-2's.

    dy/dx = (1 + tanh v)/2 + x/2 * (1 - tanh^2 v) * dv/dx
    """
    a = math.sqrt(2 / math.pi)
    th = array_module(x).tanh(a * x * (1 + 0.044715 * x * x))
    dv = a * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + th), 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * dv


def relu(x):
    """y = max(x, 0); dy/dx = 1 where x > 0, else 0, which at 0 is a convention."""
    slope = (x > 0).astype(x.dtype)
    return x * slope, slope


KINDS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


def check_bias(x, b):
    """Raise a ValueError if b is neither None nor (C,): it would broadcast without a word."""
    if b is not None and b.shape != x.shape[-1:]:
        raise ValueError(
            f"activation_forward: b is {b.shape}, but the last axis of x {x.shape} needs "
            f"{x.shape[-1:]}"
        )


@overridable
def activation_forward(x, kind, b=None):
    """y = act(x + b), element by element; b is the bias of the linear layer that made x.

    Parameters
    ----------
    x : (..., C) float
    kind : str
        gelu, gelu_tanh or relu, a key of KINDS.
    b : (C,), dtype of x, optional

    Returns
    -------
    y : as x
    cache : (x, b, kind, slope)
        The slope dy/dx is as x. One of x and slope is None: where the slope is not kept, the
        backward pass makes it again from x.

    Raises
    ------
    ValueError
        If b is not (C,): other shapes would broadcast without a word.
    """
    check_bias(x, b)
    y, slope = KINDS[kind](x if b is None else x + b)
    return y, (None, b, kind, slope)


@overridable
def activation_backward(dy, cache):
    """Gradients of x and b:

        dx = dy * dy/dx
        db = sum(dx)     over all axes but the last

    Returns
    -------
    dx : (..., C)
    grads : {"b": db (C,)} if there is a b, else {}
    """
    x, b, kind, slope = cache
    if slope is None:
        _, slope = KINDS[kind](x if b is None else x + b)
    dx = dy * slope
    return dx, {} if b is None else {"b": dx.reshape(-1, b.size).sum(axis=0)}
