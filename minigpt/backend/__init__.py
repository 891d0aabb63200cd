"""Where the mathematics meets the arrays: NumPy on a CPU, CuPy on a GPU.

The data says where it is: ops ask `array_module` of their arguments. An op may have a faster
override, in a file of the same name in `cpu` or `gpu`; the op itself stays the definition.
"""

import contextlib
import functools
import importlib
import inspect
import os
import sys
import threading

import numpy

from minigpt.backend.low_precision import in_float32
from minigpt.errors import UserError

OVERRIDES = {"numpy": "cpu", "cupy": "gpu"}  # folders here
_plain = int(os.environ.get("MINIGPT_PLAIN", "0") not in ("", "0"))  # contexts of `plain`, open now
_lock = threading.Lock()


class _Granted(threading.local):
    """What `all_arrays_on` says in this thread; None: every call of an op finds out."""

    xp = None


_granted = _Granted()


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


def _has(kind, x):
    """Tell whether `x` is an array of that type, or a tuple with one in it."""
    return isinstance(x, kind) or (isinstance(x, tuple) and any(isinstance(y, kind) for y in x))


def _types(values):
    """Return the types of values, and of what the tuples among them hold: all that `_has` asks."""
    types = [*map(type, values)]
    for x in values:
        if isinstance(x, tuple):
            types += map(type, x)
    return tuple(types)


def _one_module(op, args, kwargs):
    """Return the module that all arrays of a call belong to.

    Raises
    ------
    UserError
        If there are arrays of both modules: it names the first that differs from the first array.
    """
    cupy = loaded_cupy()
    if cupy is None:
        return numpy
    values = (*args, *kwargs.values())
    xp = array_module(*values)
    other = numpy if xp is cupy else cupy
    if any(_has(other.ndarray, x) for x in values):
        named = inspect.signature(op).bind(*args, **kwargs).arguments
        name = next(name for name, x in named.items() if _has(other.ndarray, x))
        right = next(name for name, x in named.items() if _has(xp.ndarray, x))
        raise UserError(
            f"{op.__name__}: {name} is an array of {other.__name__}, but {right} of {xp.__name__}; "
            f"convert {name} with minigpt.backend.{'to_device' if xp is cupy else 'to_host'}"
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
    """Let an override of the same name replace `op`: in backend/cpu or backend/gpu, in a file named
    like the op's own. Where it returns NotImplemented, and in plain mode, `op` itself runs.

    `op.reference` is the op itself: the definition.
    """
    file, name = op.__module__.rpartition(".")[2], op.__name__
    modules = {}  # by the types of a call, which alone decide: a step makes the same calls again

    @functools.wraps(op)
    def dispatch(*args, **kwargs):
        xp = _granted.xp
        if xp is None and "cupy" not in sys.modules:
            xp = numpy
        elif xp is None:
            types = _types((*args, *kwargs.values()))
            xp = modules.get(types)
            if xp is None:
                xp = modules[types] = _one_module(op, args, kwargs)
        override = None if _plain else _override(xp, file, name)
        if override is not None:
            result = override(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return op(*args, **kwargs) if xp is numpy else in_float32(op, args, kwargs)

    dispatch.reference = op
    return dispatch


@contextlib.contextmanager
def all_arrays_on(xp):
    """Let ops take it that all arrays are of that module, while this context lasts in this thread.

    Looking at every argument of every op takes as long as starting a kernel. The passes of a
    training step are on one device, where its caller has put weights and batch.
    """
    before = _granted.xp
    try:
        _granted.xp = xp
        yield
    finally:
        _granted.xp = before


@contextlib.contextmanager
def plain(on=True):
    """Run the ops exactly as they are written, in all threads, while this context lasts.

    Otherwise their overrides run, and a `print` or a breakpoint in an op is never reached. The
    environment variable MINIGPT_PLAIN=1 does the same for a whole program. Contexts nest, and may
    overlap in several threads: overrides are back when the last one has ended. A training step of
    another thread in whose middle it begins or ends fails.

    Parameters
    ----------
    on : bool
        False: change nothing, so that an option can be passed on as it is.
    """
    global _plain
    with _lock:
        _plain += bool(on)
    try:
        yield
    finally:
        with _lock:
            _plain -= bool(on)


def is_plain():
    """Tell whether overrides are left out at present."""
    return _plain > 0


def to_device(x, xp):
    """Return the NumPy array `x` as an array of `xp`; no copy where `xp` is numpy."""
    return xp.asarray(x)


def to_host(x):
    """Return `x` as a NumPy array; if it is on a GPU, this waits for all work before it."""
    xp = array_module(x)
    return numpy.asarray(x) if xp is numpy else xp.asnumpy(x)


def host_normal(seed, stream, shape, std):
    """Return normal numbers (shape) float32 of that standard deviation, drawn on the CPU.

    A function of its arguments: each stream of a seed is independent of the others, and both
    backends start from the same weights.
    """
    bits = numpy.random.PCG64(numpy.random.SeedSequence((seed, stream)))
    numbers = numpy.random.Generator(bits).standard_normal(shape, dtype=numpy.float32)
    numbers *= std
    return numbers


def host_uniform(seed, stream, shape, bound):
    """Return numbers (shape) float32, uniform from -bound to bound; else as host_normal."""
    bits = numpy.random.PCG64(numpy.random.SeedSequence((seed, stream)))
    numbers = numpy.random.Generator(bits).random(shape, dtype=numpy.float32)
    return (2 * numbers - 1) * numpy.float32(bound)
