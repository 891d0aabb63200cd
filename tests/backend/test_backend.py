"""The seam itself: what of CuPy is missing, and arrays of both backends in one call."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minigpt import backend
from minigpt.backend import array_module, overridable, plain, to_device, to_host
from minigpt.backend.devices import NEEDS, PRECISIONS, check_precision, load_backend
from minigpt.errors import UserError
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.train.threads import Workers
from tests.tools.dtypes import needs_bfloat16


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class CompileException(Exception):
    """As CuPy's."""


def fake_cupy(
    count=1, driver=13000, wheel=12090, kernel=None, hip=False, capability="80", version="14.2.0"
):
    """Return a module that answers as CuPy does; `count` and `kernel` may be an error."""

    def answer(x):
        if isinstance(x, Exception):
            raise x
        return x

    cupy = ModuleType("cupy")
    cupy.__version__ = version
    cupy.ndarray = type("ndarray", (), {})
    cupy.ones = lambda n: answer(kernel)
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        is_hip=hip,
        getDeviceCount=lambda: answer(count),
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: wheel,
    )
    cupy.cuda = SimpleNamespace(
        runtime=runtime,
        compiler=SimpleNamespace(CompileException=CompileException),
        Device=lambda: SimpleNamespace(compute_capability=capability),
    )
    return cupy


@pytest.fixture
def cupy(monkeypatch):
    """Return a function that puts a fake of CuPy in its place."""

    def put(**answers):
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy(**answers))
        return sys.modules["cupy"]

    return put


def refusal(name="cupy"):
    with pytest.raises(UserError) as caught:
        load_backend(name)
    text = str(caught.value)
    assert "\n" not in text and text.startswith("--backend")
    return text


INSUFFICIENT = CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


@pytest.mark.parametrize(
    "answers, told",
    [
        ({"count": 0}, "CuPy finds no GPU"),
        ({"count": CUDARuntimeError("cudaErrorNoDevice: no device")}, "(cudaErrorNoDevice: no"),
        ({"count": CUDARuntimeError("hipErrorNoDevice"), "hip": True}, "check it with rocm-smi"),
        (
            {"count": INSUFFICIENT, "driver": 0},
            "no NVIDIA driver is running; install one for",
        ),
        (
            {"count": INSUFFICIENT, "driver": 11080},
            "supports CUDA 11, but this wheel needs CUDA 12; update the driver to one for CUDA 12",
        ),
        (
            {"count": INSUFFICIENT, "driver": 12040, "wheel": 13000},
            "this wheel needs CUDA 13; pip install 'cupy-cuda12x[ctk]' instead of this wheel",
        ),
        (
            {"capability": "70", "wheel": 13000},
            "of compute capability 7.0, needs CUDA 12: CUDA 13 compiles for 7.5 and later; run pip "
            "uninstall cupy-cuda13x, then pip install 'cupy-cuda12x[ctk]', or use --backend numpy",
        ),
        ({"kernel": RuntimeError('No such file: "libnvrtc.so.12"\n\n')}, '(No such file: "libnvrt'),
        ({"kernel": CompileException("\nerror: no cuda_fp16.h\nat 1")}, "(error: no cuda_fp16.h);"),
    ],
)
def test_what_is_wrong_with_cupy_is_told_in_one_line(cupy, answers, told):
    cupy(**answers)
    assert told in refusal()


def test_a_cupy_that_works_is_returned(cupy):
    fake = cupy()
    assert load_backend("cupy") is fake is load_backend(fake)
    assert load_backend("numpy") is np is load_backend(np)
    for answers in ({"capability": "60"}, {"capability": "75", "wheel": 13000}):
        fake = cupy(**answers)
        assert load_backend("cupy") is fake
    cupy(capability="9", wheel=70051831, hip=True)
    load_backend("cupy")


def test_cupy_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "CuPy is not installed; run pip install 'cupy-cuda12x[ctk]' (CUDA 12)" in refusal()


