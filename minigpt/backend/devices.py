"""What this machine can do: a backend that loads, precisions that a run can have."""

import contextlib
import importlib
import types
from typing import NamedTuple

import numpy

from minigpt.backend import array_module, loaded_cupy
from minigpt.errors import UserError

BACKENDS = ("numpy", "cupy")
INSTALL = (
    "pip install 'cupy-cuda12x[ctk]' (CUDA 12), 'cupy-cuda13x[ctk]' (CUDA 13) "
    "or cupy-rocm-7-0 (ROCm 7)"
)
HALF_CAPABILITY = 53  # times 10: the first NVIDIA GPUs with arithmetic in float16
TF32_CAPABILITY = 80  # ... with TF32 products
BFLOAT16_CAPABILITY = 80  # ... with bfloat16 products
BFLOAT16_CUPY = 14  # the first version of CuPy with arrays of bfloat16
CUDA13_CAPABILITY = 75  # ... that CUDA 13 compiles for; P100 and V100 are older


def load_backend(name):
    """Return the array module of a backend, checked to be usable: "numpy" or "cupy".

    A module that is given is returned as it is.

    Raises
    ------
    UserError
        If CuPy is missing, cannot load its libraries, finds no GPU that its wheel can use, or
        cannot compile. It never falls back.
    """
    if isinstance(name, types.ModuleType):
        return name
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
    check_gpu(cupy)
    return cupy


def check_gpu(cupy):
    """Raise a UserError unless there is a GPU on which a kernel compiles and runs."""
    runtime = cupy.cuda.runtime
    try:
        if not runtime.getDeviceCount():
            raise UserError("--backend cupy: CuPy finds no GPU; use --backend numpy")
    except runtime.CUDARuntimeError as error:
        raise UserError(f"--backend cupy: {_no_gpu(runtime, error)}") from None
    if not runtime.is_hip and runtime.runtimeGetVersion() >= 13000:
        capability = int(cupy.cuda.Device().compute_capability)
        if capability < CUDA13_CAPABILITY:
            raise UserError(
                f"--backend cupy: this GPU, of compute capability {decimal(capability)}, needs "
                f"CUDA 12: CUDA 13 compiles for {decimal(CUDA13_CAPABILITY)} and later; run pip "
                "uninstall cupy-cuda13x, then pip install 'cupy-cuda12x[ctk]', or use --backend "
                "numpy"
            )
    try:
        cupy.ones(1)
    except (RuntimeError, cupy.cuda.compiler.CompileException) as error:
        raise UserError(
            f"--backend cupy: the GPU runs no kernel of CuPy ({_first_line(error)}); a wheel "
            f"that brings its compiler helps: {INSTALL}"
        ) from None


