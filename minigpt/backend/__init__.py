"""The seam between the mathematics and the arrays: NumPy on the CPU, CuPy on the GPU.

The data says where it lives: ops ask `array_module` of their arguments. A backend may replace an
op by a faster namesake in `fused_numpy` or `fused_cupy`; the op itself stays the definition.
"""

import functools
import importlib
import sys

import numpy

from minigpt import UserError

BACKENDS = ("numpy", "cupy")
INSTALL = (
    "pip install 'cupy-cuda12x[ctk]' (CUDA 12), 'cupy-cuda13x[ctk]' (CUDA 13) "
    "or cupy-rocm-7-0 (ROCm 7)"
)


def array_module(*args):
    """Return cupy if the first array among `args` (or in a tuple there) is cupy's, else numpy.

    Never imports cupy: an array of it already did.
    """
    cupy = sys.modules.get("cupy")
    if cupy is None or not hasattr(cupy, "ndarray"):
        return numpy
    for x in args:
        if isinstance(x, tuple):
            x = next((y for y in x if isinstance(y, numpy.ndarray | cupy.ndarray)), None)
        if isinstance(x, cupy.ndarray):
            return cupy
        if isinstance(x, numpy.ndarray):
            return numpy
    return numpy


@functools.cache
def _namesake(xp, name):
    """Return the function `name` of the fused module of `xp`, or None."""
    module = f"minigpt.backend.fused_{xp.__name__}"
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def overridable(op):
    """Let fused_numpy or fused_cupy replace `op` by a namesake; `op.reference` defines it."""

    @functools.wraps(op)
    def dispatch(*args, **kwargs):
        fused = _namesake(array_module(*args), op.__name__)
        return (fused or op)(*args, **kwargs)

    dispatch.reference = op
    return dispatch


def module(name):
    """Return the array module for `--backend name`, checked to be usable.

    Raises
    ------
    UserError
        If CuPy is missing, cannot load its libraries, or finds no device. It never falls back.
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
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "no cause")
        raise UserError(
            f"--backend cupy: CuPy is installed but does not load ({cause}); install the wheel "
            f"that fits this machine's driver: {INSTALL}"
        ) from None
    try:
        found = cupy.cuda.runtime.getDeviceCount()
        cupy.zeros(1)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(
            f"--backend cupy: no usable device ({error}); check the driver with nvidia-smi or "
            "rocm-smi, or use --backend numpy"
        ) from None
    if not found:
        raise UserError("--backend cupy: CuPy finds no device; use --backend numpy")
    return cupy


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
