import math

import numpy as np
import pytest

from minigpt.ops.attention import merge_heads, split_heads
from minigpt.ops.rotary import (
    BASE,
    rotary_backward,
    rotary_forward,
    rotary_qkv_backward,
    rotary_qkv_forward,
)
from tests.tools.gradcheck import (
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
)

OP = rotary_qkv_forward, rotary_qkv_backward
OF_HEADS = rotary_forward, rotary_backward
# B, T, n_head, D, start
SIZES = [(2, 3, 2, 4, 0), (1, 1, 1, 2, 0), (2, 1, 1, 6, 5), (0, 3, 2, 4, 1), (1, 4, 3, 2, 7)]
LONG = (3, 131, 2, 10, 3)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def inputs(rng, B, T, n_head, D, start):
    """Return qkv and the options."""
    return rng.standard_normal((B, T, 3 * n_head * D)), {"n_head": n_head, "start": start}


def heads(x, n_head):
    """Return q, k and v, each (B, T, H, D), of x (B, T, 3 C)."""
    B, T, width = x.shape
    return np.moveaxis(x.reshape(B, T, 3, n_head, width // (3 * n_head)), 2, 0)


@pytest.mark.parametrize("size", [*SIZES, LONG], ids=str)
def test_backward_is_the_gradient(rng, size):
    qkv, options = inputs(rng, *size)
    check_backward(*OP, qkv, rng=rng, options=options)
    q, _, _ = split_heads(qkv, 3, size[2])
    check_backward(*OF_HEADS, q, rng=rng, options={"start": size[4]})


@sizes
def test_float32_stays_float32(rng, size):
    qkv, options = inputs(rng, *size)
    check_float32(*OP, qkv, rng=rng, options=options)
    q, _, _ = split_heads(qkv, 3, size[2])
    check_float32(*OF_HEADS, q, rng=rng, options={"start": size[4]})


@pytest.mark.cupy
@pytest.mark.parametrize("size", [*SIZES, LONG], ids=str)
def test_backends_agree(rng, xp, size):
    qkv, options = inputs(rng, *size)
    check_backends(*OP, qkv, rng=rng, xp=xp, options=options)
    q, _, _ = split_heads(qkv, 3, size[2])
    check_backends(*OF_HEADS, q, rng=rng, xp=xp, options={"start": size[4]})


@pytest.mark.parametrize("size", [*SIZES, LONG], ids=str)
def test_strided_inputs(rng, size):
    qkv, options = inputs(rng, *size)
    check_strided(*OP, qkv, rng=rng, options=options)
    q, _, _ = split_heads(qkv, 3, size[2])
    check_strided(*OF_HEADS, q, rng=rng, options={"start": size[4]})


@sizes
def test_the_packed_form_rotates_queries_and_keys_and_leaves_values(rng, size):
    qkv, options = inputs(rng, *size)
    q, k, v = split_heads(qkv, 3, size[2])
    expected = merge_heads(*(rotary_forward(x, size[4])[0] for x in (q, k)), v)
    for forward, _ in forms(*OP):
        np.testing.assert_allclose(forward(qkv, **options)[0], expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("size", [*SIZES, LONG], ids=str)
def test_is_a_product_of_complex_numbers(rng, size):
    qkv, options = inputs(rng, *size)
    T, D, start = size[1], size[3], size[4]
    theta = [BASE ** -(i / (D / 2 - 1) if D > 2 else 0) for i in range(D // 2)]
    turn = [
        [complex(math.cos(t * a), math.sin(t * a)) for a in theta] for t in range(start, start + T)
    ]
    turn = np.array(turn).reshape(T, 1, D // 2)
    for forward, _ in forms(*OP):
        y = heads(forward(qkv, **options)[0], size[2])
        x = heads(qkv, size[2])
        for j in range(2):
            expected = (x[j][..., ::2] + 1j * x[j][..., 1::2]) * turn
            found = y[j][..., ::2] + 1j * y[j][..., 1::2]
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
        np.testing.assert_array_equal(y[2], x[2])


@sizes
def test_pairs_keep_their_length(rng, size):
    qkv, options = inputs(rng, *size)
    for forward, _ in forms(*OP):
        y, _ = forward(qkv, **options)
        lengths = [np.hypot(x[..., ::2], x[..., 1::2]) for x in (y, qkv)]
        np.testing.assert_allclose(*lengths, rtol=1e-14)


@sizes
def test_the_backward_pass_is_the_inverse(rng, size):
    qkv, options = inputs(rng, *size)
    for forward, backward in forms(*OP):
        np.testing.assert_allclose(backward(*forward(qkv, **options)), qkv, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shift", [1, 50])
@pytest.mark.parametrize("n_head, D", [(1, 2), (2, 6)])
def test_a_query_and_a_key_know_their_distance_alone(rng, n_head, D, shift):
    qkv, options = inputs(rng, 2, 7, n_head, D, 0)
    qkv[:, 1:] = qkv[:, :1]  # the same contents everywhere: what differs is the distance
    for forward, _ in forms(*OP):
        found = []
        for start in (0, shift):
            q, k, _ = heads(forward(qkv, **{**options, "start": start})[0], n_head)
            found.append(np.einsum("bthd,bshd->bhts", q, k))
        np.testing.assert_allclose(*found, rtol=0, atol=1e-12)
        for distance in range(-6, 7):
            along = np.diagonal(found[0], distance, axis1=2, axis2=3)
            np.testing.assert_allclose(
                along, along[..., :1].repeat(7 - abs(distance), -1), atol=1e-12
            )
        assert np.ptp(found[0], axis=(2, 3)).min() > 0.01


@pytest.mark.parametrize("start, T", [(0, 1), (1, 1), (3, 5), (8, 1), (15, 2)])
def test_a_later_part_is_a_part_of_the_whole(rng, start, T):
    qkv, options = inputs(rng, 2, 20, 2, 4, 0)
    for forward, backward in forms(*OP):
        whole, cache = forward(qkv, **options)
        part = slice(start, start + T)
        y, part_cache = forward(qkv[:, part], **{**options, "start": start})
        np.testing.assert_array_equal(y, whole[:, part])
        np.testing.assert_array_equal(
            backward(qkv[:, part], part_cache), backward(qkv, cache)[:, part]
        )


def test_a_position_that_is_far_is_exact_in_float32(rng):
    qkv, options = inputs(rng, 1, 3, 1, 10, 100_000)
    for forward, _ in forms(*OP):
        expected, _ = forward(qkv, **options)
        found, _ = forward(qkv.astype("f"), **options)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.cupy
def test_angles_are_made_once(rng, xp, monkeypatch):
    qkv, options = inputs(rng, 2, 5, 2, 4, 0)
    qkv = xp.asarray(qkv.astype("f"))
    _, (_, *first) = rotary_qkv_forward(qkv, **options)
    monkeypatch.setattr(xp, "cos", None)
    _, (_, *second) = rotary_qkv_forward(qkv, **{**options, "start": 2})
    for a, b in zip(first, second, strict=True):
        assert xp.may_share_memory(a, b)
