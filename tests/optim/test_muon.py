import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from minigpt.backend import to_host
from minigpt.data.characters import CharTokenizer
from minigpt.model import encoder_decoder as seq2seq
from minigpt.model.checkpoint import load, save
from minigpt.model.init import init_params
from minigpt.optim.adamw import AdamW, in_one_range
from minigpt.optim.clipping import LOSS_SCALE, SKIPPED, STEPS
from minigpt.optim.muon import (
    COEFFICIENTS,
    ITERATIONS,
    MIN_SINGULAR,
    Muon,
    batched_product,
    orthogonalize,
)
from minigpt.params import Params
from minigpt.train.threads import Workers
from tests.tools.options import gpt_config

WIDE, TALL, SQUARE = (12, 40), (40, 12), (16, 16)
CONFIG = gpt_config(vocab_size=11, block_size=6, n_layer=3, n_head=2, n_embd=8, tie_head=False)
SEQ2SEQ = seq2seq.Seq2SeqConfig(
    vocab_size=11, source_vocab_size=13, block_size=6, n_layer=2, n_head=2, n_embd=8
)


def iterated(s):
    """What all steps make of a singular value, by the definition."""
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    return s


def spectrum(rng, shape, s):
    """A matrix with the singular values s, and its singular vectors."""
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return (u * s) @ vt, u, vt


@pytest.mark.cupy
@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE, (1, 5), (5, 1), (1, 1)])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(rng, xp, shape):
    s = np.geomspace(1, 1e-4, min(shape))
    x, u, vt = spectrum(rng, shape, s)
    expected = (u * iterated(s / np.linalg.norm(s))) @ vt
    for coarse in (False, True):
        y = to_host(orthogonalize(xp.array(x), coarse))
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)


def test_each_polynomial_is_the_best_for_what_the_one_before_leaves():
    low, high = MIN_SINGULAR, 1.0
    for a, b, c in COEFFICIENTS:
        turns = np.sqrt(np.roots([5 * c, 3 * b, a]))  # where the derivative is 0
        s = np.array([low, *sorted(turns), high])
        error = 1 - (a * s + b * s**3 + c * s**5)
        # Chebyshev: no odd polynomial of degree 5 errs less than one with four equal errors of
        # alternating signs.
        assert low < turns.min() and turns.max() < high
        np.testing.assert_allclose(error, error[0] * np.array([1, -1, 1, -1]), atol=2e-5)
        low, high = 1 - error[0], 1 + error[0]
    assert low > 0.80 and high < 1.20
    s = iterated(np.geomspace(MIN_SINGULAR, 1, 100_001))
    assert s.min() > 0.80 and s.max() < 1.20


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE, (128, 512)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_singular_values_come_near_to_one(rng, shape, dtype):
    s = np.geomspace(1, 2e-2, min(shape))
    x, u, vt = spectrum(rng, shape, s)
    y = orthogonalize(x.astype(dtype))
    assert y.dtype == dtype
    found = np.linalg.svd(y, compute_uv=False)
    assert found.min() > 0.80 and found.max() < 1.20
    direction = np.trace((u @ vt).T @ y) / (np.linalg.norm(u @ vt) * np.linalg.norm(y))
    assert direction > 0.99


@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (512, 128)])
def test_float32_loses_little_even_where_singular_values_are_tiny(rng, shape):
    s = np.geomspace(1, 1e-8, min(shape))
    x, u, vt = spectrum(rng, shape, s)
    y = orthogonalize(x.astype(np.float32))
    expected = (u * iterated(s / np.linalg.norm(s))) @ vt
    assert np.linalg.norm(y - expected, 2) < 5e-4


@pytest.mark.parametrize("scale", [1e-9, 3.0, 1e9])
def test_the_scale_of_the_gradient_does_not_matter(rng, scale):
    x = rng.standard_normal(WIDE)
    np.testing.assert_allclose(orthogonalize(scale * x), orthogonalize(x), rtol=1e-6, atol=1e-9)


