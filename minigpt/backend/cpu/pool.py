"""Memory that is reused: an array given out twice costs no page faults the second time.

The C library hands large blocks back to the system when they are freed, and the system clears
every page when it gives it out again; for the arrays of a training step that takes as long as
what is computed with them.

Buffers are cut from chunks that are large enough for NumPy to ask the system for huge pages: it
then looks up one address where it looked up 512.
"""

import math
import sys
import threading

import numpy

from minigpt.params import LINE, aligned

SMALL = 2**15  # bytes: the C library keeps blocks of this size at hand by itself
CHUNK = 2**23  # bytes; NumPy asks for huge pages from 4 MB on
MAX_SIZES = 32  # different sizes kept by one thread before it starts afresh


class Mine(threading.local):
    """What a thread has: its buffers by size, and what is left of its newest chunk."""

    def __init__(self):
        self.sizes, self.rest = {}, memoryview(b"")


_mine = Mine()


def empty(shape, dtype):
    """Return an array of that shape with arbitrary contents, for the calling thread to fill.

    It begins at a cache line, unless it is small. A buffer is free again when no array looks at it
    any more, which its reference count tells: a view holds on to the buffer at its base, however
    many views lie between.
    """
    dtype = numpy.dtype(dtype)
    n = math.prod(shape)
    if n * dtype.itemsize < SMALL:
        return numpy.empty(shape, dtype)
    sizes = _mine.sizes
    buffers = sizes.get((n, dtype))
    if buffers is None:
        if len(sizes) == MAX_SIZES:
            sizes.clear()
        buffers = sizes[n, dtype] = []
    buffer = with_references(IDLE, buffers)
    if buffer is None:
        buffer = numpy.frombuffer(cut(n * dtype.itemsize), dtype)
        buffers.append(buffer)
    return buffer.reshape(shape)


def with_references(count, buffers):
    """Return the first of a list of buffers that is referred to so many times, or None."""
    for buffer in buffers:
        if sys.getrefcount(buffer) == count:
            return buffer
    return None


# References to a buffer in a list that nobody looks at: versions of Python count differently.
IDLE = next(n for n in range(9) if with_references(n, [numpy.empty(0)]) is not None)


def cut(size):
    """Return a memoryview of so many bytes, at a cache line: of a chunk, or alone if it is large.

    NumPy does not look behind a memoryview: an array on it is the base of all its views.
    """
    if size > CHUNK // 4:
        return aligned(size, numpy.uint8).data
    whole = -(-size // LINE) * LINE
    if len(_mine.rest) < whole:
        _mine.rest = aligned(CHUNK, numpy.uint8).data
    part, _mine.rest = _mine.rest[:size], _mine.rest[whole:]
    return part


def zeros(shape, dtype):
    """Return an array of zeros in memory that is reused."""
    x = empty(shape, dtype)
    x[...] = 0
    return x
