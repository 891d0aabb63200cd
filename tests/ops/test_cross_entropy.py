import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigpt.backend.cpu import cross_entropy as cpu_cross_entropy
from minigpt.ops import cross_entropy
from minigpt.ops.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_both,
    cross_entropy_forward,
    head,
    logits_gradient,
)
from tests.tools.gradcheck import (
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
)

OP = cross_entropy_forward, cross_entropy_backward


def inputs(rng, shape=(2, 3), V=5, C=4, bias=True):
    """x, parameters, and targets of which the last of each row is ignored."""
    p = {"w": rng.standard_normal((V, C)), "b": rng.standard_normal(V)}
    targets = rng.integers(0, V, shape, dtype=np.int32)
    targets[..., -1:] = -1
    return rng.standard_normal((*shape, C)), p if bias else {"w": p["w"]}, targets


@pytest.mark.parametrize("count", [None, 7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 1), (0, 3), (2, 2, 2)])
def test_backward_is_the_gradient(rng, shape, bias, count):
    x, p, targets = inputs(rng, shape, bias=bias)
    check_backward(*OP, x, **p, rng=rng, options={"targets": targets, "count": count})


@pytest.mark.parametrize("bias", [True, False])
def test_backward_is_the_gradient_of_many_tokens(rng, bias):
    x, p, targets = inputs(rng, (3, 131), V=67, C=9, bias=bias)
    check_backward(*OP, x, **p, rng=rng, options={"targets": targets})


def test_backward_is_the_gradient_of_large_logits(rng):
    x, p, targets = inputs(rng)
    x = 30 * rng.uniform(-1, 1, x.shape)
    check_backward(*OP, x, **p, rng=rng, options={"targets": targets})


@pytest.mark.parametrize("bias", [True, False])
def test_backward_is_the_gradient_in_chunks(rng, bias, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 2 * 5 + 1)  # two rows of five at a time
    x, p, targets = inputs(rng, (7,), bias=bias)
    check_backward(*OP, x, **p, rng=rng, options={"targets": targets})


def test_chunks_make_no_difference(rng, monkeypatch):
    x, p, targets = inputs(rng, (3, 11), V=50)
    targets = targets[:, ::-1]  # the last row counts, too
    loss, cache = cross_entropy_forward.reference(x, targets, **p)
    dx, grads = cross_entropy_backward.reference(1.0, cache)
    for rows in (0, 1, 4, 32, 33):
        monkeypatch.setattr(cross_entropy, "CHUNK", rows * 50)
        loss2, cache = cross_entropy_forward.reference(x, targets, **p)
        dx2, grads2 = cross_entropy_backward.reference(1.0, cache)
        np.testing.assert_allclose(loss2, loss, rtol=1e-14)
        np.testing.assert_allclose(dx2, dx, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(grads2["w"], grads["w"], rtol=1e-12, atol=1e-16)


@pytest.mark.slow
def test_logits_of_a_large_vocabulary_never_exist_whole(rng):
    N, V, C = 1024, 50257, 4
    x, w = (rng.standard_normal(s, dtype=np.float32) for s in ((N, C), (V, C)))
    targets = rng.integers(0, V, N, dtype=np.int32)
    for forward, backward in forms(*OP):
        tracemalloc.start()
        _, cache = forward(x, targets, w)
        backward(1.0, cache)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < N * V * 4 / 3


@pytest.mark.parametrize("bias", [True, False])
def test_float32_stays_float32(rng, bias):
    x, p, targets = inputs(rng, bias=bias)
    check_float32(*OP, x, **p, rng=rng, options={"targets": targets})


def test_strided_inputs(rng):
    x, p, targets = inputs(rng)
    check_strided(*OP, x, **p, rng=rng, options={"targets": targets})


@pytest.mark.cupy
@pytest.mark.parametrize(
    "shape, V", [((5,), 7), ((0, 2), 7), pytest.param((300,), 50257, marks=pytest.mark.slow)]
)
def test_both_passes_at_once_give_what_one_after_the_other_gives(rng, xp, shape, V):
    x, p, targets = inputs(rng, shape, V)
    x, targets, p = xp.asarray(x), xp.asarray(targets), {k: xp.asarray(a) for k, a in p.items()}
    loss, cache = cross_entropy_forward.reference(x, targets, **p)
    dx, grads = cross_entropy_backward.reference(0.3, cache)
    for both in (cross_entropy_both, cross_entropy_both.reference):
        loss2, dx2, grads2 = both(x, targets, **p, dloss=0.3)
        for a, b in (
            (loss2, loss),
            (dx2, dx),
            (grads2["w"], grads["w"]),
            (grads2["b"], grads["b"]),
        ):
            xp.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-15)
    assert cross_entropy_both(x, targets, p["w"])[2].keys() == {"w"}


