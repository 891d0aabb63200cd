"""Attention by tiles on the device: values, memory, launches, and what is left to the op."""

import contextlib
import importlib
import itertools

import numpy as np
import pytest

from minigpt.backend.attention_cache import LseCache
from minigpt.ops.attention import (
    AttentionCache,
    attention_backward,
    attention_forward,
    merge_heads,
    split_heads,
)
from minigpt.ops.dropout import Rng
from tests.tools.dtypes import LOW, UNIT
from tests.tools.gradcheck import assert_same

pytestmark = pytest.mark.cupy
RTOL = 2e-6  # float32, of the largest element
RNG = Rng.of(1, 2)._replace(row=3)


@pytest.fixture(autouse=True)
def on_the_device(xp):
    if xp is np:
        pytest.skip("needs --backend cupy")


@pytest.fixture
def kernels(monkeypatch):
    """The names of the kernels that were launched."""
    module = importlib.import_module("minigpt.backend.gpu.attention")
    launch, names = module.launch, []

    def counted(name, *args):
        names.append(name)
        launch(name, *args)

    monkeypatch.setattr(module, "launch", counted)
    return names


@contextlib.contextmanager
def fresh_pool(xp):
    """Take memory from a pool of its own: its total_bytes() are the most that were in use."""
    pool = xp.cuda.MemoryPool()
    with xp.cuda.using_allocator(pool.malloc):
        yield pool


def draw(rng, B, H, Tq, Tk, D, dtype="float32"):
    """Return q, k, v and dy in float64, of numbers that the dtype can hold."""
    sizes = [(B, H, T, D) for T in (Tq, Tk, Tk, Tq)]
    return tuple(rng.standard_normal(size).astype(dtype).astype(float) for size in sizes)


def passes(q, k, v, dy, **options):
    """Return y with the gradients, and the cache."""
    y, cache = attention_forward(q, k, v, **options)
    return (y, *attention_backward(dy, cache)), cache


def definition(q, k, v, dy, **options):
    y, cache = attention_forward.reference(q, k, v, **options)
    return (y, *attention_backward.reference(dy, cache)), cache


def on_device(xp, xs, dtype="float32"):
    return tuple(xp.asarray(x.astype(dtype)) for x in xs)