def test_cupy_that_does_not_load(monkeypatch, tmp_path):
    """CuPy's text begins with a line of =; the cause is the error before it."""
    (tmp_path / "cupy.py").write_text(
        "try:\n    raise ImportError('libamdhip64.so.7: cannot open')\n"
        "except ImportError as error:\n    raise ImportError('=====\\nFailed.') from error\n"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "does not load (libamdhip64.so.7: cannot open); install the wheel" in refusal()


def test_a_fault_of_another_module_is_not_taken_for_a_missing_cupy(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("import a_module_that_is_not_there")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_module_that"):
        load_backend("cupy")


def test_a_backend_that_is_not_one():
    assert refusal("jax") == "--backend: 'jax' is not one of numpy, cupy"


@pytest.mark.parametrize(
    "name, capability, hip, told",
    [
        ("float32", "50", False, None),
        ("float16", "53", False, None),
        ("float16", "120", False, None),
        ("float16", "11", True, None),
        ("float16", "52", False, "this GPU, of compute capability 5.2, has no float16 arithmetic"),
        ("tf32", "80", False, None),
        ("tf32", "120", False, None),
        ("tf32", "75", False, "compute capability 7.5, has no TF32 products .8.0 has.; use --dty"),
        ("tf32", "110", True, "--dtype tf32: CuPy has it on NVIDIA GPUs only; use --dtype float32"),
        ("bfloat16", "75", False, "capability 7.5, has no bfloat16 products .* --dtype float16$"),
        ("half", "90", False, "--dtype half: .* choose from float32, tf32, float16, bfloat16"),
    ],
)
def test_a_precision_is_refused_where_it_does_not_run(cupy, name, capability, hip, told):
    xp = cupy(capability=capability, hip=hip)
    if told is None:
        return check_precision(name, xp)
    with pytest.raises(UserError, match=told):
        check_precision(name, xp)


@needs_bfloat16
@pytest.mark.parametrize("capability, hip", [("80", False), ("120", False), ("11", True)])
def test_where_bfloat16_runs(cupy, capability, hip):
    check_precision("bfloat16", cupy(capability=capability, hip=hip))


def test_bfloat16_needs_an_array_type_of_cupy_and_of_numpy(cupy, monkeypatch):
    xp, old = cupy(capability="90"), cupy(capability="90", version="13.6.0")
    with pytest.raises(UserError, match="CuPy 13.6.0 has no arrays of it, 14 has; upgrade it, pip"):
        check_precision("bfloat16", old)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UserError, match="the package ml_dtypes .*; run pip install -U ml_dtypes"):
        check_precision("bfloat16", xp)


def test_on_numpy_there_is_float32_only():
    check_precision("float32", np)
    for name, (what, _, _) in NEEDS.items():
        with pytest.raises(UserError, match=f"--dtype {name}: NumPy has no fast {what}; use --bac"):
            check_precision(name, np)


def test_each_precision_says_how_it_computes():
    assert {name: tuple(precision) for name, precision in PRECISIONS.items()} == {
        "float32": ("float32", False, False),
        "tf32": ("float32", False, True),
        "float16": ("float16", True, False),
        "bfloat16": ("bfloat16", False, True),
    }


@overridable
def mixed_forward(x, w, b=None, options=()):
    """Stands for any op."""
    return array_module(x, w, b)


def test_arrays_of_both_backends_are_refused_by_name(cupy):
    here, there = np.ones(3), cupy().ndarray()
    for x in here, there:  # what was found for some types is not taken for others
        mixed_forward(x, x, options=(x,))
        mixed_forward(x, (None, x, x))
    for args, kwargs, told in (
        ((here, there), {}, "mixed_forward: w is an array of cupy, but x of numpy; convert w"),
        ((there, here), {}, "w is an array of numpy, but x of cupy; .*backend.to_device"),
        ((there,), {"w": there, "b": here}, "b is an array of numpy, but x of cupy"),
        ((), {"b": here, "x": None, "w": there}, "w is an array of cupy, but b of numpy"),
        ((here, None), {"options": (1, there)}, "options is an array of cupy, .*to_host"),
        ((there, (None, there, here)), {}, "w is an array of numpy, but x of cupy"),
    ):
        with pytest.raises(UserError, match=told):
            mixed_forward(*args, **kwargs)
    assert mixed_forward(here, np.float64(1), b=here) is np
    assert mixed_forward(there, 2.0, b=there) is sys.modules["cupy"]


def test_one_module_is_taken_for_granted_in_one_thread_while_the_context_lasts(cupy):
    here, there = np.ones(3), cupy().ndarray()
    probed = sys.modules["cupy"]

    def refused(*args):
        with pytest.raises(UserError, match="convert w"):
            mixed_forward(*args)

    with pytest.raises(ZeroDivisionError), backend.all_arrays_on(probed):
        assert mixed_forward(here, there) is np  # the op itself finds the first one; nobody looks
        with backend.all_arrays_on(None):
            refused(here, there)
        mixed_forward(here, there)
        with ThreadPoolExecutor(1) as other:
            other.submit(refused, here, there).result()
        raise ZeroDivisionError
    refused(here, there)


@pytest.mark.cupy
def test_an_op_refuses_arrays_of_the_other_backend(rng, xp):
    x, w = rng.standard_normal((2, 3)), np.ones(3)
    if xp is np:
        pytest.skip("needs two backends")
    _, cache = layernorm_forward(xp.asarray(x), w=xp.asarray(w))
    with pytest.raises(UserError, match="layernorm_forward: w is an array of numpy, but x of cupy"):
        layernorm_forward(xp.asarray(x), w=w)
    with pytest.raises(UserError, match="layernorm_backward: cache is an array of cupy, but dy of"):
        layernorm_backward(x, cache)


@pytest.mark.cupy
def test_arrays_come_back_as_they_went(rng, xp):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    moved = to_device(x, xp)
    assert array_module(moved) is array_module(None, (1, moved)) is xp
    back = to_host(moved)
    assert type(back) is np.ndarray and back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)


