"""A pool of memory: a buffer that is used again costs no page faults.

The C library returns large blocks to the system when they are freed, and the system clears every
page before it hands it out again. For the arrays of a training step that takes as long as the
computation itself.

Buffers are cut from chunks that are large enough for NumPy to ask for huge pages: one entry of the
address cache (TLB) then covers 512 ordinary pages.
"""

import math
import sys
import threading

import numpy

from minigpt.params import LINE, aligned

SMALL = 2**15  # bytes: smaller blocks the C library keeps by itself
CHUNK = 2**23  # bytes; NumPy asks for huge pages from 4 MB on
MAX_SIZES = 32  # distinct sizes that one thread keeps before it drops them all


class ThreadCache(threading.local):
    """The buffers of a thread by size, and the unused rest of its newest chunk."""

    def __init__(self):
        self.sizes, self.rest = {}, memoryview(b"")


_cache = ThreadCache()


def empty(shape, dtype):
    """Return an uninitialized array of that shape, for the calling thread to fill.

    It begins at a cache line, unless it is small. A buffer is free again when no array refers to it
    any more, by its reference count: a view refers to the buffer at its base, however many views
    lie between.
    """
    dtype = numpy.dtype(dtype)
    n = math.prod(shape)
    if n * dtype.itemsize < SMALL:
        return numpy.empty(shape, dtype)
    sizes = _cache.sizes
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
    """Return the first of a list of buffers with that reference count, or None."""
    for buffer in buffers:
        if sys.getrefcount(buffer) == count:
            return buffer
    return None


# The reference count of a free buffer in a list: versions of Python count differently.
IDLE = next(n for n in range(9) if with_references(n, [numpy.empty(0)]) is not None)


def cut(size):
    """Return a memoryview of `size` bytes, at a cache line: part of a chunk, or its own if large.

    NumPy does not look behind a memoryview: an array on it is the base of all its views.
    """
    if size > CHUNK // 4:
        return aligned(size, numpy.uint8).data
    whole = -(-size // LINE) * LINE
    if len(_cache.rest) < whole:
        _cache.rest = aligned(CHUNK, numpy.uint8).data
    part, _cache.rest = _cache.rest[:size], _cache.rest[whole:]
    return part


def zeros(shape, dtype):
    """Return an array of zeros in memory of the pool."""
    x = empty(shape, dtype)
    x[...] = 0
    return x
