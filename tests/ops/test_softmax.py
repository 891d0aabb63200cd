import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.ops.softmax import softmax_backward, softmax_forward
from tests.tools.gradcheck import (
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
)

OP = softmax_forward, softmax_backward


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 1), (0, 4), (4, 0), (3, 317, 97)])
def test_backward_is_the_gradient(rng, shape):
    check_backward(*OP, 3 * rng.standard_normal(shape), rng=rng)


def test_backward_is_the_gradient_of_saturated_rows(rng):
    check_backward(*OP, 30 * rng.uniform(-1, 1, (4, 5)), rng=rng)


def test_float32_stays_float32(rng):
    check_float32(*OP, rng.standard_normal((2, 3, 4)), rng=rng)


@pytest.mark.cupy
@pytest.mark.parametrize("shape", [(2, 3, 5), (0, 4)])
def test_backends_agree(rng, xp, shape):
    x = 3 * rng.standard_normal(shape)
    x[..., 0] = -np.inf
    check_backends(*OP, x, rng=rng, xp=xp)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_is_a_distribution_and_blind_to_a_shift(shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    y, cache = softmax_forward(x)
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-15 * shape[-1])
    np.testing.assert_allclose(softmax_forward(x + 7)[0], y, rtol=1e-13)
    dx = softmax_backward(y - x, cache)
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=1e-14)


def test_scores_of_any_size_are_finite():
    """Nothing overflows on the way, so that no sum by BLAS meets an infinity."""
    x = np.array([[1e4, -1e4, 1e4], [-1e300, 0.0, -1e300], [-np.inf, 1e4, 1e4]])
    for forward, backward in forms(*OP):
        with np.errstate(over="raise", invalid="raise"):
            y, cache = forward(x)
            dx = backward(np.ones_like(y), cache)
        np.testing.assert_array_equal(y, [[0.5, 0, 0.5], [0, 1, 0], [0, 0.5, 0.5]])
        assert np.isfinite(dx).all()


def test_masked_scores_get_exactly_nothing(rng):
    x = rng.standard_normal((2, 3))
    x[0, 1] = -np.inf
    y, cache = softmax_forward(x)
    assert y[0, 1] == 0
    assert softmax_backward(rng.standard_normal((2, 3)), cache)[0, 1] == 0
    np.testing.assert_allclose(y[0, [0, 2]], softmax_forward(x[0, [0, 2]])[0], rtol=1e-15)


def test_a_row_that_is_all_masked_gives_zeros(rng):
    x = rng.standard_normal((2, 3))
    x[1] = -np.inf
    for forward, backward in forms(*OP):
        y, cache = forward(x)
        dx = backward(rng.standard_normal((2, 3)), cache)
        np.testing.assert_array_equal(y[1], 0)
        np.testing.assert_array_equal(dx[1], 0)
        assert np.isfinite(dx).all()


def test_strided_input(rng):
    check_strided(*OP, rng.standard_normal((2, 3, 5)), rng=rng)
