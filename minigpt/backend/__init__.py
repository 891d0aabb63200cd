"""The seam between the mathematics and the arrays: NumPy on the CPU, CuPy on the GPU.

The data says where it lives: ops ask `array_module` of their arguments. A file of the op's name in
`cpu` or `gpu` may hold a faster override; the op itself stays the definition.
"""

import contextlib
import functools
import importlib
import inspect
import os
import sys

import numpy

from minigpt.errors import UserError

BACKENDS = ("numpy", "cupy")
OVERRIDES = {"numpy": "cpu", "cupy": "gpu"}  # folders here
INSTALL = (
    "pip install 'cupy-cuda12x[ctk]' (CUDA 12), 'cupy-cuda13x[ctk]' (CUDA 13) "
    "or cupy-rocm-7-0 (ROCm 7)"
)
_plain = os.environ.get("MINIGPT_PLAIN", "0") not in ("", "0")
HALF_CAPABILITY = 53  # the first NVIDIA devices with arithmetic in float16, times 10


def loaded_cupy():
    """Return cupy if something has imported it, else None: without it, no array is cupy's."""
    cupy = sys.modules.get("cupy")
    return cupy if hasattr(cupy, "ndarray") else None


def array_module(*args):
    """Return cupy if the first array among `args` (or in a tuple there) is cupy's, else numpy.

    Never imports cupy: an array of it already did.
    """
    cupy = loaded_cupy()
    if cupy is None:
        return numpy
    for x in args:
        if isinstance(x, tuple):
            x = next((y for y in x if isinstance(y, numpy.ndarray | cupy.ndarray)), None)
        if isinstance(x, cupy.ndarray):
            return cupy
        if isinstance(x, numpy.ndarray):
            return numpy
    return numpy


def _of(kind, x):
    """Tell whether `x` is an array of that type, or a tuple with one in it."""
    return isinstance(x, kind) or (isinstance(x, tuple) and any(isinstance(y, kind) for y in x))


def _one_module(op, args, kwargs):
    """Return the module that all arrays of a call are of.

    Raises
    ------
    UserError
        If there are arrays of both: it names the first that is not of the first one's module.
    """
    cupy = loaded_cupy()
    if cupy is None:
        return numpy
    values = (*args, *kwargs.values())
    xp = array_module(*values)
    other = numpy if xp is cupy else cupy
    if any(_of(other.ndarray, x) for x in values):
        named = inspect.signature(op).bind(*args, **kwargs).arguments
        name = next(name for name, x in named.items() if _of(other.ndarray, x))
        right = next(name for name, x in named.items() if _of(xp.ndarray, x))
        raise UserError(
            f"{op.__name__}: {name} is of {other.__name__}, but {right} is of {xp.__name__}; "
            f"bring {name} there with minigpt.backend.{'to_device' if xp is cupy else 'to_host'}"
        )
    return xp


@functools.cache
def _override(xp, file, name):
    """Return the function `name` of the override file for arrays of `xp`, or None."""
    folder = f"{__name__}.{OVERRIDES[xp.__name__]}"
    module = f"{folder}.{file}"
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name not in (folder, module):
            raise
        return None


