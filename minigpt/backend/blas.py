"""How many threads BLAS uses in a product: a setting of the whole process, lent and given back."""

import contextlib
import functools
import math
import threading
import time

import numpy
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_limits = {}  # of the contexts that are open, in any thread: a key of each, and its n
_held = None  # (the lowest of them, what gives BLAS its own number back)


@functools.cache
def _controller():
    """Return the handle on the libraries that are loaded; to look for them takes a while."""
    return ThreadpoolController()


def _apply():
    """Bring BLAS to the lowest limit, or back to its own number where there is none."""
    global _held
    lowest = min(_limits.values(), default=None)
    if _held is not None and _held[0] != lowest:
        _held[1].restore_original_limits()
        _held = None
    if _held is None and lowest is not None:
        _held = lowest, _controller().limit(limits=lowest, user_api="blas")


@contextlib.contextmanager
def blas_threads(n):
    """Let BLAS use n threads in each product, for all of the process, while this context lasts.

    Contexts may overlap, in one thread or in several: the lowest n holds, and the last to end
    gives BLAS the number that it had before the first.

    Parameters
    ----------
    n : int
        1 or more.
    """
    key = object()
    try:
        with _lock:
            _limits[key] = n
            _apply()
        yield
    finally:
        with _lock:
            _limits.pop(key, None)  # it is not there where Ctrl-C came first
            _apply()


def product_rate(threads, seconds=0.3, n=1024):
    """Measure float32 products (n, n) @ (n, n) with that many threads; return FLOP/s.

    It is the highest rate seen in some `seconds`.
    """
    a, b = (numpy.full((n, n), 0.5, numpy.float32) for _ in range(2))
    out, best, start = numpy.empty_like(a), math.inf, time.perf_counter()
    with blas_threads(threads):
        while (now := time.perf_counter()) < start + seconds or best == math.inf:
            numpy.matmul(a, b, out=out)
            best = min(best, time.perf_counter() - now)
    return 2 * n**3 / best
