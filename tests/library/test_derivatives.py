"""The numerical derivatives of the gradient checks, against derivatives that are known."""

import math

import numpy as np
import pytest

from minigpt.library.derivatives import Analytic, best_of, complex_step, five_point, sweep

BOUND = 1e-8
KNOWN = {
    "exp": (lambda t: np.exp(1 + t), math.e),
    "tanh": (lambda t: np.tanh(2 * t - 0.3), 2 / math.cosh(0.3) ** 2),
    "power": (lambda t: (3 + t) ** -0.5, -0.5 * 3**-1.5),
    "log": (lambda t: np.log(5 + t * t + t), 1 / 5),
    "linear": (lambda t: 7 * t - 2, 7.0),
    "constant": (lambda t: 0 * t + 3, 0.0),
}


@pytest.mark.parametrize("f, slope", KNOWN.values(), ids=KNOWN)
def test_known_derivatives_are_found(f, slope):
    assert abs(complex_step(f) - slope) <= 1e-15 * max(1, abs(slope))
    assert abs(five_point(f) - slope) <= 1e-11
    assert best_of([abs(step - slope) for step in sweep(f)], BOUND) <= 1e-10


@pytest.mark.parametrize("x", [-3.0, -0.5, 0.5, 3.0])
def test_what_has_a_kink_is_continued_on_its_own_side(x):
    z = np.array([x + 1e-30j, 1.0]).view(Analytic)
    sign = math.copysign(1, x)
    for y, slope in (
        (abs(z), sign),
        (np.maximum(z, 1), x > 1),
        (np.minimum(z, 1), x < 1),
        (np.where(z < 0, z, 0), x < 0),
        (z.max(keepdims=True), x > 1),
    ):
        assert np.asarray(y)[0].imag / 1e-30 == slope
    assert type(2 * z) is Analytic and abs(2 * z)[0].real == abs(2 * x)


@pytest.mark.parametrize(
    "errors, fault",
    [
        ((1, 1e-3, 1e-9, 1e-12, 1e-10, 1e-7), None),
        ((1e-15, 1e-14, 1e-12, 1e-10, 1e-7), None),
        ((0, 0, 0, 0), None),
        ((1, 1e-3, 1e-6, 2e-6, 1e-5), "relative error 1.00e-06"),
        ((1, 1e-3, 1e-9, 1e-7, 1e-5), "no plateau"),
        ((1, 1e-9, 1e-7, 1e-9, 1e-6, 1e-9, 1e-5), "no plateau"),
        ((1e-9, 1e-9, 9e-10, 1e-9, 1e-5), "does not fall"),
        ((1, 1e-9, 1e-12, 1e-12, 1e-12), "does not rise"),
        ((math.nan,) * 5, "relative error nan"),
    ],
)
def test_a_sweep_must_show_its_plateau(errors, fault):
    if fault is None:
        assert best_of(errors, BOUND) == min(errors)
    else:
        with pytest.raises(AssertionError, match=fault):
            best_of(errors, BOUND)


def test_a_function_that_rounds_has_no_plateau():
    errors = [abs(step - 1.3) for step in sweep(lambda t: float(np.float32(math.exp(1.3 * t))))]
    with pytest.raises(AssertionError, match="relative error|plateau"):
        best_of(errors, BOUND)


def test_a_kink_has_no_plateau():
    errors = [abs(step - 0.5) for step in sweep(lambda t: max(t, 0) + max(t - 1e-3, 0))]
    with pytest.raises(AssertionError, match="plateau|does not|relative error"):
        best_of([e + 1e-9 * (e == 0) for e in errors], BOUND)
