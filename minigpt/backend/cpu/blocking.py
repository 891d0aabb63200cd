"""How the CPU goes through arrays: in blocks of rows that fit the L2 cache."""

import functools

import numpy as np

BLOCK = 2**16  # elements of a block: what Python needs for a call is small beside the work


def row_blocks(first, *others):
    """Yield (start, *blocks): rows of each array from `start` on, some BLOCK elements of `first`.

    All arrays have as many rows; what is None stays None.
    """
    n = len(first)
    rows = block_rows(n, first.size // max(n, 1))
    if 0 < n == rows:  # as in decoding, where slices would take longer than the work
        yield 0, first, *others
        return
    for start in range(0, n, rows):
        stop = start + rows
        yield start, *(None if x is None else x[start:stop] for x in (first, *others))


def block_rows(n, width):
    """Return how many of n rows the largest block has, at least one."""
    return max(1, min(n, BLOCK // max(width, 1)))


def rows_of(x, width):
    """Return x as (N, width): a view where it is contiguous, as nearly everything here is."""
    return x.reshape(-1, width)


@functools.lru_cache(64)
def constant(n, value, dtype):
    """Return a vector (n,) of one value, the same every time and not to be written to."""
    x = np.full(n, value, dtype)
    x.flags.writeable = False
    return x


def column_sums(x):
    """Return the sum over the rows of x (N, C): (C,)."""
    return constant(len(x), 1, x.dtype) @ x