@pytest.mark.cupy
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-6), ("float64", 1e-14)])
def test_products_of_stacks_are_those_of_their_matrices(rng, xp, dtype, rtol):
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((2, 3, 4, 9), (2, 3, 9, 5)))
    found = batched_product(xp.asarray(a), xp.asarray(b))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        to_host(found), batched_product.reference(a, b), rtol=0, atol=9 * rtol
    )


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_stays_zero(xp, dtype):
    y = to_host(orthogonalize(xp.zeros((2, 3, 4), dtype=dtype)))
    np.testing.assert_array_equal(y, np.zeros((2, 3, 4)))


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
def test_rotations_and_transposition_go_through(rng, shape):
    x = rng.standard_normal(shape)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in shape)
    y = orthogonalize(x)
    np.testing.assert_allclose(orthogonalize(left @ x), left @ y, atol=1e-11)
    np.testing.assert_allclose(orthogonalize(x @ right), y @ right, atol=1e-11)
    np.testing.assert_allclose(orthogonalize(x.T), y.T, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
def test_a_stack_is_its_matrices_one_by_one(rng, shape, dtype):
    x = rng.standard_normal((3, 2, *shape)).astype(dtype).swapaxes(0, 1)
    before = x.copy()
    y = orthogonalize(x)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(y[i], orthogonalize(x[i]))
    np.testing.assert_array_equal(x, before)


def test_a_tall_matrix_takes_no_more_memory_than_a_wide_one(rng):
    peaks = []
    for shape in ((2, 1000), (1000, 2)):
        x = rng.standard_normal(shape)
        tracemalloc.start()
        orthogonalize(x)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 10 * x.nbytes


def made(name, dtype="float64", xp=np, **options):
    """A model's Params, their Muon, and gradients for it."""
    params = init_params({"gpt": CONFIG, "seq2seq": SEQ2SEQ}[name], 3, xp, dtype)
    grads = params.zeros_like()
    grads.flat[...] = xp.array(np.random.default_rng(5).standard_normal(params.size))
    return params, Muon(params, **options), grads


def matrices(xs):
    """{(name, part): that matrix in the tree of xs} of all that Muon is to step; a view."""
    found = {}
    for name, view in xs.leaves():
        if view.ndim == 2 and "h" in name.split("."):
            n = 3 if "c_attn" in name else 2 if "c_kv" in name else 1
            width = view.shape[1] // n
            for i in range(n):
                found[name, i] = to_host(view[:, i * width : (i + 1) * width])
    return found


@pytest.mark.cupy
@pytest.mark.parametrize("name, n", [("gpt", 3 * 6), ("seq2seq", 2 * 6 + 2 * (6 + 4))])
def test_steps_are_those_of_the_formulas(xp, name, n):
    params, muon, grads = made(name, xp=xp, weight_decay=0.1, momentum=0.9, max_norm=0.7)
    w = {key: x.copy() for key, x in matrices(params).items()}
    m = {key: np.zeros_like(x) for key, x in w.items()}
    for lr, size in ((0.01, 1.0), (0.02, 1e-3), (0.005, 2.0)):
        flat = size * np.random.default_rng(int(1000 * lr)).standard_normal(params.size)
        grads.flat[...] = xp.array(flat)
        muon.step(grads.flat, lr)
        g, scale = matrices(grads), min(1.0, 0.7 / (np.linalg.norm(flat) + 1e-6))
        for key in w:
            m[key] = 0.9 * m[key] + 0.1 * scale * g[key]
            u, s, vt = np.linalg.svd(0.9 * m[key] + 0.1 * scale * g[key], full_matrices=False)
            u = (u * iterated(s / np.linalg.norm(s))) @ vt
            w[key] = w[key] * (1 - 0.1 * lr) - lr * 0.2 * math.sqrt(max(u.shape)) * u
    assert len(w) == n and muon.step_count == muon.state[STEPS] == 3
    assert not any(x.any() for x in matrices(muon.v).values())
    for expected, found in ((w, matrices(params)), (m, matrices(muon.m))):
        for key in w:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-7, atol=1e-10)


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["gpt", "seq2seq"])
def test_all_else_is_stepped_as_by_adamw_alone(xp, name, dtype):
    options = {"beta1": 0.8, "beta2": 0.98, "weight_decay": 0.1, "eps": 1e-6, "max_norm": 1.0}
    params, muon, grads = made(name, dtype, xp, **options)
    others, _, _ = made(name, dtype, xp)
    adamw = AdamW(others, **options)
    for optimizer in (muon, adamw):
        optimizer.step(grads.flat, 0.01)
        optimizer.step(grads.flat / 64, 0.02)
    for mine, its in ((params, others), (muon.m, adamw.m), (muon.v, adamw.v)):
        inside = {key for key, _ in matrices(mine)}
        for (key, x), (_, y) in zip(mine.leaves(), its.leaves(), strict=True):
            if key not in inside:
                np.testing.assert_array_equal(to_host(x), to_host(y))


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_that_overflowed_changes_nothing(xp, dtype):
    params, _, grads = made("gpt", dtype, xp)
    half = Params(params.shapes, xp, "float16")
    muon = Muon(params, half_params=half, loss_scaling=True)
    muon.step(muon.loss_scale * grads.flat, 0.01)
    np.testing.assert_array_equal(to_host(half.flat), to_host(params.flat).astype("float16"))
    flats = params.flat, muon.m.flat, muon.v.flat, half.flat
    before, scale = [to_host(x).copy() for x in flats], float(muon.loss_scale)
    for bad in (np.inf, np.nan):
        grads.flat[7] = bad
        with np.errstate(invalid="ignore"):
            muon.step(grads.flat, 0.01)
        for x, y in zip(flats, before, strict=True):
            np.testing.assert_array_equal(to_host(x), y)
    assert muon.state[SKIPPED] == 2 and muon.state[LOSS_SCALE] == scale / 4


