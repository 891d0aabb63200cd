"""How fast the optimizer's passes go through memory, beside a triad of the same bytes.

Memory: what has to come from there and go back, each array once. Cache: what all passes over a
block read and write, counted by an array that notes every call of NumPy on it.
"""

import contextlib
from unittest import mock

import numpy as np

from bench.lib import report, timing
from minigpt.backend.cpu import adamw as cpu_adamw
from minigpt.backend.cpu.blocking import row_blocks
from minigpt.optim.adamw import adamw_step
from minigpt.optim.gradients import sum_of_squares
from minigpt.params import aligned
from minigpt.train.threads import Workers

OPTIONS = (1e-3, 0.9, 0.95, 1e-8, 0.1)  # learning rate, betas, eps, weight decay
STEP, SCALE = 10, 0.5


def adamw(p, g, m, v):
    """Take a step of AdamW; all of p decays."""
    adamw_step(p, g, m, v, *OPTIONS, p.size, STEP, SCALE)


def norm(p, g, m, v):
    """Take the norm of the gradient."""
    sum_of_squares(g)


def triad(p, g, m, v):
    """Read and write what AdamW has to, with the fewest passes."""
    for _, pb, gb, mb, vb in row_blocks(p, g, m, v):
        for x in (pb, mb, vb):
            x += gb


WAYS = {"AdamW": (adamw, 7), "norm": (norm, 1), "triad": (triad, 7)}  # numbers of memory for each


class Noted(np.ndarray):
    """An array that adds to `calls` how many numbers each ufunc on it reads and writes."""

    calls = []

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        read = {id(x): x.size for x in inputs if isinstance(x, np.ndarray)}
        self.calls.append(sum(read.values()) + sum(x.size for x in out))
        inputs, out = ([np.asarray(x) for x in xs] for xs in (inputs, out))
        return getattr(ufunc, method)(*inputs, out=tuple(out), **kwargs).view(Noted)


def passes(way, n=1000):
    """Return how many passes a way makes, and how many numbers they read and write, for each."""
    Noted.calls = []
    arrays = (np.ones(n, np.float32).view(Noted) for _ in range(4))
    with mock.patch.object(cpu_adamw, "empty", lambda *args: np.empty(*args).view(Noted)):
        way(*arrays)
    return len(Noted.calls), sum(Noted.calls) / n


def by_way(n, threads, seconds):
    """Return records of each way for n parameters, on so many threads each."""
    arrays = [aligned(n, np.float32) for _ in range(4)]
    for x, value in zip(arrays, (1.0, 1e-3, 1e-3, 1e-6), strict=True):
        x[...] = value
    with contextlib.ExitStack() as stack:
        candidates = {}
        for count in threads:
            workers = stack.enter_context(Workers(count))
            for name, (way, _) in WAYS.items():
                candidates[name, count] = on_ranges(workers, way, arrays)
        times = timing.measure(candidates, seconds)
    records = []
    for (name, count), taken in times.items():
        way, numbers = WAYS[name]
        record = {"way": name, "threads": count, "time": taken.record()}
        record |= {"memory_bytes": 4 * numbers, "bytes_per_s": 4 * numbers * n / taken.median}
        if way is not norm:  # no ufunc
            found, moved = passes(way)
            record |= {"passes": found, "cache_bytes": 4 * moved}
        records.append(record)
    return records


def on_ranges(workers, way, arrays):
    """Return a function that goes a way over all elements of arrays, a range in each thread."""
    return lambda: workers.ranges(lambda i, j: way(*(x[i:j] for x in arrays)), arrays[0].size)


def table(records):
    """Print a row per way and number of threads."""
    headings = ["", "threads", "passes", "cache, B", "memory, B", "ms", "GB/s"]
    rows = []
    for r in records:
        through = [f"{r['passes']}", f"{r['cache_bytes']:.0f}"] if "passes" in r else ["", ""]
        rows.append([r["way"], str(r["threads"]), *through, str(r["memory_bytes"])])
        rows[-1] += [report.milliseconds(r["time"]), f"{r['bytes_per_s'] / 1e9:.1f}"]
    report.print_table(headings, rows)
