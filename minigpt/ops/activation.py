"""Activations: GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415), exact and by tanh, and ReLU.

y = act(x), element by element. `gelu`, `gelu_tanh` and `relu` return act(x) and the slope act'(x)
together: the slope reuses the exp or tanh of y. So the forward pass keeps the slope, and the
backward pass is one product.
"""

import math

from minigpt.backend import array_module, overridable

# erfc(z) = exp(-z^2) * Q(u): Chebyshev interpolation of Q on 0 <= z <= 6, where
# t = 1 / (1 + 0.4 z) and u maps t to [-1, 1]; absolute error 1e-15. Coefficients of rising powers
# of u. NumPy has no erf, and math.erf takes neither arrays nor complex numbers: the check of the
# slope by complex steps needs a formula that continues into the complex plane.
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
    """y = x * Phi(x), with Phi the distribution function of the standard normal, phi its density.

        act'(x) = Phi(x) + x * phi(x)    by the product rule, since Phi' = phi

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
    """y = x/2 * (1 + tanh v), v = sqrt(2/pi) * (x + 0.044715 x^3), as in GPT-2.

    act'(x) = (1 + tanh v)/2 + x/2 * (1 - tanh^2 v) * v'(x)
    """
    a = math.sqrt(2 / math.pi)
    th = array_module(x).tanh(a * x * (1 + 0.044715 * x * x))
    v_slope = a * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + th), 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * v_slope


def relu(x):
    """y = max(x, 0); act'(x) = 1 where x > 0, else 0 (at 0 itself by convention)."""
    slope = (x > 0).astype(x.dtype)
    return x * slope, slope


KINDS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


@overridable
def activation_forward(x, kind):
    """y = act(x), element by element.

    Parameters
    ----------
    x : (..., C) float
    kind : str
        gelu, gelu_tanh or relu, a key of KINDS.

    Returns
    -------
    y : as x
    cache : (x, kind, slope)
        The slope act'(x) is as x. One of x and slope is None: where the slope is not kept, the
        backward pass recomputes it from x.
    """
    y, slope = KINDS[kind](x)
    return y, (None, kind, slope)


@overridable
def activation_backward(dy, cache):
    """dx = dy * act'(x).

    y_i depends on x_i alone: the Jacobian is diagonal.

    Returns
    -------
    dx : (..., C)
    """
    x, kind, slope = cache
    if slope is None:
        _, slope = KINDS[kind](x)
    return dy * slope
