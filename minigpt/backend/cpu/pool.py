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
MAX_SIZES = 32  # distinct sizes that one thread keeps before it cuts them all anew


class ThreadCache(threading.local):
    """The memory of a thread.

    Attributes
    ----------
    sizes : {(elements, dtype): list of arrays}
        The buffers, in use or not.
    cut, whole : lists of (bytes,) uint8
        The chunks that buffers have been cut from, and those that are untouched.
    rests : list of (bytes,) uint8
        What has not been cut off the chunks in `cut`.
    begun : bool
        Whether no buffer has been cut since a piece of work began.
    late : bool
        Whether buffers were cut anew in the middle of a piece of work, when some were in use.
    kind : object
        Of the work that has begun.
    """

    def __init__(self):
        self.sizes, self.cut, self.whole, self.rests = {}, [], [], []
        self.begun, self.late, self.kind = False, False, None


_cache = ThreadCache()


def begin_work(kind=None):
    """Say that a piece of work begins in this thread, such as the passes of a batch.

    If it needs a buffer of which there is none, all are cut anew: work on arrays of many shapes
    takes no more memory than on the largest of them. Where that comes late, after buffers that
    happen to fit, they are all cut once more at the next beginning: then they are the right ones.
    So they are if it is work of another `kind`.
    """
    if _cache.late or kind != _cache.kind:
        recycle()
        _cache.kind = kind
    else:
        _cache.begun = True


def give_back():
    """Give the calling thread's memory back, but for the arrays that are in use."""
    _cache.__init__()


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
    buffer = with_references(IDLE, _cache.sizes.get((n, dtype), ()))
    if buffer is None:
        buffer = new_buffer(n, dtype)
    return buffer.reshape(shape)


def with_references(count, buffers):
    """Return the first of a list of buffers with that reference count, or None."""
    for buffer in buffers:
        if sys.getrefcount(buffer) == count:
            return buffer
    return None


# The reference count of a free buffer in a list: versions of Python count differently.
IDLE = next(n for n in range(9) if with_references(n, [numpy.empty(0)]) is not None)


def new_buffer(n, dtype):
    """Return a buffer (n,) that no array refers to yet."""
    sizes = _cache.sizes
    if _cache.begun or (len(sizes) == MAX_SIZES and (n, dtype) not in sizes):
        recycle()
        _cache.late = bool(_cache.cut)
    buffer = numpy.frombuffer(cut(n * dtype.itemsize), dtype)
    sizes.setdefault((n, dtype), []).append(buffer)
    return buffer


def recycle():
    """Forget all buffers, so that chunks of which no array is left are whole again."""
    cache = _cache
    cache.sizes.clear()
    cache.rests.clear()
    cache.begun = cache.late = False
    while (chunk := with_references(IDLE, cache.cut)) is not None:
        remove(cache.cut, chunk)
        cache.whole.append(chunk)


def remove(arrays, array):
    """Remove that very array from a list."""
    del arrays[next(i for i, other in enumerate(arrays) if other is array)]


def cut(size):
    """Return a memoryview of `size` bytes, at a cache line, from where the least is left over.

    NumPy does not look behind a memoryview: an array on it is the base of all its views.
    """
    cache, length = _cache, -(-size // LINE) * LINE
    rest = min((x for x in cache.rests if len(x) >= length), key=len, default=None)
    if rest is None:
        rest = chunk_of(length)
        cache.cut.append(rest)
    else:
        remove(cache.rests, rest)
    if len(rest) - length >= SMALL:
        cache.rests.append(rest[length:])
    return rest[:size].data


def chunk_of(size):
    """Return the smallest whole chunk of `size` bytes or more; others make room for a new one."""
    whole = _cache.whole
    chunk = min((x for x in whole if len(x) >= size), key=len, default=None)
    if chunk is not None:
        remove(whole, chunk)
        return chunk
    size = size if size > CHUNK // 4 else CHUNK
    released = 0
    while whole and released < size:
        released += len(whole.pop())
    return numpy.frombuffer(aligned(size, numpy.uint8).data, numpy.uint8)


def zeros(shape, dtype):
    """Return an array of zeros in memory of the pool."""
    x = empty(shape, dtype)
    x[...] = 0
    return x