def _no_gpu(runtime, error):
    """Return what is wrong with the driver, and what to do."""
    instead = "or use --backend numpy"
    if "InsufficientDriver" not in str(error):
        look = "check it with rocm-smi" if runtime.is_hip else "check it with nvidia-smi"
        return f"no usable GPU ({_first_line(error)}); {look}, {instead}"
    driver, wheel = (n // 1000 for n in (runtime.driverGetVersion(), runtime.runtimeGetVersion()))
    if not driver:
        return f"no NVIDIA driver is running; install one for CUDA {wheel} or later, {instead}"
    other_wheel = f"pip install 'cupy-cuda{driver}x[ctk]' instead of this wheel"
    remedy = other_wheel if driver >= 12 else f"update the driver to one for CUDA {wheel}"
    return (
        f"the driver supports CUDA {driver}, but this wheel needs CUDA {wheel}; {remedy}, {instead}"
    )


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


class Precision(NamedTuple):
    """How the passes of a training step compute. Weights, moments and evaluations are float32.

    Attributes
    ----------
    compute_dtype : str
        Of the weights that the passes see, of activations and of their gradients: see dtype_of.
    loss_scaling : bool
        Whether gradients of that type need a loss scale: see optim/clipping.py. bfloat16 has
        float32's exponents, and needs none.
    tf32 : bool
        Whether matrix products round their float32 factors to TF32. With bfloat16 these are the
        optimizer's and those of evaluations; TF32 has three more bits.
    """

    compute_dtype: str
    loss_scaling: bool
    tf32: bool


# What a GPU needs for a precision, from which compute capability on they have it, and what to use
# on others.
NEEDS = {
    "tf32": ("TF32 products", TF32_CAPABILITY, "float32"),
    "float16": ("float16 arithmetic", HALF_CAPABILITY, "float32"),
    "bfloat16": ("bfloat16 products", BFLOAT16_CAPABILITY, "float16"),
}
PRECISIONS = {
    "float32": Precision("float32", loss_scaling=False, tf32=False),
    "tf32": Precision("float32", loss_scaling=False, tf32=True),
    "float16": Precision("float16", loss_scaling=True, tf32=False),
    "bfloat16": Precision("bfloat16", loss_scaling=False, tf32=True),
}


def dtype_of(name):
    """Return the dtype of that name; NumPy has bfloat16 from the package ml_dtypes."""
    if name == "bfloat16":
        return numpy.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return numpy.dtype(name)


def check_precision(name, xp):
    """Raise a UserError if a run on the backend `xp` cannot have the precision of that name."""
    if name not in PRECISIONS:
        choices = ", ".join(PRECISIONS)
        raise UserError(f"--dtype {name}: there is no such precision; choose from {choices}")
    if name == "float32":
        return
    what, needed, instead = NEEDS[name]
    if xp is numpy:
        raise UserError(
            f"--dtype {name}: NumPy has no fast {what}; use --backend cupy, or --dtype float32"
        )
    if not xp.cuda.runtime.is_hip:
        capability = int(xp.cuda.Device().compute_capability)
        if capability < needed:
            raise UserError(
                f"--dtype {name}: this GPU, of compute capability {decimal(capability)}, has no "
                f"{what} ({decimal(needed)} has); use --dtype {instead}"
            )
    elif name == "tf32":
        raise UserError("--dtype tf32: CuPy has it on NVIDIA GPUs only; use --dtype float32")
    if name == "bfloat16":
        check_bfloat16(xp)


def check_bfloat16(xp):
    """Raise a UserError if there are no arrays of bfloat16 here."""
    if int(xp.__version__.partition(".")[0]) < BFLOAT16_CUPY:
        raise UserError(
            f"--dtype bfloat16: CuPy {xp.__version__} has no arrays of it, {BFLOAT16_CUPY} has; "
            f"upgrade it, {INSTALL}, or use --dtype float16"
        )
    try:
        dtype_of("bfloat16")
    except ImportError as error:
        raise UserError(
            f"--dtype bfloat16: NumPy and CuPy have it from the package ml_dtypes ({error}); run "
            "pip install -U ml_dtypes, or use --dtype float16"
        ) from None


def decimal(capability):
    """80 -> '8.0'"""
    return f"{capability // 10}.{capability % 10}"


@contextlib.contextmanager
def tf32_products(on):
    """Let float32 products on the GPU see 10 bits of their factors' 23 or all, and sum in float32.

    It is CuPy's own switch, which CUPY_TF32=1 in the environment turns on as well: what is asked
    for here wins. Without CuPy loaded there is nothing to switch. See check_precision.
    """
    if loaded_cupy() is None:
        yield
        return
    products = importlib.import_module("cupy._core._routines_linalg")
    before = products.get_compute_type("float32")
    kind = products.COMPUTE_TYPE_TF32 if on else products.COMPUTE_TYPE_DEFAULT
    products.set_compute_type("float32", kind)
    try:
        yield
    finally:
        products.set_compute_type("float32", before)


def on_gpu(x):
    """Tell whether `x` is on a GPU, where reading a number waits for all work before it."""
    return array_module(x) is not numpy
