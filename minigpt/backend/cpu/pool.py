"""A pool of memory: a buffer that is used again costs no page faults.

The C library returns large blocks to the system when they are freed, and the system clears every
page before it hands it out again. For the arrays of a training step that takes as long as the
computation itself.

Buffers are cut from chunks that are large enough for NumPy to ask for huge pages: one entry of the
address cache (TLB) then covers 512 ordinary pages.
"""

import contextlib
import ctypes
import math
import threading
import weakref

import numpy

from minigpt.params import LINE, aligned

SMALL = 2**15  # bytes: smaller blocks the C library keeps by itself
CHUNK = 2**23  # bytes; NumPy asks for huge pages from 4 MB on
MAX_SIZES = 32  # distinct sizes that one thread keeps before it cuts them all anew


def nobody():
    """Stand for a weak reference to the user of memory that has had none."""


class Block:
    """Memory for one array at a time.

    Between memory and array stands an object that is new each time, the user. Whatever uses the
    memory refers to it, through however many views and in whatever thread: an array must not
    outlive what it lies on. So the memory is free when a weak reference finds the user gone. It is
    an array of ctypes: NumPy refers to what is behind a memoryview, and not to that itself.

    Parameters
    ----------
    memory : (bytes,) memoryview
    """

    __slots__ = ("memory", "address", "kind", "user")

    def __init__(self, memory):
        self.memory, self.kind, self.user = memory, ctypes.c_char * len(memory), nobody
        self.address = ctypes.addressof(self.kind.from_buffer(memory))

    def __len__(self):
        return len(self.memory)

    def array(self, shape, dtype):
        """Return a new array on the memory, which must be free."""
        user = self.kind.from_address(self.address)
        user.memory = self.memory  # keeps it
        self.user = weakref.ref(user)
        return numpy.ndarray(shape, dtype, user)


class ThreadCache(threading.local):
    """The memory of a thread.

    Attributes
    ----------
    buffers : {bytes: list of Block}
        By their size, in use or not.
    chunks : list of Block
        What buffers are cut from.
    rests : list of (bytes,) memoryviews
        What has not been cut off the chunks in use.
    begun : bool
        Whether a piece of work has begun, and has cut no buffer.
    kind : object
        Of the last piece of work.
    busy : bool
        Whether an array is being made: a garbage collection may ask for another meanwhile.
    """

    def __init__(self):
        self.buffers, self.chunks, self.rests = {}, [], []
        self.begun, self.kind, self.busy = False, None, False


_cache = ThreadCache()


@contextlib.contextmanager
def work(kind=None):
    """Do a piece of work in this thread, such as the passes of a batch.

    If it needs a buffer of which there is none, all are cut anew: work on arrays of many shapes
    takes no more memory than on the largest of them. So they are if it is work of another `kind`.
    What comes between two pieces of work adds its buffers to theirs.
    """
    if kind != _cache.kind:
        recycle()
        _cache.kind = kind
    else:
        _cache.begun = True
    try:
        yield
    finally:
        _cache.begun = False


def give_back():
    """Give the calling thread's memory back, but for the arrays that are in use."""
    _cache.__init__()


def empty(shape, dtype):
    """Return an uninitialized array of that shape, for the calling thread to fill.

    It begins at a cache line, unless it is small.
    """
    dtype = numpy.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    cache = _cache
    if size < SMALL or cache.busy:
        return numpy.empty(shape, dtype)
    try:
        cache.busy = True
        for buffer in cache.buffers.get(size, ()):
            if buffer.user() is None:
                break
        else:
            buffer = new_buffer(size)
        return buffer.array(shape, dtype)
    finally:
        cache.busy = False


def new_buffer(size):
    """Return a buffer of `size` bytes that no array lies on yet."""
    cache = _cache
    if cache.begun or (len(cache.buffers) == MAX_SIZES and size not in cache.buffers):
        recycle()
    buffer = Block(cut(size))
    cache.buffers.setdefault(size, []).append(buffer)
    return buffer


def recycle():
    """Forget all buffers: a chunk is free when no array is left on what was cut from it."""
    cache = _cache
    cache.buffers.clear()
    cache.rests.clear()
    cache.begun = False


def cut(size):
    """Return a memoryview of `size` bytes, at a cache line, from where the least is left over."""
    rests, length = _cache.rests, -(-size // LINE) * LINE
    fits = [i for i, rest in enumerate(rests) if len(rest) >= length]
    rest = rests.pop(min(fits, key=lambda i: len(rests[i]))) if fits else chunk_of(length)
    if len(rest) - length >= SMALL:
        rests.append(rest[length:])
    return rest[:size]


def chunk_of(size):
    """Return a memoryview of the smallest free chunk of `size` bytes or more.

    If there is none, others make room for a new one.
    """
    chunks = _cache.chunks
    free = sorted((chunk for chunk in chunks if chunk.user() is None), key=len)
    chunk = next((chunk for chunk in free if len(chunk) >= size), None)
    if chunk is None:
        size = size if size > CHUNK // 4 else CHUNK
        released = 0
        while free and released < size:
            released += len(free[-1])
            chunks.remove(free.pop())
        chunk = Block(aligned(size, numpy.uint8).data)
        chunks.append(chunk)
    return chunk.array(len(chunk), numpy.uint8).data


def zeros(shape, dtype):
    """Return an array of zeros in memory of the pool."""
    x = empty(shape, dtype)
    x[...] = 0
    return x
