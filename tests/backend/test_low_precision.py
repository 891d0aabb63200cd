"""Ops that no kernel takes, with 16-bit arrays: computed in float32, rounded once."""

import dataclasses
import math

import numpy as np
import pytest

from minigpt.backend import plain
from minigpt.backend.low_precision import in_float32
from minigpt.ops.attention import attention_backward, attention_forward
from minigpt.ops.cross_entropy import cross_entropy_both
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.optim.adamw import adamw_step
from tests.tools.dtypes import LOW, UNIT, needs_bfloat16
from tests.tools.gradcheck import float_dtypes
from tests.tools.stepping import CONFIG, losses

pytestmark = pytest.mark.cupy
TINY = 1e-5  # what float32 adds to a rounding


def draw(cupy, rng, dtype, *shapes):
    """Return arrays of that dtype, and the same numbers in float64 on the host."""
    xs = [cupy.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]
    return xs, [x.get().astype(float) for x in xs]


def rounded_once(found, exact, dtype):
    """Assert that each element is off by its own rounding alone; both are trees."""
    assert float_dtypes(found) == {dtype}

    def compare(x, y):
        np.testing.assert_allclose(x, y, rtol=UNIT[dtype], atol=TINY * np.abs(y).max())

    for x, y in zip(found, exact, strict=True):
        compare(x.get().astype(float), y)


@needs_bfloat16
def test_rounding_to_bfloat16(cupy):
    """To the nearest, a tie to the even one, by a kernel: AdamW's copy of the weights."""
    bits = np.array([0x3F80, 0x3F81, 0x0001, 0x7F7F, 0x8000, 0xBF80], np.uint32) << 16
    below, tie, above = (bits + half for half in (0x7FFF, 0x8000, 0x8001))
    special = np.array([math.inf, -math.inf, math.nan, -0.0, 1e-45, 3.4e38], "f")
    nans = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32)  # one more would be another number
    p = np.concatenate([bits, below, tie, above, special.view(np.uint32), nans]).view("f")
    half, (step, scale) = cupy.empty(p.size, "bfloat16"), cupy.asarray([1.0, 1.0], "f")
    device, (g, m, v) = cupy.asarray(p), (cupy.zeros(p.size, "f") for _ in range(3))
    numbers = (0.0, 0.9, 0.95, 1e-8, 0.0, 0)  # a learning rate of 0: the weights stay
    adamw_step(device, g, m, v, *numbers, step[...], scale[...], half)
    assert adamw_step is not adamw_step.reference
    np.testing.assert_array_equal(device.get(), p)
    with np.errstate(over="ignore"):
        expected = p.astype("bfloat16").astype("f")
    np.testing.assert_array_equal(half.get().astype("f"), expected)


@pytest.mark.parametrize("dtype", LOW)
def test_heads_wider_than_a_tile(cupy, rng, dtype):
    (*qkv, dy), (*exact, exact_dy) = draw(cupy, rng, dtype, *[(1, 2, 5, 160)] * 4)
    y, cache = attention_forward(*qkv, causal=True)
    expected, exact_cache = attention_forward(*exact, causal=True)
    rounded_once([y], [expected], dtype)
    rounded_once(attention_backward(dy, cache), attention_backward(exact_dy, exact_cache), dtype)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("C", [96, 4097])
@pytest.mark.parametrize("by_kernel", [(1, 1), (0, 1), (1, 0), (0, 0)], ids=str)
def test_layernorm_in_all_pairings_of_kernel_and_definition(cupy, rng, C, dtype, by_kernel):
    (x, w, b, dy), exact = draw(cupy, rng, dtype, (3, C), (C,), (C,), (3, C))
    with plain(not by_kernel[0]):
        y, cache = layernorm_forward(x + 3, w, b)
    assert cache.w is w and float_dtypes((cache.mu, cache.rstd)) == {"float32"}
    with plain(not by_kernel[1]):
        dx, grads = layernorm_backward(dy, cache)
    x = (x + 3).get().astype(float)
    expected, exact_cache = layernorm_forward(x, *exact[1:3])
    exact_dx, exact_grads = layernorm_backward(exact[3], exact_cache)
    expected = [expected, exact_dx, *exact_grads.values()]
    rounded_once([y, dx, grads["w"], grads["b"]], expected, dtype)


@needs_bfloat16
def test_the_plain_head_has_its_loss_in_float32(cupy, rng):
    (x, w), exact = draw(cupy, rng, "bfloat16", (2, 7, 16), (40, 16))
    targets = cupy.asarray(rng.integers(-1, 40, (2, 7)).astype(np.int32))
    with plain():
        loss, dx, grads = cross_entropy_both(x, targets, w)
    expected, exact_dx, exact_grads = cross_entropy_both(exact[0], targets.get(), exact[1])
    assert float_dtypes(loss) == {"float32"}
    np.testing.assert_allclose(float(loss), expected, rtol=1e-6)
    rounded_once([dx, grads["w"]], [exact_dx, exact_grads["w"]], "bfloat16")


def test_float32_and_whole_numbers_pass_as_they_are(cupy):
    def op(*args, **kwargs):
        seen.append((args, kwargs))
        return args[0]

    x, ids, seen = cupy.ones(3, "f"), cupy.zeros(3, np.int32), []
    half = x.astype("e")
    for args in ((ids, x), (x, half)):  # the first floating array decides
        assert in_float32(op, args, {"w": half}) is args[0]
        assert seen.pop() == (args, {"w": half})
    assert in_float32(op, (half, ids), {}) is half  # not a copy
    assert seen[0][0][0].dtype == np.float32 and seen[0][0][1] is ids


@needs_bfloat16
def test_plain_mode_trains_in_bfloat16(cupy):
    """Every op runs in float32 and is rounded: no product of bfloat16 in three dimensions."""
    config = dataclasses.replace(CONFIG, rotary=True, bigram=True)
    expected, _ = losses(cupy, 2, config, dtype="bfloat16")
    with plain():
        found, _ = losses(cupy, 2, config, dtype="bfloat16")
    np.testing.assert_allclose(found, expected, rtol=UNIT["bfloat16"])
    assert (found != expected).any()
