"""Bias and activation on the CPU: y and its slope, block by block."""

import math

import numpy as np

from minigpt.backend.cpu.blocking import block_rows, column_sums, row_blocks, rows_of
from minigpt.backend.cpu.pool import empty
from minigpt.ops import activation

# Hastings' erf: Abramowitz & Stegun 1964, formula 7.1.26; absolute error 1.5e-7, as float32's.
# Halved, since 1 - Phi(x) = erfc(x / sqrt 2) / 2; and in powers of 1 / (|x| + 1 / s), which takes
# one pass less than 1 / (1 + s |x|).
T_SCALE = 0.3275911 * math.sqrt(0.5)
HASTINGS = tuple(
    c / 2 / T_SCALE**k
    for k, c in enumerate((0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429), 1)
)
SIGN = np.uint32(1 << 31)


def gelu(x, y, slope, t, e):
    """As ops.activation.gelu, for a block of float32, into y and slope; t and e are scratch."""
    np.abs(x, out=t)
    t += 1 / T_SCALE
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


INTO = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


def activation_forward(x, kind, b=None):
    """As the op; y and slope of a block are made together, while it is in the cache."""
    if kind == "gelu" and x.dtype != np.float32:
        return NotImplemented
    activation.check_bias(x, b)
    into = INTO[kind]
    if x.size == x.shape[-1]:  # a single row, as in decoding: all else is overhead
        y, slope, *buffers = np.empty((4, *x.shape), x.dtype)
        into(x if b is None else x + b, y, slope, *buffers)
        return y, (None, b, kind, slope)
    y, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    x2, y2, slope2 = (rows_of(a, x.shape[-1]) for a in (x, y, slope))
    scratch = empty((3, block_rows(*x2.shape), x.shape[-1]), x.dtype)
    for _, xr, yr, slope_r in row_blocks(x2, y2, slope2):
        total, *buffers = scratch[:, : len(xr)]
        if b is not None:
            xr = np.add(xr, b, out=total)
        into(xr, yr, slope_r, *buffers)
    return y, (None, b, kind, slope)


def activation_backward(dy, cache):
    """As the op."""
    _, b, _, slope = cache
    if slope is None:
        return NotImplemented
    C = slope.shape[-1]
    dx = empty(slope.shape, slope.dtype)
    dx2, dy2, slope2 = (rows_of(a, C) for a in (dx, dy, slope))
    grads = {} if b is None else {"b": np.zeros(C, slope.dtype)}
    for _, dxr, dyr, slope_r in row_blocks(dx2, dy2, slope2):
        np.multiply(dyr, slope_r, out=dxr)
        if b is not None:
            grads["b"] += column_sums(dxr)
    return dx, grads