@pytest.mark.cupy
@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
def test_a_frozen_head_has_no_gradient_and_gives_the_same_dx(rng, xp, bias):
    x, p, targets = inputs(rng, (3, 4), 7)
    x, targets, p = xp.asarray(x), xp.asarray(targets), {k: xp.asarray(a) for k, a in p.items()}
    p = p if bias else {"w": p["w"]}
    for forward, backward, both in (
        (cross_entropy_forward, cross_entropy_backward, cross_entropy_both),
        (
            cross_entropy_forward.reference,
            cross_entropy_backward.reference,
            cross_entropy_both.reference,
        ),
    ):
        loss, dx, _ = both(x, targets, **p, dloss=0.3)
        frozen = both(x, targets, **p, dloss=0.3, frozen=True)
        assert frozen[2] == {} and bool((frozen[1] == dx).all()) and frozen[0] == loss
        _, cache = forward(x, targets, **p)
        frozen = backward(0.3, cache, frozen=True)
        assert frozen[1] == {} and bool((frozen[0] == backward(0.3, cache)[0]).all())


@pytest.mark.cupy
def test_the_gradient_of_the_logits_is_softmax_minus_one_hot(rng, xp):
    x, p, targets = inputs(rng, (2, 3))
    targets[0, 0], targets[1, 0] = 4, 0
    probabilities = np.exp(head(x, **p))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    expected = (probabilities - np.eye(5)[targets]) * (targets >= 0)[..., None] * (0.3 / 7)
    x, targets, p = xp.asarray(x), xp.asarray(targets), {k: xp.asarray(a) for k, a in p.items()}
    for forward, backward in forms(*OP):
        _, cache = forward(x, targets, **p, count=7)
        dlogits = logits_gradient(0.3, cache)
        xp.testing.assert_allclose(dlogits, expected.reshape(6, 5), rtol=1e-12, atol=1e-17)
        xp.testing.assert_allclose(logits_gradient(0.3, cache, slice(1, 4)), dlogits[1:4])
        dx, grads = backward(0.3, cache)
        xp.testing.assert_allclose(dx, (dlogits @ p["w"]).reshape(x.shape), rtol=1e-12)
        xp.testing.assert_allclose(grads["b"], dlogits.sum(axis=0), rtol=1e-12, atol=1e-17)


@pytest.mark.cupy
@pytest.mark.parametrize("bias", [True, False])
def test_backends_agree(rng, xp, bias):
    def forward(x, targets, w, b=None):
        return cross_entropy_forward(x, targets, w, b)

    x, p, targets = inputs(rng, (2, 4), bias=bias)
    options = {"targets": targets}
    check_backends(forward, cross_entropy_backward, x, **p, rng=rng, xp=xp, options=options)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
@example(1, 2, 1, 55)
def test_is_its_formula(B, T, V, seed):
    rng = np.random.default_rng(seed)
    x, p, targets = inputs(rng, (B, T), V=V)
    targets[0, 0] = 0  # one that counts
    loss, _ = cross_entropy_forward(x, targets, **p)
    losses, largest = [], 0.0
    for t, target in zip(x.reshape(-1, 4), targets.ravel(), strict=True):
        z = [float(t @ w + b) for w, b in zip(p["w"], p["b"], strict=True)]
        largest = max(largest, *map(abs, z), 1.0)
        if target >= 0:
            losses.append(math.log(sum(math.exp(v) for v in z)) - z[target])
    atol = 8 * np.finfo(float).eps * largest  # a difference of sums of 5 terms, as large as logits
    np.testing.assert_allclose(loss, math.fsum(losses) / len(losses), rtol=1e-13, atol=atol)


