"""The LM head with its loss on CuPy: bounds on its errors, chunks, bits, what it is not for."""

import numpy as np
import pytest

from minigpt.ops import cross_entropy
from minigpt.ops.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_both,
    cross_entropy_forward,
)
from tests.tools.calling import is_float
from tests.tools.dtypes import DTYPES, UNIT

cupy = pytest.importorskip("cupy", reason="needs CuPy", exc_type=ImportError)
kernels = pytest.importorskip("minigpt.backend.gpu.cross_entropy")
pytestmark = pytest.mark.cupy

TINY = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}  # half of the smallest number
LAMBDA = 4  # Higham & Mary 2019: n additions are off by LAMBDA sqrt(n) UNIT, hardly ever by more


def padded(V):
    """The row length of V logits."""
    return 64 * -(-V // 64)


@pytest.fixture
def launched(monkeypatch):
    """(name of the kernel, rows) of every launch."""
    launched, launch = [], kernels.launch

    def record(name, dtype, grid, *args):
        launched.append((name, *grid))
        launch(name, dtype, grid, *args)

    monkeypatch.setattr(kernels, "launch", record)
    return launched


def inputs(rng, dtype="float32", shape=(2, 6), V=65, C=16, bias=True):
    """x, targets (the last of each row is ignored), w, b on the device."""
    x, w, b = (cupy.asarray(rng.standard_normal(s), dtype) for s in ((*shape, C), (V, C), V))
    targets = rng.integers(0, V, shape, dtype=np.int32)
    targets[..., -1] = -1
    return x, cupy.asarray(targets), w, b if bias else None


def bits(loss, dx, grads):
    """What cross_entropy_both returns, as bytes."""
    return [array.get().tobytes() for array in (loss, dx, *grads.values())]


def host64(arrays):
    host = [None if x is None else x.get() for x in arrays]
    return [x.astype("d") if x is not None and is_float(x) else x for x in host]


def bounds(x, targets, w, b, dtype, factor):
    """Bounds on the errors of lse, dx, dw and db, element by element, for float64 inputs.

    Products are summed in float32 and rounded to dtype, the rest is done in float32; dlogits are
    rounded to dtype once more. What all chunks add to, dw and db, is rounded at the end.
    """
    u, u32 = UNIT[dtype], UNIT["float32"]
    few = LAMBDA * u32 * np.sqrt(x.shape[1])
    logits = x @ w.T
    error = u * np.abs(logits) + few * (np.abs(x) @ np.abs(w).T)
    logits += 0 if b is None else b
    lse = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(logits - lse)
    # exp and log of CUDA and of C are within 2 units; a difference of size |z| is off by u32 |z|
    off_lse = error.max(axis=1, keepdims=True) + 16 * u32 * (1 + np.abs(lse))
    off = p * (error + off_lse + u32 * (np.abs(logits - lse) + 8)) * factor
    d = (p - (np.arange(len(w)) == targets[:, None])) * factor
    off += u * np.abs(d) + TINY[dtype]
    off[targets < 0], d[targets < 0] = 0, 0

    def product(off, d, other):
        size = np.abs(d) @ np.abs(other)
        sums = LAMBDA * u32 * np.sqrt(d.shape[1]) * size
        return off @ np.abs(other) + sums + u * size + TINY[dtype]

    off_dx = product(off, d, w)
    off_dw, off_db = (product(off.T, d.T, y) for y in (x, np.ones((len(x), 1))))
    return off_lse, off_dx, off_dw, off_db[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("V, rows", [(2, 12), (7, 5), (65, 12), (65, 1), (1000, 5), (50257, 5)])
def test_errors_are_those_of_rounding(rng, monkeypatch, launched, dtype, bias, rows, V):
    monkeypatch.setattr(kernels, "most_logits", lambda size: (rows + 1) * padded(V) - 1)
    arrays = inputs(rng, dtype, V=V, bias=bias)
    loss, came_dx, came = cross_entropy_both(*arrays, count=7, dloss=2.0)
    sizes = [min(rows, 12 - start) for start in range(0, 12, rows)]
    assert launched == [("cross_entropy", n) for n in sizes]

    x, targets, w, b = host64(arrays)
    expected, reference = cross_entropy_forward.reference(x, targets, w, b, count=7)
    dx, grads = cross_entropy_backward.reference(2.0, reference)
    off = bounds(x.reshape(12, -1), targets.ravel(), w, b, dtype, 2 / 7)
    _, cache = cross_entropy_forward(*arrays, count=7)
    assert loss.dtype == cache.lse.dtype == np.float32
    assert abs(float(loss) - expected) <= 2 * off[0].sum() / 7
    came = dict(came, dx=came_dx, lse=cache.lse)
    wanted = dict(grads, dx=dx, lse=reference.lse)
    for name, bound in zip(("lse", "dx", "w", "b"), off, strict=True):
        if name in wanted:
            assert came[name].dtype == (np.float32 if name == "lse" else dtype)
            error = np.abs(came[name].get() - wanted[name]).reshape(bound.shape)
            assert (error <= bound).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_passes_at_once_have_the_bits_of_one_after_the_other(rng, dtype, launched):
    arrays = inputs(rng, dtype)
    loss, cache = cross_entropy_forward(*arrays, count=10)
    assert loss.dtype == np.float32 and len(launched) == 1
    expected = bits(loss, *cross_entropy_backward(0.5, cache))
    launched.clear()
    assert bits(*cross_entropy_both(*arrays, count=10, dloss=0.5)) == expected
    assert len(launched) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_dloss_may_be_on_the_device(rng, dtype):
    arrays = inputs(rng, dtype)
    expected = bits(*cross_entropy_both(*arrays, count=10, dloss=1024.0))
    dloss = cupy.asarray(1024.0, "float32")
    assert bits(*cross_entropy_both(*arrays, count=10, dloss=dloss)) == expected
    loss, cache = cross_entropy_forward(*arrays, count=10)
    assert bits(loss, *cross_entropy_backward(dloss, cache)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_input_gives_the_same_bits(rng, monkeypatch, dtype):
    arrays = inputs(rng, dtype, (3, 50), V=1000)
    for rows in (150, 40):
        monkeypatch.setattr(kernels, "most_logits", lambda size, rows=rows: rows * padded(1000))
        first, second = (bits(*cross_entropy_both(*arrays)) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("V, length", [(2, 64), (64, 64), (65, 128)])
def test_rows_of_logits_begin_at_multiples_of_64(rng, monkeypatch, V, length):
    steps, product = [], kernels.product

    def note(a, b, out=None, *args, **options):
        steps.extend(y.strides[0] // y.itemsize for y in (a, out) if y.shape == (12, V))
        return product(a, b, out, *args, **options)

    monkeypatch.setattr(kernels, "product", note)
    cross_entropy_both(*inputs(rng, V=V))
    assert steps == [length] * 3  # made, and read for dx and dw


def test_logits_take_a_sixteenth_of_the_memory_at_most(rng, monkeypatch, launched):
    total = cupy.cuda.runtime.memGetInfo()[1]
    assert kernels.most_logits(2) == 2 * kernels.most_logits(4) == total // 32
    monkeypatch.setattr(kernels, "memory_of", lambda device: 16 * 4 * 5 * 128)
    cross_entropy_both(*inputs(rng))  # 12 rows of 65 logits, padded to 128
    assert [n for _, n in launched] == [5, 5, 2]
    launched.clear()
    cross_entropy_both(*inputs(rng, "float16"))
    assert [n for _, n in launched] == [10, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_targets_count_for_nothing(rng, dtype):
    x, targets, w, b = inputs(rng, dtype, (12,))
    targets[3:] = -1
    loss, cache = cross_entropy_forward(x, targets, w, b)
    again, dx, _ = cross_entropy_both(x, targets, w, b)
    fewer, rest, _ = cross_entropy_both(x[:3], targets[:3], w, b)
    np.testing.assert_allclose(float(loss), float(fewer), rtol=2 * UNIT[dtype])
    dx, rest = dx.get(), rest.get()
    assert loss == again and cache.count == 3 and not dx[3:].any()
    np.testing.assert_allclose(dx[:3], rest, rtol=0, atol=16 * UNIT[dtype] * np.abs(rest).max())
    targets[...] = -1
    loss, dx, grads = cross_entropy_both(x, targets, w, b)
    assert loss == 0 and not any(a.any() for a in (dx, *grads.values()))


def test_targets_may_be_of_any_integer_type(rng):
    x, targets, *rest = inputs(rng)
    expected = bits(*cross_entropy_both(x, targets, *rest))
    for other in (targets.astype("int64"), cupy.repeat(targets, 2, axis=1)[:, ::2]):
        assert bits(*cross_entropy_both(x, other, *rest)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_any_size_give_a_loss(dtype):
    x, w = cupy.asarray([[1e4], [-1e4], [1e4]], dtype), cupy.asarray([[1.0], [-1.0], [0.5]], dtype)
    loss, dx, grads = cross_entropy_both(x, cupy.asarray([1, 0, 0], "int32"), w)
    np.testing.assert_allclose(float(loss), 4e4 / 3, rtol=2 * UNIT[dtype])
    assert all(cupy.isfinite(a).all() for a in (dx, *grads.values()))


def test_a_logit_of_minus_infinity_has_no_part_in_the_softmax():
    x, w = cupy.full((1, 1), 6e4, "float16"), cupy.asarray([[-4.0], [0.0], [0.0]], "float16")
    loss, _, grads = cross_entropy_both(x, cupy.asarray([1], "int32"), w)
    np.testing.assert_allclose(float(loss), np.log(2), rtol=1e-6)
    assert float(grads["w"][0, 0]) == 0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_overflow_shows_in_the_gradients(rng, dtype, bad):
    x, targets, w, b = inputs(rng, dtype)
    x[0, 1, 2] = bad
    loss, _, grads = cross_entropy_both(x, targets, w, b)
    assert not cupy.isfinite(loss)
    assert not cupy.isfinite(grads["w"]).all()


def test_what_the_kernels_do_not_take_goes_to_the_definition(rng, launched):
    x, targets, w, b = inputs(rng)
    for arrays in (
        inputs(rng, "float64"),
        (cupy.repeat(x, 2, axis=1)[:, ::2], targets, w, b),
        (x, targets, cupy.asarray(w, order="F"), b),
        (x, targets, w, b.astype("float64")),
        inputs(rng, shape=(0, 3)),
    ):
        assert kernels.cross_entropy_forward(*arrays, count=10) is NotImplemented
        assert kernels.cross_entropy_both(*arrays, count=10, dloss=0.5) is NotImplemented
        cache = cross_entropy.CrossEntropyCache(*arrays, None, 10)
        assert kernels.cross_entropy_backward(0.5, cache) is NotImplemented
        host = host64(arrays)
        expected = cross_entropy_both.reference(*host, 10, 0.5)
        loss, cache = cross_entropy_forward(*arrays, count=10)
        one_by_one = loss, *cross_entropy_backward(0.5, cache)
        for loss, dx, grads in (one_by_one, cross_entropy_both(*arrays, count=10, dloss=0.5)):
            np.testing.assert_allclose(float(loss), expected[0], rtol=1e-6)
            np.testing.assert_allclose(dx.get(), expected[1], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(grads["w"].get(), expected[2]["w"], rtol=1e-4, atol=1e-6)
        assert launched == []