def test_weight_decay_spares_gains_and_biases():
    params, muon, grads = made("gpt", weight_decay=0.5)
    before, grads.flat[...] = params.flat.copy(), 0
    muon.step(grads.flat, 0.1)
    n = params.decayed
    np.testing.assert_allclose(params.flat[:n], before[:n] * (1 - 0.1 * 0.5), rtol=1e-14)
    np.testing.assert_array_equal(params.flat[n:], before[n:])


def after(name, dtype, parallel_for):
    """Weights and moments after two steps."""
    params, muon, grads = made(name, dtype, max_norm=1.0)
    grads.flat[...] = np.rint(2 * grads.flat)  # sums of squares are exact, in any order
    muon.step(grads.flat, 0.01, parallel_for)
    muon.step(grads.flat / 2, 0.02, parallel_for)
    return params.flat, muon.m.flat, muon.v.flat


def pieces(n_pieces, backwards):
    """A `parallel_for` that cuts into that many ranges."""

    def parallel_for(fn, n):
        order = reversed(range(n_pieces)) if backwards else range(n_pieces)
        done = {i: fn(n * i // n_pieces, n * (i + 1) // n_pieces) for i in order}
        return [done[i] for i in range(n_pieces)]

    return parallel_for


@pytest.mark.cupy
def test_a_checkpoint_holds_all_that_the_next_step_depends_on(tmp_path, xp):
    params, muon, grads = made("gpt", "float32", xp, max_norm=1.0)
    muon.step(grads.flat, 0.01)
    path, tokenizer = tmp_path / "a.safetensors", CharTokenizer.from_text("abcdefghijk")
    save(path, params, CONFIG, tokenizer=tokenizer, state={}, optimizer=muon)
    found = load(path, xp)
    again = Muon(found.params, max_norm=1.0)
    for name, moment in found.optimizer_arrays.items():
        getattr(again, name).flat[...] = moment.flat
    again.restore(dict(enumerate(to_host(muon.state).tolist())))
    for optimizer in (muon, again):
        optimizer.step(2 * grads.flat, 0.02)
    for x, y in ((params, found.params), (muon.m, again.m), (muon.v, again.v)):
        np.testing.assert_array_equal(to_host(x.flat), to_host(y.flat))


@pytest.mark.parametrize("name", ["gpt", "seq2seq"])
@pytest.mark.parametrize("n_pieces, backwards", [(1, False), (2, True), (7, True), (1000, False)])
def test_parts_in_any_order_make_the_same_step(name, n_pieces, backwards):
    expected = after(name, "float32", in_one_range)
    for x, y in zip(after(name, "float32", pieces(n_pieces, backwards)), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads_makes_the_same_step(threads):
    expected = after("seq2seq", "float32", in_one_range)
    with Workers(threads) as workers:
        found = after("seq2seq", "float32", workers.ranges)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_work_is_shared_evenly(monkeypatch):
    params = init_params(dataclasses.replace(CONFIG, n_layer=8), 3, np, "float32")
    work = []

    def recorded(x, coarse):
        small, large = sorted(x.shape[-2:])
        product = x.size // large * small**2  # multiplications in one of the Gram matrices
        work[-1] += product * (2 * large // small + 4 * ITERATIONS - 3)
        return orthogonalize(x, coarse)

    def parallel_for(fn, n):
        for start, stop in ((0, n // 2), (n // 2, n)):
            work.append(0)
            yield fn(start, stop)

    monkeypatch.setattr("minigpt.optim.muon.orthogonalize", recorded)
    Muon(params).step(params.flat, 0.01, lambda fn, n: list(parallel_for(fn, n)))
    norm, matrices, rest = work[:2], work[2:4], work[4:]
    assert norm == rest == [0, 0]
    assert 0.9 < matrices[0] / matrices[1] < 1.1


def test_a_model_of_one_layer_and_params_without_blocks():
    params = Params({"wte": (3, 4), "h": [{"mlp": {"c_fc": {"w": (4, 8)}}}]}, np, "float64")
    assert [(k.layers, k.rows, k.columns) for k in Muon(params).groups] == [(1, 4, 8)]
    params = Params({"wte": (3, 4), "ln_f": {"w": (4,)}}, np, "float64")
    muon, adamw = Muon(params), AdamW(Params(params.shapes, np, "float64"))
    for optimizer in (muon, adamw):
        optimizer.step(np.arange(16.0), 0.1)
    np.testing.assert_array_equal(params.flat, adamw.params.flat)
