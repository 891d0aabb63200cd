"""Matrix products on CuPy: values, layouts, and the arguments that cuBLAS gets.

Where device memory is host memory, the arguments are checked, and the product computed, by a stub
in C, stub_cublas.c; everywhere, by what CuPy has: cuBLAS on CUDA.
"""

import ctypes
import dataclasses
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from minigpt.backend.devices import tf32_products
from minigpt.errors import UserError
from minigpt.optim.muon import batched_product, orthogonalize
from tests.tools.dtypes import DTYPES, UNIT
from tests.tools.stepping import CONFIG, losses

cupy = pytest.importorskip("cupy", reason="needs CuPy", exc_type=ImportError)

from minigpt.backend.gpu import product as ours  # noqa: E402

pytestmark = pytest.mark.cupy

TINY = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}  # half of the smallest
TF32_UNIT = 2.0**-11
LAMBDA = 4  # Higham & Mary 2019: n additions are off by LAMBDA sqrt(n) UNIT, hardly ever by more
KINDS = [(d, r) for d in UNIT for r in dict.fromkeys((d, "float32"))]
SIZES = [(5, 7, 3), (1, 4, 1), (33, 65, 17), (2, 1, 9), (1, 1, 1), (3, 200, 1)]
LAYOUTS = "plain", "transposed", "gaps", "transposed gaps"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The stub, compiled."""
    compiler = os.environ.get("CUPY_ON_CPU_CC") or shutil.which("gcc") or shutil.which("cc")
    if os.environ.get("CUPY_ON_CPU") != "1":
        pytest.skip("device memory is not host memory")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("stub") / "stub.so"
    source = Path(__file__).with_name("stub_cublas.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", path, source, "-lm"], check=True)
    return ctypes.CDLL(str(path))


def functions_of(library):
    """As `cublas` returns them."""
    names = "cublasSetStream_v2", "cublasGemmEx", "cublasGemmStridedBatchedEx"
    return tuple(getattr(library, name) for name in names)


def address(function):
    return ctypes.cast(function, ctypes.c_void_p).value


@pytest.fixture
def stub(library, monkeypatch):
    """The stub in place of cuBLAS; what CuPy would compute is an error."""
    monkeypatch.setattr(ours, "cublas", lambda: functions_of(library))
    monkeypatch.setattr(ours, "with_cupy", None)
    return library


@pytest.fixture(params=["stub", "cupy"])
def through(request):
    """The stub, or what CuPy has."""
    if request.param == "stub":
        request.getfixturevalue("stub")


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def put(x, layout, dtype, filled=np.nan):
    """x (rows, columns) on the device, in that layout; gaps are `filled`."""
    if layout.startswith("transposed"):
        return put(x.T, layout.removeprefix("transposed").strip() or "plain", dtype, filled).T
    gap = 3 if layout == "gaps" else 0
    y = cupy.full((x.shape[0], x.shape[1] + gap), filled, "float32").astype(dtype)[:, : x.shape[1]]
    y[...] = cupy.asarray(x.astype(dtype))
    return y


def host(x):
    return cupy.asnumpy(x).astype(float)


def bound(a, b, c, dtype, k):
    """What a product may be off by, rounded once to dtype; c is the exact result."""
    return LAMBDA * UNIT["float32"] * np.sqrt(k + 1) * (np.abs(a) @ np.abs(b) + np.abs(c)) + (
        UNIT[dtype] * np.abs(c) + TINY[dtype]
    )


@pytest.mark.parametrize("m, k, n", SIZES)
@pytest.mark.parametrize("dtype, result", KINDS)
def test_values(through, rng, m, k, n, dtype, result):
    low, out_dtype = dtype_of(dtype), dtype_of(result)
    for i in range(len(LAYOUTS) ** 2):
        first, second, add = LAYOUTS[i % 4], LAYOUTS[i // 4], i % 3 == 0
        a = put(rng.standard_normal((m, k)), first, low)
        b = put(rng.standard_normal((k, n)), second, low)
        before = rng.standard_normal((m, n)) if add else np.full((m, n), np.nan)
        whole = cupy.full((m, n + 2), 7.0, "float32").astype(out_dtype)
        out = whole[:, :n]
        out[...] = cupy.asarray(before.astype(out_dtype))
        exact = host(a) @ host(b) + (host(out) if add else 0)
        assert ours.product(a, b, out, add) is out
        error = np.abs(host(out) - exact)
        assert (error <= bound(host(a), host(b), exact, result, k)).all(), (first, second, add)
        assert (host(whole[:, n:]) == 7).all()  # what lies between the rows stays
        fresh = ours.product(a, b, dtype=out_dtype)
        assert fresh.dtype == out_dtype and fresh.flags.c_contiguous
        exact = host(a) @ host(b)
        assert (np.abs(host(fresh) - exact) <= bound(host(a), host(b), exact, result, k)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_axes_in_front_are_rows_and_a_flag_transposes(through, rng, dtype):
    low = dtype_of(dtype)
    for m, k, n in SIZES:
        x, w = rng.standard_normal((2, m, k)), rng.standard_normal((k, n))
        for layout in LAYOUTS[:2]:
            a, b = put(x.reshape(2 * m, k), "plain", low).reshape(2, m, k), put(w, layout, low)
            flipped = put(w.T, layout, low)
            for found in (ours.product(a, b), ours.product(a, flipped, flip_b=True)):
                exact = host(a) @ host(b)
                assert found.shape == (2, m, n) and found.dtype == low
                error = np.abs(host(found) - exact)
                assert (error <= bound(host(a), host(b), exact, dtype, k)).all()
        dy, before = rng.standard_normal((2, m, n)), rng.standard_normal((k, n))
        dy, out = (cupy.asarray(y).astype(t) for y, t in ((dy, low), (before, "float32")))
        rows, dy2 = host(a).reshape(2 * m, k), host(dy).reshape(2 * m, n)
        exact = rows.T @ dy2 + host(out)
        assert ours.product(a, dy, out, True, flip_a=True) is out
        error = np.abs(host(out) - exact)
        assert (error <= bound(rows.T, dy2, exact, "float32", 2 * m)).all()
    with pytest.raises(ValueError, match="product"):
        ours.product(a, dy[:1], flip_a=True)
    with pytest.raises(ValueError, match="product"):
        ours.product(cupy.ones((2, 3), "f"), cupy.ones((3, 4), "f"), flip_b=True)


def test_float16_is_not_summed_in_float16(through):
    ones = cupy.ones((1, 4096), "float16")
    assert float(ours.product(ones, ones.T)[0, 0]) == 4096  # 1 + 2048 is 2048 in float16
    total = cupy.full((1, 1), 2048, "float32")
    for _ in range(3):
        ours.product(ones[:, :1], ones[:, :1], total, add=True)
    assert float(total[0, 0]) == 2051


def test_tf32_is_asked_for_where_it_is_on(stub, rng, monkeypatch):
    a, b = (cupy.asarray(rng.standard_normal(s), "f") for s in ((9, 64), (64, 5)))
    exact, size = host(a) @ host(b), np.abs(host(a)) @ np.abs(host(b))
    plain = np.abs(host(ours.product(a, b)) - exact).max()
    products = ours._routines_linalg
    before = products.get_compute_type("float32")
    try:
        products.set_compute_type("float32", products.COMPUTE_TYPE_TF32)
        error = np.abs(host(ours.product(a, b)) - exact)
        half = ours.product(a.astype("e"), b.astype("e"), dtype="f")
        assert ctypes.c_int.in_dll(stub, "last_compute").value == ours.COMPUTE_32F
    finally:
        products.set_compute_type("float32", before)
    assert plain < 1e-5 < error.max() and (error <= 2.1 * TF32_UNIT * size).all()
    np.testing.assert_allclose(host(half), host(a.astype("e")) @ host(b.astype("e")), atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_products_of_a_step_are_such_calls(library, monkeypatch, dtype):
    config = dataclasses.replace(CONFIG, n_layer=1, block_size=8)
    before, _ = losses(cupy, 2, config, dtype=dtype)
    monkeypatch.setattr(ours, "cublas", lambda: functions_of(library))
    monkeypatch.setattr(ours, "with_cupy", None)  # what it would compute is an error
    calls = ctypes.c_int.in_dll(library, "calls")
    calls.value = 0
    found, _ = losses(cupy, 2, config, dtype=dtype)
    assert calls.value == 2 * (4 * 3 + 3)  # four layers and the head: forward, dx and dw
    np.testing.assert_allclose(found, before, rtol=4 * UNIT[dtype] + 1e-6)


@pytest.mark.parametrize("m, k, n", SIZES)
def test_stacks_of_matrices(through, rng, m, k, n):
    for flip_a, flip_b in ((False, False), (True, False), (False, True), (True, True)):
        a, b = (rng.standard_normal((2, 3, *s)) for s in ((m, k), (k, n)))
        on_device = [
            cupy.asarray(x.swapaxes(2, 3), "f", order="C").swapaxes(2, 3)
            if flip
            else cupy.asarray(x, "f")
            for x, flip in ((a, flip_a), (b, flip_b))
        ]
        exact, size = (host(x) @ host(y) for x, y in (on_device, map(abs, on_device)))
        found = batched_product(*on_device)
        assert found.dtype == np.float32 and found.shape == (2, 3, m, n)
        bound = LAMBDA * UNIT["float32"] * np.sqrt(k + 1) * size
        assert (np.abs(host(found) - exact) <= bound).all()
    with pytest.raises(ValueError, match="batched"):
        ours.batched(on_device[0], on_device[1][:1])


@pytest.mark.parametrize("lowest, most", [(1e-2, 0.02), (1e-6, 0.04), (1e-12, 0.1)])
@pytest.mark.parametrize("shape", [(32, 64), (48, 20)])
def test_muon_in_tf32(stub, rng, lowest, most, shape):
    """Rounding to 11 bits is not multiplied by what small singular values are multiplied by."""
    u, _, vt = np.linalg.svd(rng.standard_normal((3, *shape)), full_matrices=False)
    x = cupy.asarray((u * np.geomspace(1, lowest, min(shape))) @ vt, "f")
    exact = orthogonalize(host(x))
    for on in (False, True):
        with tf32_products(on):
            y = host(orthogonalize(x, coarse=on))
        expected = ours.COMPUTE_32F_FAST_TF32 if on else ours.COMPUTE_32F
        assert ctypes.c_int.in_dll(stub, "last_compute").value == expected
        error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
        assert 1e-4 < error < most if on else error < 1e-3
        assert np.linalg.svd(y, compute_uv=False).max() < 1.2 + 0.2 * on


def test_it_is_cupys_handle_and_stream(stub):
    a = cupy.ones((2, 2), "f")
    for stream in (cupy.cuda.Stream(), cupy.cuda.Stream.null):
        with stream:
            ours.product(a, a)
        at = ctypes.c_void_p.in_dll(stub, "last_stream").value or 0
        assert at == stream.ptr
    handle = ctypes.c_void_p.in_dll(stub, "last_handle").value
    assert handle == cupy.cuda.Device().cublas_handle
    assert ctypes.c_int.in_dll(stub, "last_algorithm").value == ours.GEMM_DEFAULT


def test_nothing_is_copied(stub, rng):
    sizes = []

    class Sizes(cupy.cuda.MemoryHook):
        name = "sizes"

        def malloc_preprocess(self, **call):
            sizes.append(call["size"])

    operands = [put(rng.standard_normal((40, 40)), layout, "f") for layout in LAYOUTS]
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc), Sizes():
        for a in operands:
            for b in operands:
                ours.product(a, b)
    assert sizes == [40 * 40 * 4] * 16


def test_what_cublas_does_not_take_is_left_to_cupy(library, monkeypatch, rng):
    monkeypatch.setattr(ours, "cublas", lambda: functions_of(library))
    calls = ctypes.c_int.in_dll(library, "calls")
    before = calls.value
    x = cupy.asarray(rng.standard_normal((6, 8)), "f")
    for a, b, out in (
        (x.astype("d"), x.T.astype("d"), None),
        (x[:, ::2], x.T[::2], None),  # neither rows nor columns are contiguous
        (x[::-1], x.T, None),
        (cupy.broadcast_to(x[:1], (6, 8)), x.T, None),
        (x, x.T.astype("e"), None),
        (x[:0], x.T, None),
        (x[:, :0], x.T[:0], None),
        (x, x.T, cupy.zeros((6, 6), "f").T),
        (x, x.T, cupy.zeros((6, 6), "d")),
        (x.astype("e"), x.T.astype("e"), cupy.zeros((6, 12), "f")[:, ::2]),
    ):
        found = ours.product(a, b, out)
        np.testing.assert_allclose(host(found), host(a) @ host(b), rtol=1e-5, atol=1e-5)
        assert out is None or found is out
    assert calls.value == before


def test_an_array_with_one_row_or_column_may_have_any_step(stub, rng):
    row, column = (cupy.asarray(rng.standard_normal(7), "f") for _ in range(2))
    for a in (row[None], row[:, None].T):
        for b in (column[:, None], column[None].T):
            np.testing.assert_allclose(host(ours.product(a, b)), host(a) @ host(b), atol=1e-5)
            outer = ours.product(b, a)
            np.testing.assert_allclose(host(outer), host(b) @ host(a), atol=1e-6)


def test_nothing_is_added_to_a_new_array(through, rng):
    a, b = (cupy.asarray(rng.standard_normal((4, 4)), "f") for _ in range(2))
    cupy.full((4, 4), np.nan, "f")  # the memory that is taken next
    np.testing.assert_allclose(host(ours.product(a, b, add=True)), host(a) @ host(b), atol=1e-5)


def test_shapes_that_do_not_fit_are_refused(through):
    a, b = cupy.ones((2, 3), "f"), cupy.ones((3, 4), "f")
    for args in ((b, a), (a, b, cupy.ones((4, 2), "f")), (a, b, cupy.ones((2, 5), "f"))):
        with pytest.raises(ValueError, match="product"):
            ours.product(*args)


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_failure_is_cupys_error(monkeypatch, fails):
    functions = [lambda *args: 0] * 3
    functions[fails] = lambda *args: 1 if cupy.cuda.runtime.is_hip else 13
    monkeypatch.setattr(ours, "cublas", lambda: functions)
    x = cupy.ones((2, 2), "f")
    with pytest.raises(cupy.cuda.cublas.CUBLASError):
        ours.batched(x[None], x[None]) if fails == 2 else ours.product(x, x)


@pytest.fixture
def pathfinder(monkeypatch):
    """On CUDA, whose libraries this module finds: `path` is that of cuBLAS."""
    module = types.ModuleType("cuda.pathfinder")
    module.load_nvidia_dynamic_lib = lambda name: types.SimpleNamespace(abs_path=module.path)
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", module)
    monkeypatch.setattr(cupy.cuda.runtime, "is_hip", False)
    monkeypatch.setattr(ours, "cublas", ours.cublas.__wrapped__)
    return module


def test_cublas_is_the_one_that_cupy_has_loaded(library, pathfinder):
    pathfinder.path = library._name
    for function, expected in zip(ours.cublas(), functions_of(library), strict=True):
        assert address(function) == address(expected)
    assert ours.cublas()[0](ctypes.c_void_p(1), None) == 0


@pytest.mark.parametrize("path", ["no such file", None])
def test_a_cublas_that_does_not_load_is_one_line(pathfinder, monkeypatch, path):
    pathfinder.path = path  # None: a library without these functions, the program itself
    with pytest.raises(UserError, match=r"^--backend cupy: cuBLAS does not load \(.*pip install"):
        ours.cublas()
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(UserError, match=r"^--backend cupy: cuBLAS does not load \(.*pip install"):
        ours.cublas()
