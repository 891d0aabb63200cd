"""What only a device has: work that is not done yet, and TF32 products."""

import contextlib
import importlib

import numpy

from minigpt.backend import array_module
from minigpt.errors import UserError

TF32_CAPABILITY = 80  # the first NVIDIA devices with TF32, times 10


def on_device(x):
    """Tell whether `x` is on a device, where to read a number is to wait for all work before."""
    return array_module(x) is not numpy


def check_tf32(xp):
    """Raise a UserError if --tf32 has no meaning on this backend."""
    if xp is numpy:
        raise UserError("--tf32: NumPy has no such products; use --backend cupy, or --no-tf32")
    if xp.cuda.runtime.is_hip:
        raise UserError("--tf32: CuPy has such products on NVIDIA's devices only; use --no-tf32")
    capability = xp.cuda.Device().compute_capability
    if int(capability) < TF32_CAPABILITY:
        raise UserError(
            f"--tf32: this device, of compute capability {capability[:-1]}.{capability[-1]}, has "
            "no such products (8.0 has); use --no-tf32"
        )


@contextlib.contextmanager
def tf32(on):
    """Let float32 products on the device see 10 bits of their factors' 23, but sum in float32.

    It is CuPy's own switch, as CUPY_TF32=1, which cannot be turned back. See check_tf32.
    """
    if not on:
        yield
        return
    products = importlib.import_module("cupy._core._routines_linalg")
    before = products.get_compute_type("float32")
    products.set_compute_type("float32", products.COMPUTE_TYPE_TF32)
    try:
        yield
    finally:
        products.set_compute_type("float32", before)
