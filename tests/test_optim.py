import math
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.backend import to_host
from minigpt.optim import AdamW, adamw_step, clip_scale, learning_rate
from minigpt.params import Params

SHAPES = {"wte": (3, 4), "ln": {"w": (4,), "b": (4,)}, "h": [{"w": (4, 2)}]}
SCHEDULE = SimpleNamespace(learning_rate=1e-3, min_lr=1e-4, warmup_iters=10, lr_decay_iters=50)


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
    options = (1e-2, 0.9, 0.99, 1e-8, weight_decay, step, scale)
    expected = [formula(*numbers, *options) for numbers in zip(*(p, g, m, v), strict=True)]
    for op in dict.fromkeys((adamw_step, adamw_step.reference)):
        arrays = [xp.array(x) for x in (p, g, m, v)]
        op(*arrays, *options)
        np.testing.assert_array_equal(to_host(arrays[1]), g)
        for x, y in zip((arrays[0], *arrays[2:]), zip(*expected, strict=True), strict=True):
            np.testing.assert_allclose(to_host(x), y, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("n", [0, 1, 70_001])
def test_adamw_in_float32_is_near_that_in_float64(rng, n):
    p, g, m, v = rng.standard_normal((4, n))
    arrays = p, g, m, v * v
    for op in dict.fromkeys((adamw_step, adamw_step.reference)):
        low, high = ([x.astype(dtype) for x in arrays] for dtype in (np.float32, np.float64))
        for x in (low, high):
            op(*x, 1e-2, 0.9, 0.99, 1e-8, 0.1, 5, 0.5)
        for x, y in zip(low, high, strict=True):
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)


def test_a_first_step_is_of_length_lr(rng):
    p, m, v = np.zeros((3, 9))
    g = rng.standard_normal(9)
    adamw_step(p, g, m, v, 1e-2, 0.9, 0.99, 1e-8, 0.1, 1)
    np.testing.assert_allclose(p, -1e-2 * np.sign(g), rtol=1e-6)


def make(rng, **options):
    params = Params(SHAPES, np, "float64")
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
    params, adamw = make(rng, beta1=0.8, beta2=0.95, weight_decay=0.1, eps=1e-6)
    p, decay = params.flat.copy(), np.where(np.arange(28) < 20, 0.1, 0.0)
    m, v = np.zeros((2, 28))
    for step in (1, 2, 3):
        g = rng.standard_normal(28)
        adamw.step(g, 0.01 * step, scale=0.7)
        for i in range(28):
            p[i], m[i], v[i] = formula(
                p[i], g[i], m[i], v[i], 0.01 * step, 0.8, 0.95, 1e-6, decay[i], step, 0.7
            )
    for x, y in ((params.flat, p), (adamw.m.flat, m), (adamw.v.flat, v)):
        np.testing.assert_allclose(x, y, rtol=1e-13)
    assert adamw.step_count == 3


@pytest.mark.parametrize("edges", [[0, 28], [0, 5, 20, 28], [0, 7, 23, 24, 28], [0, 0, 28, 28]])
def test_parts_in_any_order_make_the_same_step(rng, edges):
    grads = rng.standard_normal(28)
    flats = []
    for parts in (None, lambda fn, n: [fn(a, b) for a, b in zip(edges, edges[1:], strict=False)]):
        params, adamw = make(np.random.default_rng(1))
        adamw.step(grads, 0.01, parts=parts)
        adamw.step(grads, 0.01, scale=0.5, parts=parts)
        flats.append(params.flat)
    np.testing.assert_array_equal(*flats)


def test_clipping_brings_the_norm_to_its_limit_and_never_up():
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(4.0, 1.0) == 1 / (4 + 1e-6)
    assert clip_scale(0.0, 1.0) == 1.0
    assert clip_scale(1e9, 0.0) == 1.0  # 0 is no clipping


def test_learning_rate_warms_up_and_falls_like_a_cosine():
    rates = [learning_rate(step, SCHEDULE) for step in range(60)]
    np.testing.assert_allclose(rates[:10], [1e-3 * (i + 1) / 11 for i in range(10)], rtol=1e-15)
    assert rates[10] == 1e-3 and rates[50:] == [1e-4] * 10
    np.testing.assert_allclose(rates[30], (1e-3 + 1e-4) / 2, rtol=1e-12)
    for i in range(10, 51):
        expected = 1e-4 + 9e-4 * math.cos(math.pi * (i - 10) / 80) ** 2
        np.testing.assert_allclose(rates[i], expected, rtol=1e-12)


@pytest.mark.parametrize("warmup, last", [(0, 0), (0, 1), (5, 5), (5, 3)])
def test_learning_rate_of_a_schedule_without_a_cosine(warmup, last):
    config = SimpleNamespace(
        learning_rate=1.0, min_lr=0.1, warmup_iters=warmup, lr_decay_iters=last
    )
    rates = [learning_rate(step, config) for step in range(9)]
    assert all(0.1 <= r <= 1 for r in rates) and rates[-1] == 0.1
