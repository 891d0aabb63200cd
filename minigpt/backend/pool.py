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
MAX_SIZES = 32  # different sizes kept by one thread before it starts afresh

_mine = threading.local()


def empty(shape, dtype):
    """Return an array of that shape with arbitrary contents, for the calling thread to fill.

    A buffer is free again when no array looks at it any more, which its reference count tells:
    a view holds on to the buffer at its base, however many views lie between.
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
        if sys.getrefcount(buffer) == 3:  # the list, the loop's variable, the argument
            return buffer.reshape(shape)
    buffer = numpy.empty(n, dtype)
    buffers.append(buffer)
    return buffer.reshape(shape)