def overridable(op):
    """Let a function of the same name replace `op`: in backend/cpu or backend/gpu, in a file named
    as the op's own. Where it returns NotImplemented, and in plain mode, `op` itself runs.

    `op.reference` is the op itself: the definition.
    """
    file = op.__module__.rpartition(".")[2]

    @functools.wraps(op)
    def dispatch(*args, **kwargs):
        xp = _one_module(op, args, kwargs) if "cupy" in sys.modules else numpy
        override = None if _plain else _override(xp, file, op.__name__)
        if override is not None:
            result = override(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return op(*args, **kwargs)

    dispatch.reference = op
    return dispatch


@contextlib.contextmanager
def plain(on=True):
    """Run the ops as they are written, in all threads, while this context lasts.

    Overrides take their place otherwise, so that a `print` or a breakpoint in an op is never met.
    The environment variable MINIGPT_PLAIN=1 does the same for a whole program.
    """
    global _plain
    before, _plain = _plain, on or _plain
    try:
        yield
    finally:
        _plain = before


def module(name):
    """Return the array module for `--backend name`, checked to be usable.

    Raises
    ------
    UserError
        If CuPy is missing, cannot load its libraries, finds no device that its wheel can use, or
        cannot compile. It never falls back.
    """
    if name == "numpy":
        return numpy
    if name != "cupy":
        raise UserError(f"--backend: '{name}' is not one of {', '.join(BACKENDS)}")
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise
        raise UserError(f"--backend cupy: CuPy is not installed; run {INSTALL}") from None
    except ImportError as error:
        raise UserError(
            f"--backend cupy: CuPy is installed but does not load ({error.__cause__ or error}); "
            f"install the wheel that fits this machine's driver: {INSTALL}"
        ) from None
    check_device(cupy)
    return cupy


def check_device(cupy):
    """Raise a UserError unless there is a device on which a kernel compiles and runs."""
    runtime = cupy.cuda.runtime
    try:
        if not runtime.getDeviceCount():
            raise UserError("--backend cupy: CuPy finds no device; use --backend numpy")
    except runtime.CUDARuntimeError as error:
        raise UserError(f"--backend cupy: {_no_device(runtime, error)}") from None
    try:
        cupy.ones(1)
    except (RuntimeError, cupy.cuda.compiler.CompileException) as error:
        raise UserError(
            f"--backend cupy: the device runs no kernel of CuPy ({_first_line(error)}); a wheel "
            f"with its compiler helps: {INSTALL}"
        ) from None


def _no_device(runtime, error):
    """Return what is wrong with the driver, and what to do."""
    instead = "or use --backend numpy"
    if "InsufficientDriver" not in str(error):
        look = "check it with rocm-smi" if runtime.is_hip else "check it with nvidia-smi"
        return f"no usable device ({_first_line(error)}); {look}, {instead}"
    driver, wheel = (n // 1000 for n in (runtime.driverGetVersion(), runtime.runtimeGetVersion()))
    if not driver:
        return f"no NVIDIA driver is running here; install one for CUDA {wheel} or later, {instead}"
    fitting = f"pip install 'cupy-cuda{driver}x[ctk]' in place of this wheel"
    way = fitting if driver >= 12 else f"update the driver to one for CUDA {wheel}"
    return (
        f"the driver is for CUDA {driver}, older than this wheel's CUDA {wheel}; {way}, {instead}"
    )


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def check_dtype(dtype, xp):
    """Raise a UserError if a 16-bit type asked for cannot be trained in on this backend."""
    if dtype == "float32":
        return
    if dtype != "float16":
        raise UserError(
            f"--dtype {dtype}: CuPy has no matrix product in it on every device; use float16"
        )
    if xp is numpy:
        raise UserError("--dtype float16: NumPy has no fast product in it; use --backend cupy")
    capability = xp.cuda.Device().compute_capability
    if not xp.cuda.runtime.is_hip and int(capability) < HALF_CAPABILITY:
        raise UserError(
            f"--dtype float16: this device, of compute capability {capability[:-1]}."
            f"{capability[-1]}, has no arithmetic in it (5.3 has); use --dtype float32"
        )


def to_device(x, xp):
    """Return the host array `x` as an array of `xp`; no copy where `xp` is numpy."""
    return xp.asarray(x)


def to_host(x):
    """Return `x` as a NumPy array; waits for the device where `x` is on one."""
    xp = array_module(x)
    return numpy.asarray(x) if xp is numpy else xp.asnumpy(x)


def host_normal(seed, stream, shape, std):
    """Return normal numbers (shape) float32 of that standard deviation, made on the host.

    A function of its arguments: each stream of a seed is independent of the others.
    """
    bits = numpy.random.PCG64(numpy.random.SeedSequence((seed, stream)))
    numbers = numpy.random.Generator(bits).standard_normal(shape, dtype=numpy.float32)
    numbers *= std
    return numbers