def size_in_pool(*shapes):
    """Bytes of such float32 arrays in CuPy's pool."""
    return sum(-(-4 * int(np.prod(shape)) // 512) * 512 for shape in shapes)


@pytest.mark.parametrize("D", [1, 16, 24, 64, 80, 128])
@pytest.mark.parametrize("Tq, Tk", [(1, 70), (37, 37), (70, 41), (5, 90)])
def test_values(rng, xp, kernels, D, Tq, Tk):
    xs = draw(rng, 2, 2, Tq, Tk, D)
    mask = rng.random((2, Tk)) < 0.7
    for options in ({}, {"causal": True}, {"causal": True, "key_mask": mask, "dropout": 0.3}):
        expected, _ = definition(*xs, **options, rng=RNG)
        if "key_mask" in options:
            options["key_mask"] = xp.asarray(mask)
        found, _ = passes(*on_device(xp, xs), **options, rng=RNG)
        assert_same(found, expected, RTOL)
    assert len(kernels) == 3 * 3


@pytest.mark.parametrize("T", [64, 65, 129])
def test_values_where_tiles_end(rng, xp, kernels, T):
    xs = draw(rng, 1, 2, T, T, 64)
    expected, _ = definition(*xs, causal=True)
    assert_same(passes(*on_device(xp, xs), causal=True)[0], expected, RTOL)
    assert len(kernels) == 3


def bounds(unit, xs, exact, weights):
    """Return how far 16 bits may be from y, dq, dk and dv: each is rounded once, at the end.

    delta = sum(dy * y) is of the rounded y, hence off by unit sum |dy y|, and that error goes
    through ds = -w delta into dq and dk. Sums in float32 err by RTOL at most. Below 2^-14 the
    numbers of float16 are 2^-24 apart.
    """
    q, k, _, dy = map(np.abs, xs)
    ds = unit * (dy * np.abs(exact[0])).sum(axis=-1, keepdims=True) * weights / q.shape[-1] ** 0.5
    carried = (0, ds @ k, ds.swapaxes(2, 3) @ q, 0)
    return [
        (unit + 2 * RTOL) * (np.abs(x) + error) + error + RTOL * np.abs(x).max() + 2.0**-25
        for x, error in zip(exact, carried, strict=True)
    ]


@pytest.mark.parametrize("D", [24, 64, 128])
@pytest.mark.parametrize("dtype", LOW)
def test_16_bits_are_rounded_once(rng, xp, kernels, monkeypatch, D, dtype):
    module = importlib.import_module("minigpt.backend.gpu.attention")
    monkeypatch.setattr(module, "has_tensor_cores", lambda device: False)
    xs = draw(rng, 2, 2, 50, 50, D, dtype)
    exact, cache = definition(*xs, causal=True)
    found, (*_, lse, _, _, _, _) = passes(*on_device(xp, xs, dtype), causal=True)
    assert {x.dtype for x in found} == {np.dtype(dtype)} and lse.dtype == np.float32
    for x, y, bound in zip(found, exact, bounds(UNIT[dtype], xs, exact, cache.w), strict=True):
        assert (np.abs(x.get().astype(float) - y) <= bound).all()
    assert len(kernels) == 3


def test_lse_is_the_log_of_the_sum_of_exponentials(rng, xp):
    xs = draw(rng, 2, 2, 70, 50, 16)
    mask = rng.random((2, 50)) < 0.7
    _, cache = passes(*on_device(xp, xs), causal=True, key_mask=xp.asarray(mask))
    s = xs[0] @ xs[1].swapaxes(2, 3) / 4
    seen = np.tril(np.ones((70, 50), bool), 50 - 70) & mask[:, None, None]
    total = (np.exp(s) * seen).sum(axis=-1, keepdims=True)
    assert (total == 0).any()
    expected = np.where(total == 0, 0, np.log(np.where(total == 0, 1, total)))
    np.testing.assert_allclose(cache.lse.get(), expected, rtol=0, atol=2e-6)
    assert isinstance(cache, LseCache)


def test_heads_are_neither_split_nor_merged_by_copies(rng, xp, kernels):
    B, H, T, D = 2, 3, 40, 16
    qkv, dy = on_device(xp, (rng.standard_normal((B, T, n * H * D)) for n in (3, 1)))
    xs = (*split_heads(qkv, 3, H), *split_heads(dy, 1, H))
    with fresh_pool(xp) as pool:
        (y, *gradients), _ = passes(*xs, causal=True)
        merged, dqkv = merge_heads(y), merge_heads(*gradients)
        lse_and_delta = 2 * size_in_pool((B, H, T))
        assert pool.total_bytes() == size_in_pool(y.shape, qkv.shape) + lse_and_delta
    assert merged.data.ptr == y.data.ptr and dqkv.data.ptr == gradients[0].data.ptr
    expected, _ = definition(*(x.get().astype(float) for x in xs), causal=True)
    assert_same((y, *gradients), expected, RTOL)
    assert_same((merged, dqkv), (merge_heads(expected[0]), merge_heads(*expected[1:])), RTOL)
    assert len(kernels) == 3


def test_gradients_of_cross_attention_merge_by_kind(rng, xp):
    memory = xp.asarray(rng.standard_normal((2, 7, 2 * 3 * 8)).astype(np.float32))
    (k, v), (q, dy) = split_heads(memory, 2, 3), on_device(xp, rng.standard_normal((2, 2, 3, 7, 8)))
    (_, dq, dk, dv), _ = passes(q, k, v, dy)
    assert merge_heads(dk, dv).data.ptr == dk.data.ptr
    assert merge_heads(dq).data.ptr == dq.data.ptr


@pytest.mark.parametrize("Tq", [1, 5])
def test_a_kv_cache_is_read_where_it_lies(rng, xp, kernels, Tq):
    B, H, T, D = 2, 3, 33, 16
    store = xp.full((2, B, H, 100, D), np.nan, np.float32)  # what is not filled yet
    store[:, :, :, :T] = xp.asarray(rng.standard_normal((2, B, H, T, D)))
    (q,) = on_device(xp, rng.standard_normal((1, B, H, Tq, D)))
    k, v = store[:, :, :, :T]
    with fresh_pool(xp) as pool:
        y, cache = attention_forward(q, k, v, causal=True)
        assert pool.total_bytes() == size_in_pool(y.shape, cache.lse.shape)
    expected = attention_forward.reference(*(x.get().astype(float) for x in (q, k, v)), causal=True)
    assert_same(y, expected[0], RTOL)
    assert kernels == ["attention_decode_32"]


def test_memory_grows_with_T_and_not_with_its_square(rng, xp):
    T, D = 1000, 8
    xs = on_device(xp, draw(rng, 1, 1, T, T, D))
    with fresh_pool(xp) as pool:
        passes(*xs, causal=True)
        found = pool.total_bytes()
    assert found == size_in_pool((T, D), (T, D), (T, 2 * D), (T,), (T,))
    assert found < 4 * T * T / 10


def test_same_input_same_bits(rng, xp):
    xs = on_device(xp, draw(rng, 2, 2, 90, 90, 16))
    options = {"causal": True, "dropout": 0.3, "rng": RNG}
    first, second = (passes(*xs, **options)[0] for _ in range(2))
    assert all(x.tobytes() == y.tobytes() for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("Tq, Tk", [(130, 130), (90, 150), (10, 60)])
def test_the_future_changes_no_bit_of_the_past(rng, xp, Tq, Tk):
    q, k, v, dy = draw(rng, 1, 2, Tq, Tk, 16)
    now = Tq // 2
    future = now + Tk - Tq
    dy[:, :, now:] = 0
    before, _ = passes(*on_device(xp, (q, k, v, dy)), causal=True)
    k[:, :, future:], v[:, :, future:], q[:, :, now:] = 1e5, -1e5, 1e5
    after, _ = passes(*on_device(xp, (q, k, v, dy)), causal=True)
    for x, y, end in zip(before, after, (now, now, future, future), strict=True):
        assert x[:, :, :end].any() and x[:, :, :end].tobytes() == y[:, :, :end].tobytes()
    for x, end in zip((*before[1:], *after[1:]), itertools.cycle((now, future, future))):
        assert not x[:, :, end:].any()


def test_queries_that_see_nothing_give_and_get_nothing(rng, xp):
    mask = np.ones((2, 40), bool)
    mask[1] = False
    xs = on_device(xp, draw(rng, 2, 2, 70, 40, 16))
    found, _ = passes(*xs, causal=True, key_mask=xp.asarray(mask))
    y, dq, _, _ = found
    assert not y[0, :, :30].any() and not dq[0, :, :30].any() and y[0, :, 30:].all()
    assert all(xp.isfinite(x).all() and x[0].any() and not x[1].any() for x in found)


@pytest.mark.parametrize(
    "size, dtype, rtol",
    [((2, 2, 9, 7, 16), "float64", 1e-13), ((1, 2, 9, 7, 130), "float32", RTOL)]
    + [((1, 2, 0, 7, 16), "float32", 0), ((1, 2, 9, 0, 16), "float32", 0)],
    ids=str,
)
def test_what_the_kernels_do_not_take_goes_to_the_definition(rng, xp, kernels, size, dtype, rtol):
    xs = draw(rng, *size)
    expected, _ = definition(*xs)
    found, cache = passes(*on_device(xp, xs, dtype))
    assert_same(found, expected, rtol)
    assert {x.dtype for x in found} == {np.dtype(dtype)}
    assert kernels == [] and isinstance(cache, AttentionCache)


def test_steps_within_a_vector_go_to_the_definition(rng, xp, kernels):
    q, k, v, dy = xs = draw(rng, 1, 2, 9, 9, 16)
    expected, _ = definition(*xs)
    for i in range(4):
        arrays = list(on_device(xp, xs))
        arrays[i] = xp.asarray(np.repeat(xs[i], 2, axis=-1).astype(np.float32))[..., ::2]
        assert_same(passes(*arrays)[0], expected, RTOL)
    assert kernels == ["attention_decode_32"]  # with an odd dy only the backward pass is left


def test_weights_that_the_definition_kept_go_back_to_it(rng, xp, kernels):
    xs = draw(rng, 1, 2, 9, 9, 16)
    q, k, v, dy = on_device(xp, xs)
    expected, _ = definition(*xs)
    _, cache = attention_forward.reference(q, k, v)
    assert_same(attention_backward(dy, cache), expected[1:], RTOL)
    assert kernels == []
