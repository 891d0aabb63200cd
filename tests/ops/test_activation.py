import math

import numpy as np
import pytest

from minigpt.ops.activation import activation_backward, activation_forward
from tests.tools.gradcheck import (
    assert_same,
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
)

OP = activation_forward, activation_backward
KINDS = ("gelu", "gelu_tanh", "relu")
FORMULA = {
    "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: max(x, 0.0),
}


def inputs(rng, shape):
    """Return x, nowhere within 0.01 of ReLU's kink, which has no derivative."""
    x = 2 * rng.standard_normal(shape)
    return x + 0.01 * np.sign(x)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 1), (0, 4), (3, 131, 97)])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_the_gradient(rng, kind, shape):
    check_backward(*OP, inputs(rng, shape), rng=rng, options={"kind": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_the_gradient_of_large_numbers(rng, kind):
    x = np.concatenate([np.linspace(-30, -0.1, 40), np.linspace(0.1, 30, 40)])
    check_backward(*OP, x, rng=rng, options={"kind": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_float32(rng, kind):
    check_float32(*OP, inputs(rng, (2, 3, 4)), rng=rng, options={"kind": kind})


@pytest.mark.cupy
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree(rng, xp, kind):
    check_backends(*OP, inputs(rng, (2, 3, 5)), rng=rng, xp=xp, options={"kind": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_is_its_formula(kind):
    x = np.linspace(-40, 40, 16001)
    y, _ = activation_forward(x, kind)
    expected = [FORMULA[kind](v) for v in x.tolist()]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)


def test_exact_gelu_has_the_slope_of_its_formula():
    x = np.linspace(-40, 40, 16001)
    _, cache = activation_forward(x, "gelu")
    expected = [
        0.5 * math.erfc(-v / math.sqrt(2)) + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
        for v in x.tolist()
    ]
    dx = activation_backward(np.ones_like(x), cache)
    np.testing.assert_allclose(dx, expected, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_size_are_finite(kind):
    for dtype, top in ((np.float32, 1e4), (np.float64, 1e6)):
        x = np.array([-top, -0.0, 0.0, top], dtype=dtype)
        y, cache = activation_forward(x, kind)
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        dx = activation_backward(np.ones_like(x), cache)
        np.testing.assert_array_equal(dx[[0, 3]], [0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_strided_input(rng, kind):
    check_strided(*OP, inputs(rng, (2, 3, 5)), rng=rng, options={"kind": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_a_slope_that_was_not_kept_is_recomputed(rng, kind):
    x = inputs(rng, (2, 3, 5))
    dy = rng.standard_normal(x.shape)
    _, cache = activation_forward(x, kind)
    assert cache[0] is None and cache[2] is not None
    for _, backward in forms(*OP):
        assert_same(backward(dy, (x, kind, None)), backward(dy, cache), 1e-13)
