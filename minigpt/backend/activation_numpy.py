"""Activations on the CPU: y and its slope, block by block."""

import math

import numpy as np

from minigpt.backend.pool import empty
from minigpt.ops import activation

BLOCK = 2**16  # elements of a block: what Python needs for a call is small beside the work

# Hastings' erf: Abramowitz & Stegun 1964, formula 7.1.26; absolute error 1.5e-7, as float32's.
# Halved, since 1 - Phi(x) = erfc(x / sqrt 2) / 2.
HASTINGS = tuple(c / 2 for c in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
T_SCALE = 0.3275911
SIGN = np.uint32(1 << 31)


def gelu(x, y, slope, t, e):
    """As ops.activation.gelu, for a block of float32, into y and slope; t and e are scratch."""
    np.abs(x, out=t)
    t *= T_SCALE * math.sqrt(0.5)
    t += 1
    np.reciprocal(t, out=t)
    np.multiply(x, x, out=e)
    e *= -0.5
    np.exp(e, out=e)
    np.multiply(t, HASTINGS[-1], out=y)
    for c in HASTINGS[-2::-1]:
        y += c
        y *= t
    y *= e  # 1 - Phi(|x|)
    np.subtract(0.5, y, out=y)
    # copysign(y, x), several times faster by bits
    bits = y.view(np.uint32)
    bits |= np.bitwise_and(x.view(np.uint32), SIGN, out=t.view(np.uint32))
    np.add(y, 0.5, out=slope)  # Phi(x)
    np.multiply(x, slope, out=y)
    e *= x
    e *= 1 / math.sqrt(2 * math.pi)
    slope += e


def gelu_tanh(x, y, slope, x2, th):
    """As ops.activation.gelu_tanh, for a block, into y and slope; x2 and th are scratch."""
    a = math.sqrt(2 / math.pi)
    np.multiply(x, x, out=x2)
    np.multiply(x2, 0.044715 * a, out=th)
    th += a
    th *= x
    np.tanh(th, out=th)
    np.multiply(th, th, out=slope)
    np.subtract(1, slope, out=slope)
    x2 *= 3 * 0.044715 * a
    x2 += a
    x2 *= x
    slope *= x2
    th += 1
    slope += th
    slope *= 0.5
    np.multiply(x, th, out=y)
    y *= 0.5


def relu(x, y, slope, *_):
    """As ops.activation.relu, into y and slope."""
    np.greater(x, 0, out=slope, casting="unsafe")
    np.multiply(x, slope, out=y)


def activation_forward(x, kind):
    """As the op; y and slope of a block are made together, while it is in the cache."""
    if kind == "gelu" and x.dtype != np.float32:
        return activation.activation_forward.reference(x, kind)
    into = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}[kind]
    y, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    flats = [a.reshape(-1) for a in (x, y, slope)]
    scratch = empty((2, min(x.size, BLOCK)), x.dtype)
    for start in range(0, x.size, BLOCK):
        part = slice(start, min(start + BLOCK, x.size))
        into(*(a[part] for a in flats), *scratch[:, : part.stop - part.start])
    return y, (slope,)
