"""Digits: a matrix's numbers with one point, three to four significant digits of the largest."""

import math
from typing import NamedTuple

import numpy as np

DIGITS = 4  # of the largest number
SMALLEST, LARGEST = 1e-2, 1e4  # where the largest is beyond, a power of ten stands for all


class Scale(NamedTuple):
    """How the numbers of a matrix are written.

    Attributes
    ----------
    power : int
        All are multiples of 10^power.
    decimals : int
        Behind the point.
    """

    power: int
    decimals: int

    @property
    def factor(self):
        """What stands beside the matrix: "x 10^-4", or nothing."""
        return f"x 10^{self.power}" if self.power else ""


def scale_of(values):
    """Return the Scale of an array: that of its largest number, by size, that is finite."""
    if values.dtype.kind in "biu":
        return Scale(0, 0)
    sizes = np.abs(values[np.isfinite(values)]).astype(float)
    top = sizes.max(initial=0.0)
    if top == 0:
        return Scale(0, 1)
    exponent = int(f"{top:.{DIGITS - 1}e}".partition("e")[2])  # after it is rounded
    if SMALLEST <= top < LARGEST:
        return Scale(0, min(max(DIGITS - 1 - exponent, 0), DIGITS))
    return Scale(exponent, DIGITS - 1)


def digits(x, scale):
    """Return a number as text. An exact 0 has no point, so that it can be told from a small one.

    Parameters
    ----------
    x : number
    scale : Scale
    """
    if x == 0:
        return "0"
    if not math.isfinite(x):
        return str(float(x))
    return f"{float(x) / 10.0**scale.power:.{scale.decimals}f}"


def aligned(text, scale):
    """Return digits with spaces behind, so that points, or the places for them, are in a column."""
    if not scale.decimals or "." in text or not text.lstrip("-").isdigit():
        return text
    return text + " " * (scale.decimals + 1)


def share(x, values):
    """Return the size of a number as a part of the largest in a matrix, 0 to 1, with its sign."""
    top = np.abs(values[np.isfinite(values)]).max(initial=0)
    return float(x) / float(top) if top and math.isfinite(x) else 0.0
