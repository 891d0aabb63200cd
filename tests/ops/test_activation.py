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


bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])


def inputs(rng, shape, bias=False):
    """Return x, b: x + b is nowhere within 0.01 of ReLU's kink, which has no derivative."""
    x, b = 2 * rng.standard_normal(shape), rng.standard_normal(shape[-1]) if bias else 0.0
    x += 0.01 * np.sign(x) - b
    return x, {"b": b} if bias else {}


@bias
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 1), (0, 4), (3, 131, 97)])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_the_gradient(rng, kind, shape, bias):
    x, p = inputs(rng, shape, bias)
    check_backward(*OP, x, **p, rng=rng, options={"kind": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_the_gradient_of_large_numbers(rng, kind):
    x = np.concatenate([np.linspace(-30, -0.1, 40), np.linspace(0.1, 30, 40)])
    check_backward(*OP, x, rng=rng, options={"kind": kind})


@bias
@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_float32(rng, kind, bias):
    x, p = inputs(rng, (2, 3, 4), bias)
    check_float32(*OP, x, **p, rng=rng, options={"kind": kind})


@pytest.mark.cupy
@bias
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree(rng, xp, kind, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    check_backends(*OP, x, **p, rng=rng, xp=xp, options={"kind": kind})


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
    dx, _ = activation_backward(np.ones_like(x), cache)
    np.testing.assert_allclose(dx, expected, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_size_are_finite(kind):
    for dtype, top in ((np.float32, 1e4), (np.float64, 1e6)):
        x = np.array([-top, -0.0, 0.0, top], dtype=dtype)
        y, cache = activation_forward(x, kind)
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        dx, _ = activation_backward(np.ones_like(x), cache)
        np.testing.assert_array_equal(dx[[0, 3]], [0, 1])


@bias
@pytest.mark.parametrize("kind", KINDS)
def test_strided_input(rng, kind, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    check_strided(*OP, x, **p, rng=rng, options={"kind": kind})


@bias
@pytest.mark.parametrize("kind", KINDS)
def test_a_slope_that_was_not_kept_is_made_again(rng, kind, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    dy = rng.standard_normal(x.shape)
    _, cache = activation_forward(x, kind, **p)
    assert cache[0] is None and cache[3] is not None
    for _, backward in forms(*OP):
        again = backward(dy, (x, p.get("b"), kind, None))
        assert_same(again, backward(dy, cache), 1e-13)


def test_refuses_a_bias_that_would_broadcast(rng):
    x, p = inputs(rng, (2, 3, 4), bias=True)
    for forward, _ in forms(*OP):
        with pytest.raises(ValueError, match=r"b is \(1,\).*needs \(4,\)"):
            forward(x, "relu", p["b"][:1])
