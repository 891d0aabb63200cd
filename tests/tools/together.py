"""Ranks that are threads of one process: what several processes do, without starting any."""

import functools
import threading

import numpy as np

from minigpt.train.ranks import Ranks

PATIENCE_S = 30.0  # that a rank waits for the others


class Meeting:
    """Where threads exchange what they have."""

    def __init__(self, size):
        self.values, self.barrier = [None] * size, threading.Barrier(size, timeout=PATIENCE_S)

    def exchange(self, rank, x):
        """Return what each of them has brought."""
        self.values[rank] = x
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


class Sums:
    """Sums over threads, in the order of the ranks.

    Attributes
    ----------
    sent : int
        Bytes of parts to other ranks.
    """

    def __init__(self, rank, exchange):
        self.rank, self.exchange, self.sent = rank, exchange, 0

    def sum(self, flat):
        """As Mpi's."""
        flat[...] = functools.reduce(np.add, self.exchange(flat.copy()))

    def sum_parts(self, flat, parts):
        """As Mpi's."""
        whole, own = flat.copy(), parts[self.rank]
        self.sum(whole)
        flat[...] = np.nan  # nobody may look at what belongs to others
        flat[own] = whole[own]

    def swap(self, x, sizes):
        """As Mpi's."""
        at, n = sum(sizes[: self.rank]), sizes[self.rank]
        self.sent += x.nbytes - n * x.itemsize
        return np.stack([there[at : at + n] for there in self.exchange(x)])

    def spread(self, flat, parts):
        """As Mpi's."""
        self.sent += flat[parts[self.rank]].nbytes * (len(parts) - 1)
        for part, theirs in zip(parts, self.exchange(flat.copy()), strict=True):
            flat[part] = theirs[part]


def in_ranks(size, work):
    """Return [work(ranks) of each of `size` ranks], at the same time; an exception is raised."""
    meeting, results, errors = Meeting(size), [None] * size, []

    def run(rank):
        ranks = None
        try:
            exchange = functools.partial(meeting.exchange, rank)
            ranks = Ranks(rank, size, exchange, Sums(rank, exchange))
            results[rank] = work(ranks)
            ranks.leave()
        except BaseException as error:
            errors.append(error)
            if ranks is not None:
                ranks._lifeline.close()  # or the others would end this process
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if isinstance(error, KeyboardInterrupt):  # which would end pytest
            raise AssertionError("a rank was interrupted") from error
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors
    return results
