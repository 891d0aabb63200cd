"""Memory that is reused: an array given out twice costs no page faults the second time.

The C library hands large blocks back to the system when they are freed, and the system clears
every page when it gives it out again; for the arrays of a training step that takes as long as
what is computed with them.
"""

import math
import sys
import threading

import numpy

SMALL = 2**15  # bytes: the C library keeps blocks of this size at hand by itself
LINE = 64  # bytes: vectors that begin where cache lines do are loaded faster
MAX_SIZES = 32  # different sizes kept by one thread before it starts afresh

_mine = threading.local()


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
    try:
        sizes = _mine.sizes
    except AttributeError:
        sizes = _mine.sizes = {}
    buffers = sizes.get((n, dtype))
    if buffers is None:
        if len(sizes) == MAX_SIZES:
            sizes.clear()
        buffers = sizes[n, dtype] = []
    for buffer in buffers:
        if sys.getrefcount(buffer.base) == 2:  # `buffer` itself and the argument
            return buffer.reshape(shape)
    buffers.append(aligned(n, dtype))
    return buffers[-1].reshape(shape)


def aligned(n, dtype, allocate=numpy.empty):
    """Return an array (n,) that begins at a cache line; `allocate` makes it."""
    dtype = numpy.dtype(dtype)
    array = allocate(n + LINE // dtype.itemsize, dtype)
    if not isinstance(array, numpy.ndarray):  # a device's memory begins at lines of its own
        return array[:n]
    first = -array.__array_interface__["data"][0] % LINE // dtype.itemsize
    return array[first : first + n]
