"""How the CPU goes through arrays: in blocks of rows that fit the L2 cache."""

import functools

import numpy as np

BLOCK = 2**16  # elements of a block: what Python needs for a call is small beside the work


def row_blocks(n, width):
    """Yield slices of rows 0 .. n - 1 that hold about BLOCK elements each."""
    rows = block_rows(n, width)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


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
