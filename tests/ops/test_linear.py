import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.ops.linear import linear_backward, linear_forward
from tests.tools.gradcheck import check_backends, check_backward, check_float32, check_strided

OP = linear_forward, linear_backward


def inputs(rng, shape, n_out=3, bias=True):
    p = {"w": rng.standard_normal((shape[-1], n_out))}
    if bias:
        p["b"] = rng.standard_normal(n_out)
    return rng.standard_normal(shape), p


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(4,), (2, 4), (2, 3, 4), (1, 1), (0, 4), (2, 0, 4), (3, 131, 17)]
)
def test_backward_is_the_gradient(rng, shape, bias):
    x, p = inputs(rng, shape, bias=bias)
    check_backward(*OP, x, **p, rng=rng)


def test_float32_stays_float32(rng):
    x, p = inputs(rng, (2, 3, 4))
    check_float32(*OP, x, **p, rng=rng)


@pytest.mark.cupy
def test_backends_agree(rng, xp):
    x, p = inputs(rng, (2, 5, 4))
    check_backends(*OP, x, **p, rng=rng, xp=xp)


@given(st.lists(st.integers(0, 4), max_size=3), st.integers(1, 5), st.integers(1, 5))
def test_is_the_sum_over_the_last_axis(lead, n_in, n_out):
    x, p = inputs(np.random.default_rng(0), (*lead, n_in), n_out)
    y, _ = linear_forward(x, **p)
    expected = sum(x[..., i, None] * p["w"][i] for i in range(n_in)) + p["b"]
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


def test_strided_inputs(rng):
    x, p = inputs(rng, (3, 2, 4))
    check_strided(*OP, x, **p, rng=rng)


def test_refuses_a_bias_that_would_broadcast(rng):
    x, p = inputs(rng, (2, 4))
    with pytest.raises(ValueError, match=r"b is \(1,\).*needs \(3,\)"):
        linear_forward(x, p["w"], p["b"][:1])
