import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.ops.layernorm import EPS, layernorm_backward, layernorm_forward
from tests.tools.gradcheck import (
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
)

OP = layernorm_forward, layernorm_backward


def inputs(rng, shape, bias=True):
    x, w, b = (3 + 2 * rng.standard_normal(s) for s in (shape, shape[-1:], shape[-1:]))
    return x, {"w": w, "b": b} if bias else {"w": w}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 1), (0, 4), (7, 3), (3, 317, 97)])
def test_backward_is_the_gradient(rng, shape, bias):
    x, p = inputs(rng, shape, bias)
    check_backward(*OP, x, **p, rng=rng)


def test_backward_is_the_gradient_of_large_numbers(rng):
    _, p = inputs(rng, (4, 6))
    check_backward(*OP, 30 * rng.uniform(-1, 1, (4, 6)), **p, rng=rng)


def test_backward_knows_eps(rng):
    x, p = inputs(rng, (3, 4))
    check_backward(*OP, x, **p, rng=rng, options={"eps": 10.0})


def test_float32_stays_float32(rng):
    x, p = inputs(rng, (2, 3, 4))
    check_float32(*OP, x, **p, rng=rng)


@pytest.mark.cupy
@pytest.mark.parametrize("bias", [True, False])
def test_backends_agree(rng, xp, bias):
    x, p = inputs(rng, (2, 3, 5), bias)
    check_backends(*OP, x, **p, rng=rng, xp=xp)


@given(st.lists(st.integers(0, 4), max_size=3), st.integers(2, 9), st.integers(0, 99))
def test_mean_variance_and_gradient_are_as_they_must(lead, C, seed):
    rng = np.random.default_rng(seed)
    x = 3 + 2 * rng.standard_normal((*lead, C))
    dy = rng.standard_normal(x.shape)
    std = x.std(axis=-1)
    rounding = 1e-15 * np.abs(x).max(axis=-1) / std  # what x - mean(x) loses where x is nearly even
    for forward, backward in forms(*OP):
        y, cache = forward(x, np.ones(C), eps=0.0)
        assert (abs(y.mean(axis=-1)) <= rounding).all()
        np.testing.assert_allclose((y * y).mean(axis=-1), 1, rtol=1e-12)
        dx, _ = backward(dy, cache)
        bound = 10 * rounding * np.maximum(1 / std, 1)
        assert (abs(dx.sum(axis=-1)) <= bound).all()
        assert (abs((dx * y).sum(axis=-1)) <= bound).all()


def test_variance_survives_a_large_mean(rng):
    x = (1000 + 0.01 * rng.standard_normal((2, 768))).astype(np.float32)
    for forward, _ in forms(*OP):
        y, _ = forward(x, np.ones(768, np.float32), np.zeros(768, np.float32), eps=0.0)
        np.testing.assert_allclose(y.var(axis=-1), 1, rtol=1e-3)


def test_a_constant_row_gives_the_bias(rng):
    _, p = inputs(rng, (2, 4))
    y, cache = layernorm_forward(np.full((2, 4), 7.5), **p)
    np.testing.assert_array_equal(y, np.broadcast_to(p["b"], (2, 4)))
    assert np.isfinite(layernorm_backward(np.ones((2, 4)), cache)[0]).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_eps_is_gpt2s(rows):
    y, _ = layernorm_forward(np.tile([-1e-3, 1e-3], (rows, 1)), np.ones(2))
    assert EPS == 1e-5
    np.testing.assert_allclose(y[:, 1], 1e-3 / np.sqrt(1e-6 + 1e-5), rtol=1e-12)


def test_strided_inputs(rng):
    x, p = inputs(rng, (3, 2, 5))
    check_strided(*OP, x, **p, rng=rng)


@pytest.mark.parametrize("name", ["w", "b"])
def test_refuses_parameters_that_would_broadcast(rng, name):
    x, p = inputs(rng, (2, 3, 4))
    p[name] = p[name][:1]
    with pytest.raises(ValueError, match=r"\(1,\).*needs \(4,\)"):
        layernorm_forward(x, **p)
