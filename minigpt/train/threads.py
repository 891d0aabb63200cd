"""Threads over shards of the batch: each takes its rows through the forward and backward pass.

NumPy releases the GIL in every large call, so that Python's threads are enough. BLAS uses one
thread in each of them: several would wait for each other in every product of a small model. The
results are combined in a fixed order, so that a run depends on the number of threads, but never on
their timing.
"""

import contextlib
import itertools
import queue
import threading

import numpy

from minigpt.backend.blas import blas_threads
from minigpt.backend.cpu import pool
from minigpt.errors import UserError
from minigpt.optim.gradients import gather

LINE_ELEMENTS = 16  # of float32 in a cache line


def shard_slices(n, parts):
    """Return min(n, parts) slices that cover 0 .. n - 1 as evenly as can be, in order."""
    parts = min(n, parts)
    edges = [n * i // max(parts, 1) for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


class Workers:
    """n threads that live as long as the object; the caller's is the first of them.

    Parameters
    ----------
    n : int
        With 1, everything runs in the caller's thread and BLAS keeps its own threads. All of them
        handle overflows as the caller's does at the start (numpy.errstate).

    Raises
    ------
    UserError
        If the system does not start as many; those that it has started end.
    """

    def __init__(self, n):
        self.n = n
        self._blas, self._errors = contextlib.ExitStack(), numpy.geterr()
        if n > 1:
            self._blas.enter_context(blas_threads(1))
        self._queues = [queue.SimpleQueue() for _ in range(n - 1)]
        self._done = queue.SimpleQueue()
        try:
            for i, tasks in enumerate(self._queues):
                threading.Thread(
                    target=self._work, args=(tasks,), name=f"shard-{i + 1}", daemon=True
                ).start()
        except (RuntimeError, MemoryError) as error:
            self.close()
            raise UserError(
                f"{n} threads cannot be started: {error or 'out of memory'}; take fewer by "
                "--threads"
            ) from None

    def _work(self, tasks):
        numpy.seterr(**self._errors)  # of this thread alone
        while (task := tasks.get()) is not None:
            fn, i, item = task
            try:
                self._done.put((i, fn(item), None))
            except BaseException as error:  # carried to the caller's thread
                self._done.put((i, None, error))
            del task, fn, item

    def map(self, fn, items):
        """Return [fn(item) for item in items], item i on thread i mod n, at the same time.

        Each item is a piece of work, of a kind with those that the same function does: see
        backend.cpu.pool.
        """
        kind = getattr(fn, "__code__", None)  # a nested function is another object every time

        def work(item):
            pool.begin_work(kind)
            return fn(item)

        return self._map(work, items)

    def _map(self, fn, items):
        """Do as `map`, for a part of a piece of work."""
        items = list(items)
        results = [None] * len(items)
        sent = 0
        for i, item in enumerate(items):
            if i % self.n:
                self._queues[i % self.n - 1].put((fn, i, item))
                sent += 1
        errors = []
        try:
            for i in range(0, len(items), self.n):
                results[i] = fn(items[i])
        except BaseException as error:
            errors.append(error)
        for _ in range(sent):  # wait for all, even after an error: none may outlive this call
            i, results[i], error = self._done.get()
            if error is not None:
                errors.append(error)
        if errors:
            raise errors[0]
        return results

    def ranges(self, fn, n):
        """Return fn(start, stop) of each thread, for n elements or units of work.

        They are cut at multiples of 16, so that no two threads write to one cache line.
        """
        line, lines = LINE_ELEMENTS, -(-n // LINE_ELEMENTS)
        return self._map(
            lambda s: fn(s.start * line, min(s.stop * line, n)), shard_slices(lines, self.n)
        )

    def close(self):
        """End the threads, give BLAS its own back, and the memory that all of them kept."""
        pool.give_back()
        for tasks in self._queues:
            tasks.put(None)
        self._queues = []
        self._blas.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def cut(arrays, start, stop):
    """Return views on the elements start .. stop - 1 of arrays that are laid end to end."""
    pieces, at = [], 0
    for array in arrays:
        a, b = max(start - at, 0), min(stop - at, array.size)
        if b - a == array.size:
            pieces.append(array)
        elif a < b:
            pieces.append(array.reshape(-1)[a:b])
        at += array.size
    return tuple(pieces)


def sum_gradients(workers, trees, grads, add=False, filled=()):
    """Write the sum of the shards' gradients into `grads`: shard by shard, in order.

    Parameters
    ----------
    workers : Workers
    trees : list of trees of gradients
    grads : Params
        Receives the sum.
    add : bool
        Whether to add to what `grads` holds, as for a further batch of the same step.
    filled : list of arrays
        Of `grads`, those where the only shard has left its gradients by itself: see
        backend/places.py.
    """
    shards = [grads.ordered(tree) for tree in trees]
    there = [x is place for x, place in zip(shards[0], grads.arrays, strict=True)]
    if sum(there) != len(filled) or filled and len(shards) > 1:
        raise RuntimeError("a gradient that was left in its place is not the one that is returned")
    edges = [*grads.starts, grads.size]
    for done, run in itertools.groupby(range(len(there)), there.__getitem__):
        if done:
            continue
        run = list(run)  # arrays that are not there, one after the other
        first, stop = run[0], run[-1] + 1
        arrays = [shard[first:stop] for shard in shards]
        sum_arrays(workers, arrays, grads.flat[edges[first] : edges[stop]], add)


def sum_arrays(workers, shards, flat, add):
    """Write the sum of the arrays of each shard, end to end, to `flat`; or add it."""

    def reduce(start, stop):
        whole = stop - start == flat.size  # of one thread: nothing is to be cut
        pieces = tuple(arrays if whole else cut(arrays, start, stop) for arrays in shards)
        gather(flat[start:stop], pieces, add)

    workers.ranges(reduce, flat.size)
