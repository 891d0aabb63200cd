"""Where the two passes of a model spend their time: every op is timed, on one thread."""

import contextlib
import functools
import threading
import time

from minigpt.backend.blas import blas_threads
from minigpt.model import blocks, encoder_decoder, gpt

REST = "the rest"
_one_at_a_time = threading.Lock()


def timed_names():
    """Return {(module, name)} of what is timed: the ops that the models call."""
    return {
        (module, name)
        for module in (blocks, gpt, encoder_decoder)
        for name, fn in vars(module).items()
        if callable(fn) and is_op(name, fn)
    }


def is_op(name, fn):
    """Tell whether a function of a model's module is an op's pass."""
    of_op = getattr(fn, "__module__", "").startswith("minigpt.ops.")
    return of_op and name.endswith("ward") or hasattr(fn, "reference")


@contextlib.contextmanager
def clocks(others=()):
    """Wrap what is timed for the length of a with block; give {name: [seconds, calls]}.

    Calls of other threads are not timed.

    Parameters
    ----------
    others : iterable of (module, name)
        Functions to be timed beside the ops.
    """
    spent, own = {}, threading.get_ident()

    def wrap(fn):
        entry = spent.setdefault(fn.__name__, [0.0, 0])

        @functools.wraps(fn)
        def timed(*args, **kwargs):
            if threading.get_ident() != own:
                return fn(*args, **kwargs)
            start = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                entry[0] += time.perf_counter() - start
                entry[1] += 1

        return timed

    with _one_at_a_time:
        names = sorted({*timed_names(), *others}, key=lambda place: place[1])
        originals = [(module, name, getattr(module, name)) for module, name in names]
        for module, name, fn in originals:
            setattr(module, name, wrap(fn))
        try:
            yield spent
        finally:
            for module, name, fn in originals:
                setattr(module, name, fn)


def by_op(step, seconds, others=(), least=2):
    """Return records of the time that each op takes in a step, the longest first, on one thread.

    Parameters
    ----------
    step : callable
        Does the step; it is called once before the time is taken.
    seconds : float
        To measure, about.
    others : iterable of (module, name)
        As of `clocks`.
    least : int
        Steps that are measured, whatever time they take.

    Returns
    -------
    records : list of {"op", "seconds", "share", "calls"}, each of a step
    """
    with blas_threads(1):
        start = time.perf_counter()
        step()
        steps = max(least, round(seconds / (time.perf_counter() - start)))
        with clocks(others) as spent:
            start = time.perf_counter()
            for _ in range(steps):
                step()
            whole = (time.perf_counter() - start) / steps
    spent[REST] = [steps * whole - sum(time for time, _ in spent.values()), steps]
    records = [
        {"op": op, "seconds": time / steps, "share": time / steps / whole, "calls": calls / steps}
        for op, (time, calls) in spent.items()
        if calls
    ]
    return sorted(records, key=lambda r: -r["seconds"])
