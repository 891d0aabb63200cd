"""Attention on tensor cores: values in 16 bits, dropout's bits, order, and who else is called.

Where CuPy runs on a CPU, the instructions are emulated number by number, and what a copy under way
writes is NaN until it is waited for.
"""

import hashlib
import importlib

import numpy as np
import pytest

from minigpt.ops.attention import (
    attention_backward,
    attention_forward,
    merge_heads,
    split_heads,
)
from minigpt.ops.dropout import Rng, dropout_forward, keep_mask, threshold
from tests.backend.test_attention_cupy import definition, draw, on_device, passes
from tests.tools.dtypes import LOW, UNIT
from tests.tools.orders import assert_any_order

pytestmark = pytest.mark.cupy
RNG = Rng.of(1, 2)._replace(row=3)
TINY = {"float16": 2.0**-25, "bfloat16": 0.0}  # half of the smallest number
LAMBDA = 4  # Higham & Mary 2019: n additions are off by LAMBDA sqrt(n) UNIT, hardly ever by more
PORTABLE = ["attention_forward", "attention_backward_queries", "attention_backward_keys"]
FORWARD, QUERIES, KEYS = MMA = [name.replace("attention", "attention_mma") for name in PORTABLE]


@pytest.fixture
def attention(xp):
    """The module of the overrides, where they have tensor cores."""
    if xp is np:
        pytest.skip("needs --backend cupy")
    module = importlib.import_module("minigpt.backend.gpu.attention")
    if not module.has_tensor_cores(0):
        pytest.skip("needs tensor cores, or warps of 32")
    return module


@pytest.fixture
def kernels(attention, monkeypatch):
    """The names of the kernels that were launched, without their width."""
    launch, names = attention.launch, []

    def counted(name, *args):
        names.append(name.rpartition("_")[0])
        launch(name, *args)

    monkeypatch.setattr(attention, "launch", counted)
    return names


def bounds(xs, exact, w, dropout, dtype):
    """Return how far y, dq, dk and dv may be from the exact ones.

    To the type are rounded: weights and ds before they are mixed, and results, of which y goes on
    into delta = sum(dy * y). All else is in float32: scores of D products, hence weights that are
    off by `relative`, and delta.
    """
    q, k, v, dy = map(np.abs, xs)
    y, dq, dk, dv = exact
    D, u, tiny, u32 = q.shape[-1], UNIT[dtype], TINY[dtype], UNIT["float32"]
    scale, gain = 1 / np.sqrt(D), threshold(dropout)[1]
    size = (q @ k.swapaxes(2, 3)).max() * scale
    relative = 2 * (LAMBDA * np.sqrt(D) * u32 * size + 16 * u32)
    factor = dropout_forward(np.ones_like(w), dropout, RNG)[0]
    mixed = w * factor
    dw = xs[3] @ xs[2].swapaxes(2, 3) * factor
    delta = (xs[3] * y).sum(axis=-1, keepdims=True)
    ds = np.abs(w * (dw - delta))
    e_y = (u + relative) * (mixed @ v) + u * np.abs(y)
    e_y = (1 + 4 * u) * e_y + tiny * (1 + gain * v.sum(axis=2, keepdims=True))
    e_delta = (dy * (e_y + relative * np.abs(y))).sum(axis=-1, keepdims=True)
    e_ds = w * (e_delta + relative * (np.abs(dw) + np.abs(delta))) + (u + relative) * ds + tiny
    e_dv = (u + relative) * (mixed.swapaxes(2, 3) @ dy) + u * np.abs(dv)
    e_dv = (1 + 4 * u) * e_dv + tiny * (1 + gain * dy.sum(axis=2, keepdims=True))
    e_dq = scale * (e_ds + relative * ds) @ k + u * np.abs(dq)
    e_dk = scale * (e_ds + relative * ds).swapaxes(2, 3) @ q + u * np.abs(dk)
    return e_y, (1 + 4 * u) * e_dq + tiny, (1 + 4 * u) * e_dk + tiny, e_dv


def check(xp, xs, dtype, dropout=0.0, **options):
    """Compare both passes with the definition in float64."""
    options |= {"dropout": dropout, "rng": RNG if dropout else None}
    exact, cache = definition(*xs, **options)
    if options.get("key_mask") is not None:
        options["key_mask"] = xp.asarray(options["key_mask"])
    found, _ = passes(*on_device(xp, xs, dtype), **options)
    for x, y, bound in zip(found, exact, bounds(xs, exact, cache.w, dropout, dtype), strict=True):
        assert x.dtype == np.dtype(dtype)
        error = np.abs(x.get().astype(float) - y)
        assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("Tq, Tk", [(37, 37), (40, 102), (70, 41), (20, 88)])