def test_a_uniform_guess_costs_ln_V(rng):
    for V in (2, 65, 50257):
        loss, _ = cross_entropy_forward(np.zeros((3, 4)), np.arange(3) % V, np.ones((V, 4)))
        np.testing.assert_allclose(loss, math.log(V), rtol=1e-14)


def test_ignored_targets_count_for_nothing(rng):
    x, p, targets = inputs(rng, (4,))
    loss, cache = cross_entropy_forward(x, targets, **p)
    dx, _ = cross_entropy_backward(1.0, cache)
    np.testing.assert_allclose(loss, cross_entropy_forward(x[:-1], targets[:-1], **p)[0])
    assert not dx[-1].any() and dx[:-1].all()


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 0)])
def test_no_target_at_all_is_no_loss(rng, shape):
    x, p, _ = inputs(rng, shape)
    loss, cache = cross_entropy_forward(x, np.full(shape, -1), **p)
    dx, grads = cross_entropy_backward(1.0, cache)
    assert loss == 0
    assert not any(d.any() for d in (dx, *grads.values()))


def test_shards_add_up_to_the_whole(rng):
    x, p, targets = inputs(rng, (4, 3))
    loss, cache = cross_entropy_forward(x, targets, **p)
    _, grads = cross_entropy_backward(1.0, cache)
    parts = [cross_entropy_forward(x[s], targets[s], **p, count=8) for s in ([0], [1, 2, 3])]
    part_grads = [cross_entropy_backward(1.0, cache)[1] for _, cache in parts]
    np.testing.assert_allclose(sum(part for part, _ in parts), loss, rtol=1e-14)
    for name, g in grads.items():
        np.testing.assert_allclose(sum(part[name] for part in part_grads), g, rtol=1e-12)


def test_gradients_of_the_logits_of_a_token_sum_to_zero(rng):
    x, p, targets = inputs(rng)
    _, cache = cross_entropy_forward(x, targets, **p)
    _, grads = cross_entropy_backward(1.0, cache)
    np.testing.assert_allclose(grads["b"].sum(), 0, atol=1e-15)
    np.testing.assert_allclose(grads["w"].sum(axis=0), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size_are_finite(dtype):
    for w, expected in (
        ([1.0, -1.0, 0.5], (2e4 + 2e4 + 0) / 3),
        ([-1.0, -2.0, -3.0], (1e4 + 2e4 + 0) / 3),  # of the first, no logit is near 0
    ):
        x, w = (np.array(a, dtype=dtype)[:, None] for a in ([1e4, -1e4, 1e4], w))
        for forward, backward in forms(*OP):
            loss, cache = forward(x, np.array([1, 0, 0]), w)
            dx, grads = backward(1.0, cache)
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
            assert np.isfinite(dx).all() and np.isfinite(grads["w"]).all()


def of_haswell(x, ones):
    """The sum of each row, where infinity is infinity."""
    return x.sum(axis=1)


def of_avx512(x, ones):
    """The sum of each row; a row with an infinity gives nan, and the warning of infinity times 0.

    The kernels of some CPUs fill the columns of a product up with zeros.
    """
    return x.sum(axis=1) + (x * 0).sum(axis=1)


@pytest.mark.parametrize("sum_rows", [of_haswell, of_avx512])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size_are_finite_with_the_products_of_any_cpu(monkeypatch, dtype, sum_rows):
    calls = []
    monkeypatch.setattr(
        cpu_cross_entropy, "sum_rows", lambda *args: calls.append(1) or sum_rows(*args)
    )
    test_logits_of_any_size_are_finite(dtype)
    assert calls
