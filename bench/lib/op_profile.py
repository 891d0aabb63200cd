"""Where a step of minigpt spends its time: every op is timed in an extra run."""

import contextlib
import functools
import time

import threadpoolctl

from bench.lib import report
from minigpt.model import blocks, gpt
from minigpt.optim import adamw as optim
from minigpt.train import step as trainer

OTHERS = {trainer: ("sum_gradients",), optim: ("sum_of_squares", "adamw_step")}


def timed_names():
    """Yield (module, name) of what is timed: the ops that a model calls, and a step's own parts."""
    for module in (blocks, gpt):
        for name, fn in vars(module).items():
            of_op = getattr(fn, "__module__", "").startswith("minigpt.ops.")
            if callable(fn) and (of_op and name.endswith("ward") or hasattr(fn, "reference")):
                yield module, name
    for module, names in OTHERS.items():
        yield from ((module, name) for name in names)


@contextlib.contextmanager
def clocks():
    """Wrap what is timed for the length of a with block; give {name: [seconds, calls]}."""
    spent, originals = {}, [(m, n, getattr(m, n)) for m, n in timed_names()]

    def wrap(fn):
        entry = spent.setdefault(fn.__name__, [0.0, 0])

        @functools.wraps(fn)
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                entry[0] += time.perf_counter() - start
                entry[1] += 1

        return timed

    for module, name, fn in originals:
        setattr(module, name, wrap(fn))
    try:
        yield spent
    finally:
        for module, name, fn in originals:
            setattr(module, name, fn)


def by_op(step, seconds):
    """Return records of the time that each op takes in a step, the longest first, on one thread."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        step()
        start = time.perf_counter()
        step()
        steps = max(2, round(seconds / (time.perf_counter() - start)))
        with clocks() as spent:
            start = time.perf_counter()
            for _ in range(steps):
                step()
            whole = (time.perf_counter() - start) / steps
    spent["the rest"] = [steps * whole - sum(time for time, _ in spent.values()), steps]
    records = [
        {"op": op, "seconds": time / steps, "share": time / steps / whole, "calls": calls / steps}
        for op, (time, calls) in spent.items()
        if calls
    ]
    return sorted(records, key=lambda r: -r["seconds"])


def table(records):
    """Print a row per op."""
    rows = [
        [r["op"], f"{1e3 * r['seconds']:.3g}", f"{100 * r['share']:.1f}%", f"{r['calls']:.0f}"]
        for r in records
    ]
    report.print_table(["op", "ms per step", "share", "calls"], rows)