def test_values(rng, xp, kernels, Tq, Tk, dtype):
    mask = rng.random((2, Tk)) < 0.7
    xs = draw(rng, 2, 2, Tq, Tk, 64, dtype)
    for options in ({}, {"causal": True}, {"causal": True, "key_mask": mask, "dropout": 0.3}):
        check(xp, xs, dtype, **options)
    assert kernels == 3 * MMA


@pytest.mark.parametrize("D", [8, 24, 32, 80, 128])
def test_values_of_other_heads(rng, xp, kernels, D):
    for Tq, Tk in ((37, 37), (20, 88)):
        mask = rng.random((2, Tk)) < 0.7
        xs = draw(rng, 2, 1, Tq, Tk, D, "float16")
        check(xp, xs, "float16", causal=True, key_mask=mask, dropout=0.3)
    assert kernels == 2 * MMA


@pytest.mark.parametrize("D", [32, 64, 128])
@pytest.mark.parametrize("T", [64, 65, 129])
def test_values_where_tiles_and_blocks_end(rng, xp, kernels, T, D):
    check(xp, draw(rng, 1, 1, T, T, D, "float16"), "float16", causal=True)
    assert kernels == MMA


@pytest.mark.parametrize("Tq, Tk", [(18, 40), (37, 37)])
def test_dropout_takes_the_weights_of_the_mask(rng, xp, kernels, Tq, Tk):
    kept = keep_mask((2, 2, Tq, Tk), 0.4, RNG, np)
    options = {"dropout": 0.4, "rng": RNG}
    q = np.zeros((2, 2, Tq, 128))  # sees all keys alike
    unit = np.broadcast_to(np.eye(40, 128), (2, 2, 40, 128))
    first = np.zeros_like(unit)
    first[..., 0] = 1
    # y_ij is the weight of key j for query i, and dv_ji what goes back through it.
    xs = on_device(xp, (q, first[:, :, :Tk], unit[:, :, :Tk], unit[:, :, :Tq]), "float16")
    (y, _, _, dv), _ = passes(*xs, **options)
    assert np.array_equal(y.get()[..., :Tk] != 0, kept)
    assert np.array_equal(dv.get()[..., :Tq] != 0, kept.swapaxes(2, 3))
    # dq_ij is ds_ij: below zero where the weight was dropped, and above where it was not.
    xs = on_device(xp, (q, unit[:, :, :Tk], first[:, :, :Tk], first[:, :, :Tq]), "float16")
    (_, dq, _, _), _ = passes(*xs, **options)
    assert np.array_equal(dq.get()[..., :Tk] > 0, kept) and dq.get()[..., :Tk].all()
    assert kernels == 2 * MMA


