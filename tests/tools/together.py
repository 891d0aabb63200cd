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


class Threads(Ranks):
    """A rank that is a thread; sums are in the order of the ranks."""

    def __init__(self, rank, meeting):
        self.meeting = meeting
        exchange = functools.partial(meeting.exchange, rank)
        super().__init__(rank, len(meeting.values), exchange)

    def _sum(self, flat):
        flat[...] = functools.reduce(np.add, self.meeting.exchange(self.rank, flat.copy()))


def in_ranks(size, work):
    """Return [work(ranks) of each of `size` ranks], at the same time; an exception is raised."""
    meeting, results, errors = Meeting(size), [None] * size, []

    def run(rank):
        try:
            ranks = Threads(rank, meeting)
            results[rank] = work(ranks)
            ranks.leave()
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors
    return results
