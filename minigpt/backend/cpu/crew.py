"""Threads without rows of their own: a batch of one row lends them to the ops that can use them.

What a thread makes is a range of rows, heads or blocks, or some of a head's queries, by their
number alone: so the bits depend on the number of threads, but never on which of them is faster.
"""

import contextlib
import threading

import numpy as np

# Multiplications in a thread's part of a product, at least: some 100 us, where waking up a thread
# and waiting for it takes 50.
PART = 2**22


class Lent(threading.local):
    """What the ops of this thread have: n threads, itself among them, and `spread`; see `lend`."""

    n, spread = 1, None


_lent = Lent()


@contextlib.contextmanager
def lend(n, spread):
    """Lend n threads to the ops that the calling thread runs, while this context lasts.

    Parameters
    ----------
    n : int
        With the calling thread.
    spread : function
        spread(fn, items) runs fn on a part of the list `items` in each thread, and waits for all.
    """
    before = _lent.n, _lent.spread
    _lent.n, _lent.spread = n, spread
    try:
        yield
    finally:
        _lent.n, _lent.spread = before


def size():
    """Return how many threads the ops of the calling thread have."""
    return _lent.n


def share(fn, items):
    """Run fn on the list `items`: on a part of them in each thread that is lent, or on all.

    What it makes of an item must not depend on the others of its part.
    """
    n, spread = _lent.n, _lent.spread
    if n == 1 or len(items) < 2:
        fn(items)
        return

    def alone(part):
        with lend(1, None):
            fn(part)

    spread(alone, items)


def shard_slices(n, parts):
    """Return min(n, parts) slices that cover 0 .. n - 1 as evenly as can be, in order."""
    parts = min(n, parts)
    edges = [n * i // max(parts, 1) for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def parts(n, work):
    """Return slices of 0 .. n - 1: one for each thread, if its part is worth waking it up.

    Parameters
    ----------
    n : int
    work : int
        Multiplications for all n.
    """
    return shard_slices(n, max(1, min(size(), work // PART)))


def product(a, b, out):
    """Write a @ b, of two dimensions each, into `out`: a range of its rows in each thread."""

    def multiply(rows):
        for some in rows:
            np.matmul(a[some], b, out=out[some])

    share(multiply, parts(len(out), out.size * len(b)))
