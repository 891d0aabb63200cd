"""Threads without rows of their own: a batch of one row lends them to the ops that can use them.

What a thread makes is a range of rows, of heads or of blocks, by their number alone: so the bits
depend on the number of threads, but never on which of them is faster.
"""

import contextlib
import threading

import numpy as np

# Multiplications in a thread's part of a product, at least: some 100 us, where waking up a thread
# and waiting for it takes 50.
PART = 2**22

_lent = threading.local()  # .crew: (how many, spread) within `lend`, else None
NOBODY = (1, None)


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
    before, _lent.crew = getattr(_lent, "crew", NOBODY), (n, spread)
    try:
        yield
    finally:
        _lent.crew = before


def size():
    """Return how many threads the ops of the calling thread have."""
    return getattr(_lent, "crew", NOBODY)[0]


def share(fn, items):
    """Run fn on the list `items`: on a part of them in each thread that is lent, or on all.

    What it makes of an item must not depend on the others of its part.
    """
    n, spread = getattr(_lent, "crew", NOBODY)
    if n == 1 or len(items) < 2:
        fn(items)
        return

    def alone(part):
        with lend(*NOBODY):
            fn(part)

    spread(alone, items)


def parts(n, work):
    """Return slices of 0 .. n - 1: one for each thread, if its part is worth waking it up.

    Parameters
    ----------
    n : int
    work : int
        Multiplications for all n.
    """
    count = max(1, min(size(), n, work // PART))
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def product(a, b, out):
    """Write a @ b, of two dimensions each, into `out`: a range of its rows in each thread."""

    def multiply(rows):
        for some in rows:
            np.matmul(a[some], b, out=out[some])

    share(multiply, parts(len(out), out.size * len(b)))
