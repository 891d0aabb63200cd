import numpy as np
import pytest

from minigpt.ops.activation import activation_forward
from minigpt.ops.linear import linear_forward
from minigpt.ops.linear_activation import linear_activation_backward, linear_activation_forward
from tests.tools.gradcheck import (
    assert_same,
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
)

OP = linear_activation_forward, linear_activation_backward

bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
kinds = pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu"])


def inputs(rng, shape, bias, n_out=3):
    """Return x, {w, b}; in small cases x @ w + b is somewhere positive and off ReLU's kink."""
    while True:
        x, w, b = (rng.standard_normal(s) for s in (shape, (shape[-1], n_out), n_out))
        h = x @ w + bias * b
        if h.size > 100 or h.size == 0 or (abs(h).min() > 0.01 and h.max() > 0):
            return x, {"w": w, "b": b} if bias else {"w": w}


@bias
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (1, 1), (0, 4)], ids=str)
@kinds
def test_backward_is_the_gradient(rng, kind, shape, bias):
    x, p = inputs(rng, shape, bias)
    check_backward(*OP, x, **p, rng=rng, options={"kind": kind})


@bias
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_backward_is_the_gradient_over_many_rows(rng, kind, bias):
    x, p = inputs(rng, (3, 131, 7), bias, n_out=97)
    check_backward(*OP, x, **p, rng=rng, options={"kind": kind})


@bias
@kinds
def test_float32_stays_float32(rng, kind, bias):
    x, p = inputs(rng, (2, 3, 4), bias)
    check_float32(*OP, x, **p, rng=rng, options={"kind": kind})


@pytest.mark.cupy
@bias
@kinds
def test_backends_agree(rng, xp, kind, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    check_backends(*OP, x, **p, rng=rng, xp=xp, options={"kind": kind})


@bias
@kinds
def test_strided_inputs(rng, kind, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    check_strided(*OP, x, **p, rng=rng, options={"kind": kind})


@bias
@kinds
def test_is_the_activation_of_the_linear_layer(rng, kind, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    expected, _ = activation_forward(linear_forward(x, **p)[0], kind)
    for forward, _ in forms(*OP):
        np.testing.assert_allclose(forward(x, **p, kind=kind)[0], expected, rtol=1e-13)


@bias
@kinds
def test_a_slope_that_was_not_kept_is_recomputed_with_the_bias(rng, kind, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    dy = rng.standard_normal((2, 3, 3))
    _, cache = linear_activation_forward(x, **p, kind=kind)
    linear_cache, activation_cache, _ = cache
    assert activation_cache[0] is None and activation_cache[2] is not None
    h, b = x @ p["w"], p.get("b")
    complete = h if b is None else h + b
    for _, backward in forms(*OP):
        for kept, late_bias in ((h, b), (complete, None)):
            again = backward(dy, (linear_cache, (kept, kind, None), late_bias))
            assert_same(again, backward(dy, cache), 1e-13)


def test_refuses_a_bias_that_would_broadcast(rng):
    x, p = inputs(rng, (2, 3, 4), bias=True)
    for forward, _ in forms(*OP):
        with pytest.raises(ValueError, match=r"b is \(1,\).*needs \(3,\)"):
            forward(x, p["w"], p["b"][:1], kind="relu")
