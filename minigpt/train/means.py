"""Means since the last line of the metrics: of the losses, and of the tokens per second."""

import math


class LossMean:
    """The mean of the training losses since the last multiple of log_interval.

    On a GPU the sum stays there until it is read. Losses that are not finite are left out; on a GPU
    with all others since the last reading, since they come as a sum.
    """

    def __init__(self, total=0.0, count=0):
        self.total, self.count = self.finite = total, count

    def clear(self):
        """Start over."""
        self.total, self.count = self.finite = 0.0, 0

    def add(self, loss):
        """Add the loss of a step."""
        self.total, self.count = self.total + loss, self.count + 1

    def read(self):
        """Wait for the sum and return it, finite or not; what stays is finite."""
        total = float(self.total)
        if math.isfinite(total):
            self.finite = total, self.count
        self.total, self.count = self.finite
        return total

    @property
    def mean(self):
        """Nats per token, or None if no loss was finite."""
        return self.total / self.count if self.count else None


class Throughput:
    """Tokens per second of training alone, since the last line of the metrics."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Start over."""
        self.tokens, self.seconds = 0, 0.0

    def add(self, tokens, seconds):
        """Count a step."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds

    @property
    def rate(self):
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0