@overridable
def probed_forward(x):
    """Stands for any op."""
    return "as written"


@pytest.fixture
def override(monkeypatch):
    """Let every op have an override, which returns what is put here."""
    answers = ["override"]
    monkeypatch.setattr(backend, "_override", lambda xp, file, name: lambda x: answers[0])
    monkeypatch.setattr(backend, "_plain", 0)
    return answers


def test_an_override_runs_unless_it_does_not_take_the_arguments(override):
    assert probed_forward(np.ones(3)) == "override"
    override[0] = NotImplemented
    assert probed_forward(np.ones(3)) == "as written" == probed_forward.reference(None)
    override[0] = None
    assert probed_forward(np.ones(3)) is None


def test_plain_contexts_nest_and_end_with_an_error(override):
    assert probed_forward(1) == "override" and not backend.is_plain()
    with plain():
        assert probed_forward(1) == "as written" and backend.is_plain()
        with plain(), plain(False):
            assert probed_forward(1) == "as written"
        assert probed_forward(1) == "as written"
    with plain(False):
        assert probed_forward(1) == "override"
    with pytest.raises(ZeroDivisionError), plain():
        raise ZeroDivisionError
    assert probed_forward(1) == "override" and not backend.is_plain()


def test_plain_contexts_may_overlap_in_threads(override):
    first, second = plain(), plain()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert probed_forward(1) == "as written"
    second.__exit__(None, None, None)
    assert probed_forward(1) == "override"


@pytest.mark.parametrize("value, on", [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_environment_variable_is_plain_mode_for_a_program(value, on):
    code = "from minigpt import backend; print(backend.is_plain())"
    env = os.environ | {"MINIGPT_PLAIN": value}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(on), done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_a_breakpoint_in_an_op_is_reached_in_plain_mode_only_and_in_all_threads(rng, threads):
    x, w, b = rng.standard_normal((4, 8)), np.ones(8), np.zeros(8)
    reached, before = [], sys.gettrace()

    def note(frame, event, _):
        if frame.f_code is layernorm_forward.reference.__code__:
            reached.append(threading.current_thread().name)

    def run(_):
        sys.settrace(note)
        try:
            return layernorm_forward(x, w, b)[0]
        finally:
            sys.settrace(before)

    with Workers(threads) as workers:
        fast = workers.map(run, range(threads))
        assert reached == []
        with plain():
            written = workers.map(run, range(threads))
    assert len(set(reached)) == threads == len(reached)
    np.testing.assert_allclose(fast, written, rtol=1e-12)


def test_an_override_has_the_name_of_the_op_and_its_file(monkeypatch):
    found = backend._override(np, "layernorm", "layernorm_forward")
    assert found.__module__ == "minigpt.backend.cpu.layernorm"
    assert found.__name__ == "layernorm_forward"
    assert backend._override(np, "layernorm", "no_such_op") is None
    assert backend._override(np, "no_such_file", "layernorm_forward") is None
    monkeypatch.setitem(backend.OVERRIDES, "numpy", "deleted")
    assert backend._override.__wrapped__(np, "layernorm", "layernorm_forward") is None


def test_an_import_that_fails_in_an_override_is_no_missing_override(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigpt.backend.cpu.blocking", None)
    monkeypatch.delitem(sys.modules, "minigpt.backend.cpu.adamw", raising=False)
    with pytest.raises(ModuleNotFoundError, match="blocking"):
        backend._override.__wrapped__(np, "adamw", "adamw_step")