def test_lse_is_the_log_of_the_sum_of_exponentials(rng, xp, kernels):
    xs = draw(rng, 1, 2, 70, 50, 16, "float16")
    _, cache = attention_forward(*on_device(xp, xs[:3], "float16"), causal=True)
    s = xs[0] @ xs[1].swapaxes(2, 3) / 4
    total = (np.exp(s) * np.tril(np.ones((70, 50)), 50 - 70)).sum(axis=-1, keepdims=True)
    expected = np.where(total == 0, 0, np.log(np.where(total == 0, 1, total)))
    assert (total == 0).any() and cache.lse.dtype == np.float32
    np.testing.assert_allclose(cache.lse.get(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("Tq, Tk", [(70, 70), (30, 60)])
def test_the_future_changes_no_bit_of_the_past(rng, xp, kernels, Tq, Tk):
    q, k, v, dy = draw(rng, 1, 1, Tq, Tk, 32)
    now = Tq // 2
    future = now + Tk - Tq
    dy[:, :, now:] = 0
    before, _ = passes(*on_device(xp, (q, k, v, dy), "float16"), causal=True)
    k[:, :, future:], v[:, :, future:], q[:, :, now:] = 100, -1e4, 100
    after, _ = passes(*on_device(xp, (q, k, v, dy), "float16"), causal=True)
    for x, y, end in zip(before, after, (now, now, future, future), strict=True):
        assert x[:, :, :end].any() and x[:, :, :end].tobytes() == y[:, :, :end].tobytes()
    for grads in (before[1:], after[1:]):
        for x, end in zip(grads, (now, future, future), strict=True):
            assert not x[:, :, end:].any()
    assert kernels == 2 * MMA


def test_queries_that_see_nothing_give_and_get_nothing(rng, xp, kernels):
    mask = np.ones((2, 40), bool)
    mask[1] = False
    xs = on_device(xp, draw(rng, 2, 1, 150, 40, 16), "float16")
    found, _ = passes(*xs, causal=True, key_mask=xp.asarray(mask))
    y, dq, _, _ = found
    assert not y[0, :, :110].any() and not dq[0, :, :110].any() and y[0, :, 110:].all()
    assert all(xp.isfinite(x).all() and x[0].any() and not x[1].any() for x in found)
    assert kernels == MMA


def digest():
    """Return a hash of all results of one problem for each width of the kernels."""
    xp, total = importlib.import_module("cupy"), hashlib.sha256()
    rng = np.random.default_rng(1)
    for D in (16, 64, 128):
        xs = on_device(xp, draw(rng, 1, 2, 70, 70, D), "float16")
        for x in passes(*xs, causal=True, dropout=0.3, rng=RNG)[0]:
            total.update(x.get().tobytes())
    return total.hexdigest()


def test_the_same_bits_in_any_order_of_blocks_and_threads(kernels):
    assert_any_order(digest)
    assert kernels == 6 * MMA


def test_heads_are_neither_split_nor_merged_by_copies(rng, xp, kernels):
    B, H, T, D = 2, 3, 40, 16
    qkv, dy = on_device(xp, (rng.standard_normal((B, T, n * H * D)) for n in (3, 1)), "float16")
    xs = (*split_heads(qkv, 3, H), *split_heads(dy, 1, H))
    (y, *gradients), _ = passes(*xs, causal=True)
    assert merge_heads(y).data.ptr == y.data.ptr
    assert merge_heads(*gradients).data.ptr == gradients[0].data.ptr
    host = [x.get().astype(float) for x in xs]
    exact, cache = definition(*host, causal=True)
    allowed = bounds(host, exact, cache.w, 0.0, "float16")
    for x, right, bound in zip((y, *gradients), exact, allowed, strict=True):
        assert (np.abs(x.get() - right) <= bound).all()
    assert kernels == MMA


def shifted(xp, x):
    """Return a copy that begins 2 bytes behind a place where an array may begin."""
    whole = xp.empty(x.size + 1, x.dtype)
    whole[1:] = x.ravel()
    return whole[1:].reshape(x.shape)


def test_rows_that_are_not_aligned_go_to_the_portable_kernels(rng, xp, kernels):
    q, k, v, dy = on_device(xp, draw(rng, 1, 2, 20, 20, 16), "float16")
    passes(q, k, shifted(xp, v), dy)
    assert kernels == PORTABLE
    for D, gap in ((16, 4), (20, 4)):  # the steps of rows, and their ends
        kernels.clear()
        xs = on_device(xp, draw(rng, 1, 2, 20, 20, D + gap), "float16")
        attention_forward(*(x[..., :D] for x in xs[:3]))
        assert kernels == PORTABLE[:1]


def test_either_pass_goes_on_from_the_other_kernels_forward_pass(rng, xp, kernels):
    xs = draw(rng, 1, 2, 20, 20, 16, "float16")
    q, k, v, dy = on_device(xp, xs, "float16")
    exact, cache = definition(*xs, causal=True)
    allowed = bounds(xs, exact, cache.w, 0.0, "float16")
    _, cache = attention_forward(q, k, v, causal=True)
    for x, right, bound in zip(
        attention_backward(shifted(xp, dy), cache), exact[1:], allowed[1:], strict=True
    ):
        assert (np.abs(x.get() - right) <= bound).all()
    assert kernels == [FORWARD, *PORTABLE[1:]]


def test_other_types_and_decoding_stay_with_the_portable_kernels(rng, xp, kernels):
    passes(*on_device(xp, draw(rng, 1, 2, 20, 20, 16)))
    assert kernels == PORTABLE
    kernels.clear()
    attention_forward(*on_device(xp, draw(rng, 1, 2, 16, 40, 16)[:3], "float16"), causal=True)
    assert kernels == ["attention_decode"]


@pytest.mark.parametrize("capability, found", [("75", False), ("80", True), ("120", True)])
def test_gpus_with_the_instructions(attention, monkeypatch, capability, found):
    class Device:
        def __init__(self, number):
            self.compute_capability = capability

    monkeypatch.setattr(attention.cupy.cuda.runtime, "is_hip", False)
    monkeypatch.setattr(attention.cupy.cuda, "Device", Device)
    assert attention.has_tensor_cores.__wrapped__(0) is found
