"""Threads that work on parts of one thing: rows of a batch, weights of a model, parts of an op.

NumPy releases the GIL in every large call, so that Python's threads are enough. Who works on what
goes by its number alone: a result depends on the number of threads, but never on their timing.
"""

import queue
import sys
import threading

import numpy as np

from minigpt.backend.cpu import crew, pool
from minigpt.backend.cpu.crew import shard_slices
from minigpt.errors import UserError
from minigpt.params import LINE_ELEMENTS

IDLE = (), (), (), None  # no call of `_map` is under way


class Threads:
    """n threads that live as long as the object; the caller's is the first of them.

    Parameters
    ----------
    n : int
        With 1, everything runs in the caller's thread. In each call all handle overflows as the
        caller's does (numpy.errstate). BLAS should have one thread in each: blas_threads(1).

    Raises
    ------
    UserError
        If the system does not start as many; those that it has started end.
    """

    def __init__(self, n):
        self.n = n
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
        while (task := tasks.get()) is not None:
            fn, i, item, outcomes, done, errors = task
            try:
                np.seterr(**errors)  # of this thread alone
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
        errors = np.geterr()
        tasks = [(fn, i, items[i], outcomes, done, errors) for i in away]
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
        """End the threads, and with them the memory that they kept.

        Those that Ctrl-C has left at work end after it. None is waited for where Python ends, which
        may have stopped them.
        """
        try:
            for tasks in self._queues:
                tasks.put(None)
            waits = self._call is IDLE and not sys.is_finalizing()
            for thread in self._threads if waits else ():
                thread.join()
        finally:
            self._queues = self._threads = ()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
