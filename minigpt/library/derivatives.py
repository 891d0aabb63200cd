"""Numerical derivatives at 0 of functions of one real number that return an array."""

from itertools import pairwise

import numpy as np

# Step of the five-point stencil: its truncation, H^4 times a fifth derivative, is near 1e-13, as
# is the round-off of y, 1e-16 / H.
H = 5e-4
TINY = 1e-30  # of a complex step, which has neither
LADDER = [4.0**-k for k in range(1, 17)]  # 0.25 to 2e-10: from truncation to round-off
PLATEAU = 3  # steps in a row whose error is within the bound
EXACT = 1e-12  # error of the first step where there is no truncation: f is linear


class Analytic(np.ndarray):
    """Complex numbers whose abs is z or -z, by the sign of the real part.

    That continues |x| analytically away from 0, as the modulus does not. NumPy's max, minimum and
    < compare real parts first and need no change.
    """

    def __abs__(self):
        return np.where(self.real < 0, -self, self)


def five_point(f):
    """Return f'(0): (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h, Abramowitz & Stegun 25.3.6."""
    return (8 * (f(H) - f(-H)) - (f(2 * H) - f(-2 * H))) / (12 * H)


def complex_step(f):
    """Return f'(0) = Im f(ih) / h of an analytic f: nothing is subtracted, so nothing is lost.

    Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions", SIAM
    Review 40.
    """
    return np.asarray(f(TINY * 1j)).imag / TINY


def sweep(f):
    """Return f'(0) by central differences of ever smaller steps, each freed of its h^2 term."""
    central = [(f(h) - f(-h)) / (2 * h) for h in LADDER]
    return [(16 * fine - coarse) / 15 for coarse, fine in pairwise(central)]


def best_of(errors, bound):
    """Return the lowest error of a sweep, after asserting that it lies on a plateau.

    Over ever smaller steps the error must fall (truncation; a linear f has none), stay within the
    bound for some steps, and rise (round-off). A derivative of 0 may be exact throughout.
    """
    best = min(errors)
    flat = "".join("+" if error <= bound else "-" for error in errors)
    shape = f"; errors by falling step: {' '.join(f'{e:.0e}' for e in errors)}"
    assert best <= bound, f"relative error {best:.2e} > {bound:.0e}{shape}"
    assert PLATEAU * "+" in flat, f"no plateau{shape}"
    assert errors[0] > 10 * best or errors[0] <= EXACT, f"the error does not fall{shape}"
    assert errors[-1] > 10 * best or max(errors) == 0, f"the error does not rise{shape}"
    return best
