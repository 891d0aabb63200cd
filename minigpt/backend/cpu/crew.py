"""Threads without rows of their own: a batch of one row lends them to the ops that can use them."""

import contextlib
import threading

from minigpt.backend.blas import blas_threads

_lent = threading.local()


@contextlib.contextmanager
def lend(spread):
    """Lend threads to the ops that the calling thread runs, while this context lasts.

    Parameters
    ----------
    spread : function or None
        spread(fn, items) runs fn on a part of the list `items` in each thread, and waits for all.
    """
    before, _lent.spread = getattr(_lent, "spread", None), spread
    try:
        yield
    finally:
        _lent.spread = before


def share(fn, items):
    """Run fn on the list `items`: on a part of them in each thread that is lent, or on all.

    What it makes of an item must not depend on the others of its part.
    """
    spread = getattr(_lent, "spread", None)
    if spread is None or len(items) < 2:
        fn(items)
        return
    with lend(None), blas_threads(1):
        spread(fn, items)
