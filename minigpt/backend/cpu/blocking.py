"""Walking through arrays in blocks of rows that stay in the cache."""

import functools

import numpy as np

# Elements of a block. So many that two threads seldom meet at the interpreter's lock, where waking
# up takes as long as a short call; so few that what several threads work on is in the L3 cache.
# Last bits depend on it: sums over rows and the norm are sums of the blocks' sums.
BLOCK = 2**17


def row_blocks(first, *others):
    """Yield (start, *blocks): rows of each array from `start` on, about BLOCK elements of `first`.

    All arrays have the same number of rows; None stays None.
    """
    n = len(first)
    rows = block_rows(n, first.size // max(n, 1))
    if 0 < n == rows:  # as in decoding, where slicing would take longer than the work
        yield 0, first, *others
        return
    for start in range(0, n, rows):
        stop = start + rows
        yield start, *(None if x is None else x[start:stop] for x in (first, *others))


def block_rows(n, width):
    """Return the number of rows of a full block, of n rows of that width: at least 1, at most n."""
    return max(1, min(n, BLOCK // max(width, 1)))


def rows_of(x, width):
    """Return x as (N, width): a view where x is contiguous, as nearly all arrays here are."""
    return x.reshape(-1, width)


@functools.lru_cache(64)
def constant(n, value, dtype):
    """Return a vector (n,) filled with value: cached, hence read-only."""
    x = np.full(n, value, dtype)
    x.flags.writeable = False
    return x


def column_sums(x):
    """Return the sums over the rows of x (N, C): (C,), by BLAS.

    Where x holds an infinity, the sum is not finite, but may be nan in place of inf (see this
    folder's docstring).
    """
    return constant(len(x), 1, x.dtype) @ x
