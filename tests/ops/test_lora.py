import numpy as np
import pytest

from minigpt.ops.dropout import Rng, keep_mask, threshold
from minigpt.ops.lora import lora_backward, lora_forward
from tests.tools.gradcheck import check_backends, check_backward, check_float32, check_strided
from tests.tools.gradcheck import forms as forms_of

OP = lora_forward, lora_backward
KEY = Rng.of(5, 6)
DROPOUT = {"dropout": 0.3, "rng": KEY._replace(row=3)}

ranks = pytest.mark.parametrize("rank", [1, 2, 7], ids=lambda r: f"rank {r}")
dropouts = pytest.mark.parametrize("dropout", [{}, DROPOUT], ids=["", "dropout"])


def inputs(rng, shape, rank, n_out=3, bias=True, adapter=True):
    """Return x, the factors, and what is frozen; lora_b is not 0."""
    C = shape[-1]
    frozen = {"w": rng.standard_normal((C, n_out)), "scale": 1.7}
    if bias:
        frozen["b"] = rng.standard_normal(n_out)
    factors = {
        "lora_a": rng.standard_normal((C, rank)),
        "lora_b": rng.standard_normal((rank, n_out)),
    }
    return rng.standard_normal(shape), factors if adapter else {}, frozen


@dropouts
@ranks
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (1, 1), (0, 4)], ids=str)
def test_backward_is_the_gradient(rng, shape, rank, dropout):
    x, factors, frozen = inputs(rng, shape, rank, bias=rank > 1)
    check_backward(*OP, x, **factors, rng=rng, options=frozen | dropout)


@dropouts
def test_backward_is_the_gradient_over_many_rows(rng, dropout):
    x, factors, frozen = inputs(rng, (3, 131, 17), 4, n_out=97)
    check_backward(*OP, x, **factors, rng=rng, options=frozen | dropout)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
def test_backward_is_the_gradient_without_an_adapter(rng, bias):
    x, factors, frozen = inputs(rng, (2, 3, 4), 1, bias=bias, adapter=False)
    check_backward(*OP, x, **factors, rng=rng, options=frozen | DROPOUT)


@dropouts
def test_float32_stays_float32(rng, dropout):
    x, factors, frozen = inputs(rng, (2, 3, 4), 2)
    check_float32(*OP, x, **factors, rng=rng, options=frozen | dropout)


@pytest.mark.cupy
@dropouts
@pytest.mark.parametrize("adapter", [True, False], ids=["", "no adapter"])
def test_backends_agree(rng, xp, adapter, dropout):
    x, factors, frozen = inputs(rng, (2, 5, 4), 2, adapter=adapter)
    check_backends(*OP, x, **factors, rng=rng, xp=xp, options=frozen | dropout)


@dropouts
def test_strided_inputs(rng, dropout):
    x, factors, frozen = inputs(rng, (3, 2, 4), 2)
    check_strided(*OP, x, **factors, rng=rng, options=frozen | dropout)


def test_is_the_formula_of_the_paper(rng):
    x, factors, frozen = inputs(rng, (2, 3, 4), 2)
    w, b, a, low = frozen["w"], frozen["b"], factors["lora_a"], factors["lora_b"]
    mask = keep_mask(x.shape, 0.3, DROPOUT["rng"], np) * threshold(0.3)[1]
    for forward, _ in forms_of(*OP):
        y, _ = forward(x, **frozen, **factors)
        np.testing.assert_allclose(y, x @ (w + 1.7 * a @ low) + b, rtol=1e-13, atol=1e-13)
        y, _ = forward(x, **frozen, **factors, **DROPOUT)
        np.testing.assert_allclose(
            y, x @ w + b + 1.7 * (mask * x) @ a @ low, rtol=1e-13, atol=1e-13
        )


def test_the_first_gradient_of_lora_a_is_0_since_lora_b_is(rng):
    x, factors, frozen = inputs(rng, (2, 3, 4), 2)
    factors["lora_b"][...] = 0
    for forward, backward in forms_of(*OP):
        y, cache = forward(x, **factors, **frozen)
        assert np.array_equal(y, forward(x, **frozen)[0])
        _, grads = backward(rng.standard_normal(y.shape), cache)
        assert not grads["lora_a"].any() and grads["lora_b"].all()


def test_rows_drop_what_they_drop_in_the_whole_batch(rng):
    x, factors, frozen = inputs(rng, (5, 3, 4), 2)
    for forward, _ in forms_of(*OP):
        whole, _ = forward(x, **factors, **frozen, dropout=0.3, rng=KEY)
        part, _ = forward(x[2:], **factors, **frozen, dropout=0.3, rng=KEY._replace(row=2))
        np.testing.assert_allclose(part, whole[2:], rtol=1e-12)


def test_refuses_factors_that_do_not_fit(rng):
    x, factors, frozen = inputs(rng, (2, 4), 2)
    a, b = factors["lora_a"], factors["lora_b"]
    for forward, _ in forms_of(*OP):
        with pytest.raises(ValueError, match="come together"):
            forward(x, **frozen, lora_a=a)
        for wrong in ((a[:3], b), (a, b[:, :2]), (b.T, a.T)):
            with pytest.raises(ValueError, match=r"lora_a is .* but w \(4, 3\)"):
                forward(x, **frozen, lora_a=wrong[0], lora_b=wrong[1])
        with pytest.raises(ValueError, match=r"b is \(1,\).*needs \(3,\)"):
            forward(x, frozen["w"], frozen["b"][:1])
