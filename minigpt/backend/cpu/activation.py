"""Activations on the CPU, with or without a bias before them: y and slope, block by block."""

import math

import numpy as np

from minigpt.backend.cpu.blocking import BLOCK, block_rows, column_sums, row_blocks, rows_of
from minigpt.backend.cpu.crew import share
from minigpt.backend.cpu.pool import empty

# Hastings' erf: Abramowitz & Stegun 1964, formula 7.1.26. Its absolute error is 1.5e-7, that of Phi
# half of it: about float32's spacing at 1, which is 1.2e-7. The coefficients are halved, since
# 1 - Phi(x) = erfc(x / sqrt 2) / 2. And 1 / (1 + s |x|) = (1 / s) / (|x| + 1 / s): with the factors
# 1 / s in the coefficients, the powers are those of 1 / (|x| + 1 / s), which saves a pass.
T_SCALE = 0.3275911 * math.sqrt(0.5)
HASTINGS = tuple(
    c / 2 / T_SCALE**k
    for k, c in enumerate((0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429), 1)
)
SIGN = np.uint32(1 << 31)


def upper_tail(x, y, t, e):
    """Write 1 - Phi(|x|) of a block x of float32 into y, exp(-x^2 / 2) into e; t is scratch."""
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
    y *= e


def gelu(x, y, slope, t, e):
    """Write ops.activation.gelu of a block x of float32 into y and slope; t and e are scratch."""
    upper_tail(x, y, t, e)
    np.subtract(0.5, y, out=y)
    # copysign(y, x), several times faster on the bits
    bits = y.view(np.uint32)
    bits |= np.bitwise_and(x.view(np.uint32), SIGN, out=t.view(np.uint32))
    np.add(y, 0.5, out=slope)  # Phi(x)
    np.multiply(x, slope, out=y)
    e *= x
    e *= 1 / math.sqrt(2 * math.pi)
    slope += e


def gelu_tanh(x, y, slope, x2, th):
    """Write ops.activation.gelu_tanh of a block x into y and slope; x2 and th are scratch."""
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
    """Write ops.activation.relu of a block x into y and slope."""
    np.greater(x, 0, out=slope, casting="unsafe")
    np.multiply(x, slope, out=y)


INTO = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


def takes(kind, dtype):
    """Tell whether there is a version of this activation for this dtype."""
    return kind in INTO and (kind != "gelu" or dtype == np.float32)


def activate(x, kind, b=None):
    """Return y and slope of act(x + b); those of a block are computed while it is in the cache."""
    into = INTO[kind]
    y, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    x2, y2, slope2 = (rows_of(a, x.shape[-1]) for a in (x, y, slope))

    def run(blocks):
        scratch = empty((3, block_rows(*x2.shape), x.shape[-1]), x.dtype)
        for _, xr, yr, slope_r in blocks:
            total, *buffers = scratch[:, : len(xr)]
            if b is not None:
                xr = np.add(xr, b, out=total)
            into(xr, yr, slope_r, *buffers)

    share(run, list(row_blocks(x2, y2, slope2)))
    return y, slope


def multiply_by_slope(dy, slope, db=None):
    """Return dx = dy * slope; add its sums over the rows to db (C,), if there is one."""
    C = slope.shape[-1]
    dx = empty(slope.shape, slope.dtype)
    dx2, dy2, slope2 = (rows_of(a, C) for a in (dx, dy, slope))
    sums = {}  # of each block, by its start: they are added in order

    def run(blocks):
        for start, dxr, dyr, slope_r in blocks:
            np.multiply(dyr, slope_r, out=dxr)
            if db is not None:
                sums[start] = column_sums(dxr)

    share(run, list(row_blocks(dx2, dy2, slope2)))
    for start in sorted(sums):
        db += sums[start]
    return dx


def gelu_alone(x):
    """Return x Phi(x) of a block x of float32: max(x, 0) - |x| (1 - Phi(|x|))."""
    y, t, e = np.empty((3, *x.shape), x.dtype)
    upper_tail(x, y, t, e)
    y *= np.abs(x, out=t)
    return np.subtract(np.maximum(x, 0, out=t), y, out=y)


def gelu_tanh_alone(x):
    """Return ops.activation.gelu_tanh of a block x without the slope."""
    a = math.sqrt(2 / math.pi)
    y = x * x
    y *= 0.044715 * a
    y += a
    y *= x
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def relu_alone(x):
    """Return ops.activation.relu of a block x without the slope."""
    return x * (x > 0)


ALONE = {"gelu": gelu_alone, "gelu_tanh": gelu_tanh_alone, "relu": relu_alone}


def values(x, kind):
    """Return act(x) of x (N, C) without the slope, for a pass that nothing follows backward."""
    if x.size <= BLOCK:
        return ALONE[kind](x)
    y = empty(x.shape, x.dtype)
    for _, xr, yr in row_blocks(x, y):
        yr[...] = ALONE[kind](xr)
    return y


def activation_forward(x, kind):
    """As the op."""
    if not takes(kind, x.dtype):
        return NotImplemented
    y, slope = activate(x, kind)
    return y, (None, kind, slope)


def activation_backward(dy, cache):
    """As the op."""
    _, _, slope = cache
    if slope is None:
        return NotImplemented
    return multiply_by_slope(dy, slope)
