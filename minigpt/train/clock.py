"""The clock of a run: the seconds that count, without pauses."""

import collections
import statistics
import time

FACTOR, SLACK_S = 10, 1.0  # a lap is a pause beyond this multiple of what is usual, and this much
RECENT, LEAST = 20, 3  # steps that make up what is usual, at most and at least


class Clock:
    """Counts the seconds of a run.

    A process that was stopped, a laptop that slept, a machine that had to do something else: a lap
    that takes far longer than is usual counts only as long as is usual. Otherwise the learning
    rate of a run with a wall-clock budget would jump over its decay.

    Parameters
    ----------
    seconds : float
        Counted before, in the parts of a run that is resumed.
    began : float
        Reading of time.perf_counter() from which on they count.
    first : callable
        first(read) calls read() on rank 0 and returns its result on every rank: see
        train/ranks.py.

    Attributes
    ----------
    seconds : float
        Up to the last lap.
    step_s : float or None
        Median time of recent steps; None before the first.
    """

    def __init__(self, seconds, began, first=lambda read: read()):
        self.seconds, self.last, self.recent = seconds, began, collections.deque(maxlen=RECENT)
        self.first = first

    @property
    def step_s(self):
        """Median seconds of recent steps, None before the first."""
        return statistics.median(self.recent) if self.recent else None

    def lap(self, usual_s=None):
        """Count the time since the last lap; return the seconds that were left out as a pause."""
        now = self.first(time.perf_counter)
        elapsed, self.last = now - self.last, now
        pause = 0.0
        if usual_s is not None and elapsed > FACTOR * usual_s + SLACK_S:
            pause = elapsed - usual_s
        self.seconds += elapsed - pause
        return pause

    def leave_out(self):
        """Count nothing of the time since the last lap."""
        self.last = self.first(time.perf_counter)

    def steps(self, n):
        """Count n steps, as `lap`; what is usual follows the median of recent steps."""
        start = self.last
        pause = self.lap(n * self.step_s if len(self.recent) >= LEAST else None)
        self.recent.append((self.last - start) / n)
        return pause

    def peek(self):
        """Return the seconds so far, those since the last lap included."""
        return self.seconds + self.first(time.perf_counter) - self.last
