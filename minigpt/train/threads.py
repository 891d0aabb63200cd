"""Threads over shards of the batch: each takes its rows through the forward and backward pass.

NumPy releases the GIL in every large call, so that Python's threads are enough. BLAS uses one
thread in each of them: several would wait for each other in every product of a small model. What
the shards have left is brought together in a fixed order, so that a run depends on the number of
threads, but never on their timing. minigpt/README.md, "Who computes what", has a picture.
"""

import contextlib
import itertools
import queue
import threading

import numpy as np

from minigpt.backend.blas import blas_threads
from minigpt.backend.cpu import crew, pool
from minigpt.backend.cpu.crew import shard_slices
from minigpt.backend.cpu.pool import empty
from minigpt.errors import UserError
from minigpt.optim.gradients import gather
from minigpt.params import LINE_ELEMENTS

IDLE = (), (), (), None  # no call of `_map` is under way
STACK = 2**20  # numbers of x, or of a product to be added, that a thread has at one time


class Workers:
    """n threads that live as long as the object; the caller's is the first of them.

    Parameters
    ----------
    n : int
        With 1, everything runs in the caller's thread. BLAS has one thread in each of them. All
        handle overflows as the caller's does at the start (numpy.errstate).

    Raises
    ------
    UserError
        If the system does not start as many; those that it has started end.
    """

    def __init__(self, n):
        self.n = n
        self._blas, self._errors = contextlib.ExitStack(), np.geterr()
        self._blas.enter_context(blas_threads(1))
        self._queues, self._threads = [queue.SimpleQueue() for _ in range(n - 1)], []
        self._call = IDLE
        try:
            for i, tasks in enumerate(self._queues):
                thread = threading.Thread(
                    target=self._work, args=(tasks,), name=f"shard-{i + 1}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        except (RuntimeError, MemoryError) as error:
            self.close()
            raise UserError(
                f"{n} threads cannot be started: {error or 'out of memory'}; take fewer by "
                "--threads"
            ) from None
        except BaseException:  # Ctrl-C
            self.close()
            raise

    def _work(self, tasks):
        np.seterr(**self._errors)  # of this thread alone
        while (task := tasks.get()) is not None:
            fn, i, item, outcomes, done = task
            try:
                outcomes[i] = fn(item), None
            except BaseException as error:  # carried to the caller's thread
                outcomes[i] = None, error
            del task, fn, item, outcomes  # before the caller goes on: its memory is free then
            done.put(None)

    def map(self, fn, items):
        """Return [fn(item) for item in items], item i on thread i mod n, at the same time.

        Each item is a piece of work, of a kind with those that the same function does: see
        backend.cpu.pool. A single one, such as a batch of one row, lends all n threads to the ops:
        see backend.cpu.crew.
        """
        items = list(items)
        kind = getattr(fn, "__code__", None)  # a nested function is another object every time

        def work(item):
            with pool.work(kind):
                return fn(item)

        if len(items) != 1:
            return self._map(work, items)
        with crew.lend(self.n, self._spread):
            return self._map(work, items)

    def _map(self, fn, items):
        """Do as `map`, for a list of parts of a piece of work.

        Ctrl-C leaves at once; what the threads are at then is waited for by the next call.
        """
        self._wait()
        outcomes, done = [None] * len(items), queue.SimpleQueue()  # (result, error) of each
        away, sent = [i for i in range(len(items)) if i % self.n], []
        queues = [self._queues[i % self.n - 1] for i in away]
        tasks = [(fn, i, items[i], outcomes, done) for i in away]
        self._call = outcomes, away, sent, done
        # All in one call of C, so that Ctrl-C comes before or after: `sent` says which.
        sent.extend(map(queue.SimpleQueue.put, queues, tasks))
        del tasks
        try:
            for i in range(0, len(items), self.n):
                outcomes[i] = fn(items[i]), None
        except Exception as error:
            outcomes[i] = None, error
        self._wait()  # even after an error: no part may outlive this call
        error = next((outcome[1] for outcome in outcomes if outcome and outcome[1]), None)
        if error is None:
            return [result for result, _ in outcomes]
        del outcomes
        try:
            raise error
        finally:
            del error  # or its traceback, which refers to it, keeps the memory of the pieces

    def _wait(self):
        """Wait for what the threads have been sent in the last call."""
        outcomes, away, sent, done = self._call
        while sent and any(outcomes[i] is None for i in away):
            done.get()
        self._call = IDLE

    def _spread(self, fn, items):
        """Run fn on a part of the list `items` in each thread."""
        self._map(fn, [items[part] for part in shard_slices(len(items), self.n)])

    def ranges(self, fn, n):
        """Return fn(start, stop) of each thread, for n elements or units of work.

        They are cut at multiples of 16, so that no two threads write to one cache line of an array
        that begins at one. Of none there is one range, which is empty.
        """
        line, lines = LINE_ELEMENTS, max(-(-n // LINE_ELEMENTS), 1)
        return self._map(
            lambda s: fn(s.start * line, min(s.stop * line, n)), shard_slices(lines, self.n)
        )

    def close(self):
        """End the threads, give BLAS its own back, and the memory that all of them kept.

        Those that Ctrl-C has left at work end after it.
        """
        try:
            pool.give_back()
            for tasks in self._queues:
                tasks.put(None)
            for thread in self._threads if self._call is IDLE else ():
                thread.join()
        finally:
            self._queues = self._threads = ()
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


def sum_gradients(workers, trees, grads, add=False, filled=(), later=None):
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
        Of `grads`, those that nothing is to be copied to, once for each of the shards: see
        backend/places.py. A shard alone has left its gradients there; of several, all have left
        factors.
    later : Later, optional
        These factors.
    """
    shards = [grads.ordered(tree) for tree in trees]
    there = [[x is place for x, place in zip(x, grads.arrays, strict=True)] for x in shards]
    if any(x != there[0] for x in there) or sum(map(sum, there)) != len(filled):
        raise RuntimeError(
            "a gradient that was left in its place is not the one that is returned: did "
            "minigpt.plain() begin or end amid the step?"
        )
    edges = [*grads.starts, grads.size]
    for done, run in itertools.groupby(range(len(grads.arrays)), there[0].__getitem__):
        if done:
            continue
        run = list(run)  # arrays that are not there, one after the other
        first, stop = run[0], run[-1] + 1
        arrays = [shard[first:stop] for shard in shards]
        sum_arrays(workers, arrays, grads.flat[edges[first] : edges[stop]], add)
    if later is not None:
        places = [x for x, done in zip(grads.arrays, there[0], strict=True) if done]
        multiply(workers, factors_of(later, places), add)
        for how in itertools.chain(*later.changes):
            how()


def sum_arrays(workers, shards, flat, add):
    """Write the sum of the arrays of each shard, end to end, to `flat`; or add it."""

    def reduce(start, stop):
        whole = stop - start == flat.size  # of one thread: nothing is to be cut
        pieces = tuple(arrays if whole else cut(arrays, start, stop) for arrays in shards)
        gather(flat[start:stop], pieces, add)

    workers.ranges(reduce, flat.size)


def factors_of(later, places):
    """Return [(place, x of each shard, dy of each shard)] of what has been left as factors."""
    found = []
    for place in places:
        xs, dys = zip(*(shard[id(place)] for shard in later.factors), strict=True)
        found.append((place, xs, dys))
    return found


def multiply(workers, products, add):
    """Write the gradients that were left as factors: x^T dy over the rows of all shards; or add it.

    Each thread has a range of their rows, end to end: as a rule whole matrices, and parts of two.

    Parameters
    ----------
    workers : Workers
    products : list of (place, sequence of x (N_i, C_in), sequence of dy (N_i, C_out))
    add : bool
    """
    edges = [0, *itertools.accumulate(place.size for place, *_ in products)]

    def make(start, stop):
        for at, (place, xs, dys) in zip(edges, products, strict=False):
            first, last = (-((at - edge) // place.shape[1]) for edge in (start, stop))
            rows = slice(max(first, 0), max(last, 0))
            multiply_rows(place[rows], [x[:, rows] for x in xs], dys, add)

    workers.ranges(make, edges[-1])


def multiply_rows(out, xs, dys, add):
    """Write x^T dy to some rows of a gradient, or add it; x and dy are those of all shards."""
    n, width = sum(map(len, xs)), out.shape[1]
    step = max(1, STACK // max(n, width if add else 1))
    dy = stack(dys) if len(out) else None
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        x = stack([x[:, some] for x in xs])
        if add:
            out[some] += np.matmul(x.T, dy, out=empty((x.shape[1], width), dy.dtype))
        else:
            np.matmul(x.T, dy, out=out[some])


def stack(arrays):
    """Return arrays (N_i, C) below one another, in memory that is reused."""
    shape = sum(map(len, arrays)), arrays[0].shape[1]
    return np.concatenate(arrays, out=empty(shape, arrays[0].dtype))
