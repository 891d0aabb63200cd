"""How many threads BLAS uses in a product: a setting of the whole process, lent and given back."""

import contextlib
import functools
import threading

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_limits = []  # of the contexts that are open, in any thread
_held = None  # (the lowest of them, what gives BLAS its own number back)


@functools.cache
def _controller():
    """Return the handle on the libraries that are loaded; to look for them takes a while."""
    return ThreadpoolController()


def _apply():
    """Bring BLAS to the lowest limit, or back to its own number where there is none."""
    global _held
    lowest = min(_limits, default=None)
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
    with _lock:
        _limits.append(n)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(n)
            _apply()
