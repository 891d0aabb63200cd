import math

import numpy as np
import pytest

from minigpt.backend import to_host
from minigpt.backend.cpu.blocking import BLOCK
from minigpt.optim.adamw import AdamW, adamw_step, in_one_range
from minigpt.optim.clipping import (
    GOOD_STEPS,
    GRAD_NORM,
    GRAD_SCALE,
    GROWTH_INTERVAL,
    INITIAL_LOSS_SCALE,
    LOSS_SCALE,
    MAX_LOSS_SCALE,
    SKIPPED,
    STEPS,
    clip,
)
from minigpt.params import Params

SHAPES = {"wte": (3, 4), "ln": {"w": (4,), "b": (4,)}, "h": [{"w": (4, 2)}]}


def formula(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):
    """Loshchilov & Hutter 2019, algorithm 2, for one number, with torch's lr * weight_decay."""
    g = scale * g
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    mhat, vhat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * weight_decay * p - lr * mhat / (math.sqrt(vhat) + eps), m, v


@pytest.mark.cupy
@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("weight_decay, scale", [(0.0, 1.0), (0.1, 1.0), (0.1, 0.3)])
def test_adamw_is_its_formula(rng, xp, step, weight_decay, scale):
    p, g, m, v = rng.standard_normal((4, 21))
    v, g[:3] = v * v, 0
    options = (1e-2, 0.9, 0.99, 1e-8)
    expected = [
        formula(*numbers, *options, weight_decay * (i < 13), step, scale)
        for i, numbers in enumerate(zip(*(p, g, m, v), strict=True))
    ]
    for op in dict.fromkeys((adamw_step, adamw_step.reference)):
        arrays = [xp.array(x) for x in (p, g, m, v)]
        op(*arrays, *options, weight_decay, 13, step, scale)
        np.testing.assert_array_equal(to_host(arrays[1]), g)
        for x, y in zip((arrays[0], *arrays[2:]), zip(*expected, strict=True), strict=True):
            np.testing.assert_allclose(to_host(x), y, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("n", [0, 1, BLOCK + 4_465])
def test_adamw_in_float32_is_near_that_in_float64(rng, n):
    p, g, m, v = rng.standard_normal((4, n))
    arrays = p, g, m, v * v
    for op in dict.fromkeys((adamw_step, adamw_step.reference)):
        low, high = ([x.astype(dtype) for x in arrays] for dtype in (np.float32, np.float64))
        for x in (low, high):
            op(*x, 1e-2, 0.9, 0.99, 1e-8, 0.1, n // 2, 5, 0.5)
        for x, y in zip(low, high, strict=True):
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)


def test_a_first_step_is_of_length_lr(rng):
    p, m, v = np.zeros((3, 9))
    g = rng.standard_normal(9)
    adamw_step(p, g, m, v, 1e-2, 0.9, 0.99, 1e-8, 0.1, 9, 1)
    np.testing.assert_allclose(p, -1e-2 * np.sign(g), rtol=1e-6)


@pytest.mark.cupy
@pytest.mark.parametrize("beta1, beta2", [(0.9, 0.999), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_step_and_scale_may_be_arrays(rng, xp, dtype, beta1, beta2):
    arrays = [xp.asarray(np.abs(x), dtype) for x in rng.standard_normal((4, 21))]
    for op in dict.fromkeys((adamw_step, adamw_step.reference)):
        this, other = ([x.copy() for x in arrays] for _ in range(2))
        op(*this, 1e-2, beta1, beta2, 1e-8, 0.1, 9, 3, 0.25)
        step, scale = (xp.asarray(x, dtype) for x in (3, 0.25))
        op(*other, 1e-2, beta1, beta2, 1e-8, 0.1, 9, step, scale)
        for x, y in zip(this, other, strict=True):
            assert x.dtype == y.dtype == dtype
            np.testing.assert_allclose(to_host(x), to_host(y), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.cupy
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_scale_that_is_not_finite_changes_no_bit(rng, xp, dtype, scale):
    arrays = [xp.asarray(x, dtype) for x in rng.standard_normal((4, 33))]
    arrays[1][5], half = math.nan, xp.zeros(33, "float16")
    half[...] = arrays[0]
    before = [to_host(x).tobytes() for x in (*arrays, half)]
    for op in dict.fromkeys((adamw_step, adamw_step.reference)):
        for given in (scale, xp.asarray(scale, dtype)):
            with np.errstate(invalid="ignore"):
                op(*arrays, 1e-2, 0.9, 0.99, 1e-8, 0.1, 9, 3, given, half)
            assert [to_host(x).tobytes() for x in (*arrays, half)] == before


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_copy_is_the_parameters_rounded(rng, xp, dtype):
    n = BLOCK + 4_465
    for op in dict.fromkeys((adamw_step, adamw_step.reference)):
        p, g, m, v = (xp.asarray(np.abs(x), dtype) for x in rng.standard_normal((4, n)))
        half = xp.zeros(n, "float16")
        op(p, g, m, v, 1e-2, 0.9, 0.99, 1e-8, 0.1, 9, 3, 0.5, half)
        np.testing.assert_array_equal(to_host(half), to_host(p).astype(np.float16))


def make(rng, **options):
    params = Params(SHAPES, np, "float64")
    assert params.decayed == 20
    params.flat[...] = rng.standard_normal(params.size)
    return params, AdamW(params, **options)


def test_only_matrices_and_embeddings_decay(rng):
    params, adamw = make(rng, weight_decay=0.5)
    before = params.flat.copy()
    adamw.step(np.zeros(params.size), 0.1)
    np.testing.assert_allclose(params.flat[:20], before[:20] * (1 - 0.1 * 0.5), rtol=1e-15)
    np.testing.assert_array_equal(params.tree["ln"]["w"], before[20:24])
    np.testing.assert_array_equal(params.flat[20:], before[20:])
    assert adamw.step_count == 1


def test_steps_are_those_of_the_formula(rng):
    params, adamw = make(rng, beta1=0.8, beta2=0.95, weight_decay=0.1, eps=1e-6, max_norm=0.7)
    p, decay = params.flat.copy(), np.where(np.arange(28) < 20, 0.1, 0.0)
    m, v = np.zeros((2, 28))
    for step in (1, 2, 3):
        g = rng.standard_normal(28) * (0.01 if step == 2 else 1)
        adamw.step(g, 0.01 * step)
        norm = np.sqrt((g * g).sum())
        scale = 1.0 if step == 2 else 0.7 / (norm + 1e-6)
        for i in range(28):
            p[i], m[i], v[i] = formula(
                p[i], g[i], m[i], v[i], 0.01 * step, 0.8, 0.95, 1e-6, decay[i], step, scale
            )
        np.testing.assert_allclose(adamw.state[GRAD_NORM], norm, rtol=1e-14)
    for x, y in ((params.flat, p), (adamw.m.flat, m), (adamw.v.flat, v)):
        np.testing.assert_allclose(x, y, rtol=1e-13)
    assert adamw.step_count == adamw.state[STEPS] == 3
    assert adamw.loss_scale == adamw.state[LOSS_SCALE] == 1


@pytest.mark.parametrize("edges", [[0, 28], [0, 5, 20, 28], [0, 7, 23, 24, 28], [0, 0, 28, 28]])
@pytest.mark.parametrize("backwards", [False, True])
def test_ranges_in_any_order_make_the_same_step(rng, edges, backwards):
    ranges = list(enumerate(zip(edges, edges[1:], strict=False)))
    grads = rng.integers(-9, 9, 28).astype(float)  # sums of squares are exact, in any order
    flats = []

    def cut(fn, n):
        done = {i: fn(*ends) for i, ends in (reversed(ranges) if backwards else ranges)}
        return [done[i] for i in range(len(ranges))]

    for parallel_for in (in_one_range, cut):
        params, adamw = make(np.random.default_rng(1), max_norm=1.0)
        adamw.step(grads, 0.01, parallel_for)
        adamw.step(grads / 2, 0.01, parallel_for)
        flats.append(params.flat)
    np.testing.assert_array_equal(*flats)


def state_of(xp, dtype="float64", loss_scale=1.0):
    state = xp.zeros(6, dtype)
    state[LOSS_SCALE] = loss_scale
    return state


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_brings_the_norm_to_its_limit_and_never_up(xp, dtype):
    for op in dict.fromkeys((clip, clip.reference)):
        for squares, max_norm, loss_scale, scale in (
            ([0.25], 1.0, 1.0, 1.0),
            ([3.0, 4.0, 9.0], 1.0, 1.0, 1 / (4 + 1e-6)),
            ([0.0], 1.0, 1.0, 1.0),
            (16.0, 0.0, 1.0, 1.0),  # 0 is no clipping
            ([16.0], 0.0, 8.0, 1 / 8),
            ([16.0, 0.0], 0.1, 8.0, 0.1 / (0.5 + 1e-6) / 8),
        ):
            state = state_of(xp, dtype, loss_scale)
            op(state, xp.asarray(squares, dtype), max_norm)
            state, rtol = to_host(state), 4 * np.finfo(dtype).eps
            np.testing.assert_allclose(state[GRAD_SCALE], scale, rtol=rtol)
            np.testing.assert_allclose(
                state[GRAD_NORM], np.sum(squares) ** 0.5 / loss_scale, rtol=rtol
            )
            assert list(state[[LOSS_SCALE, GOOD_STEPS, STEPS, SKIPPED]]) == [loss_scale, 0, 1, 0]


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_scale_halves_on_overflow_and_doubles_after_good_steps(xp, dtype):
    for op in dict.fromkeys((clip, clip.reference)):
        state, came = state_of(xp, dtype, 4.0), []
        for square in (1, math.inf, 1, 1, math.nan, 1, 1, 1, 1, math.inf, math.inf, math.inf):
            op(state, xp.asarray([square, 1], dtype), 0.5, 3)
            host = to_host(state)
            came.append(tuple(host[[LOSS_SCALE, GOOD_STEPS, STEPS, SKIPPED]]))
            assert np.isfinite(host[GRAD_NORM]) == np.isfinite(host[GRAD_SCALE]) == (square == 1)
            assert square == 1 or np.isnan(host[GRAD_SCALE])
        assert came == [
            *((4, 1, 1, 0), (2, 0, 1, 1), (2, 1, 2, 1), (2, 2, 3, 1), (1, 0, 3, 2)),
            *((1, 1, 4, 2), (1, 2, 5, 2), (2, 0, 6, 2), (2, 1, 7, 2)),
            *((1, 0, 7, 3), (1, 0, 7, 4), (1, 0, 7, 5)),
        ]
        state = state_of(xp, dtype, MAX_LOSS_SCALE)
        op(state, xp.asarray([1.0], dtype), 0.5, 1)
        assert to_host(state)[LOSS_SCALE] == MAX_LOSS_SCALE


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mixed_precision_skips_what_overflowed_and_goes_on(rng, xp, dtype):
    params = Params(SHAPES, xp, dtype)
    params.flat[...] = xp.asarray(rng.standard_normal(28), dtype)
    alone = Params(SHAPES, xp, dtype, params.flat.copy())
    half = Params(SHAPES, xp, "float16")
    mixed = AdamW(params, max_norm=0.5, half_params=half, loss_scaling=True)
    plain = AdamW(alone, max_norm=0.5)
    scales = []
    for step in range(6):
        scales.append(float(mixed.loss_scale))
        g = xp.asarray(rng.standard_normal(28), dtype)
        overflow = step in (0, 3)
        if not overflow:
            plain.step(g, 0.01)
        scaled = g * mixed.loss_scale
        scaled[7] = math.inf if overflow else scaled[7]
        mixed.step(scaled, 0.01)
        np.testing.assert_array_equal(to_host(half.flat), to_host(params.flat).astype(np.float16))
    assert scales == [INITIAL_LOSS_SCALE] + 3 * [INITIAL_LOSS_SCALE / 2] + 2 * [
        INITIAL_LOSS_SCALE / 4
    ]
    for x, y in ((params, alone), (mixed.m, plain.m), (mixed.v, plain.v)):
        rtol = 20 * np.finfo(dtype).eps
        np.testing.assert_allclose(to_host(x.flat), to_host(y.flat), rtol=rtol, atol=rtol)
    assert list(to_host(mixed.state)[[GOOD_STEPS, STEPS, SKIPPED]]) == [2, 4, 2]
    assert mixed.step_count == 6


def test_a_state_that_is_restored_goes_on_to_the_bit(rng):
    ends = []
    for again in (False, True):
        half = Params(SHAPES, np, "float16")
        params, adamw = make(np.random.default_rng(1), half_params=half, loss_scaling=True)
        for step in range(4):
            if again and step == 2:
                numbers, m, v = dict(enumerate(adamw.state.tolist())), adamw.m, adamw.v
                half.flat[...] = 0
                adamw = AdamW(params, half_params=half, loss_scaling=True)
                adamw.m, adamw.v = m, v
                adamw.restore(numbers)
                np.testing.assert_array_equal(half.flat, params.flat.astype(np.float16))
            adamw.step(np.full(28, math.inf if step == 1 else 3.0 + step), 0.01)
        ends.append((params.flat.tobytes(), half.flat.tobytes(), adamw.state.tobytes()))
    assert ends[0] == ends[1]


def test_a_state_starts_afresh_where_nothing_is_given():
    params = Params(SHAPES, np, "float32")
    adamw = AdamW(params, loss_scaling=True)
    adamw.restore({STEPS: 5, SKIPPED: 2})
    assert (
        list(adamw.state) == [INITIAL_LOSS_SCALE, 0, 5, 2, 0, 0]
        and adamw.loss_scale == INITIAL_LOSS_SCALE
    )
    alone = AdamW(params)
    alone.restore({LOSS_SCALE: 8.0, STEPS: 5})
    assert list(alone.state) == [1, 0, 5, 0, 0, 0]
    for _ in range(GROWTH_INTERVAL + 1):
        alone.step(np.zeros(28, np.float32), 0.01)
    assert alone.state[LOSS_SCALE] == 1 and alone.loss_scale == 1.0


@pytest.mark.cupy
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_step_whose_loss_is_not_finite_is_skipped(xp, loss):
    for given in (loss, xp.asarray(loss, np.float32)):
        state = xp.ones(6, np.float32)
        clip(state, xp.ones(3, np.float32), 1.0, 0, given)
        host = to_host(state)
        assert (host[STEPS], host[SKIPPED]) == (1, 2) and not np.isfinite(host[GRAD_SCALE])
    clip(state, xp.ones(3, np.float32), 1.0, 0, xp.asarray(3.0, np.float32))
    assert to_host(state)[STEPS] == 2
