"""Where a run ends: after its steps; or by passes through its data and seconds of the clock.

    steps              progress = steps / max_iters
    passes, seconds    progress = max(passes / max_passes, seconds / max_seconds), or what is given

At progress 1 the run is over. With passes or seconds the schedule goes by the progress, too, and so
by whichever limit comes first: learning rate and weight decay are those of the run that there is
time for, and more time, or a faster machine, adds no passes beyond those that are asked for.
"""

import math
from decimal import Decimal
from fractions import Fraction

from minigpt.cli import plural
from minigpt.optim.schedule import budget_used


class Limits:
    """The limits of a run.

    Parameters
    ----------
    train_config : TrainConfig
    data_rows : int, optional
        Rows of batches in a pass through the training data: windows of a text side by side, or
        pairs. None where nobody knows.
    ahead : int
        Rows that a run has taken beyond those of its steps at their present size.

    Attributes
    ----------
    by_steps : bool
        Whether max_iters counts, as neither passes nor seconds are given.
    passes, seconds : float or None
    steps : int or None
        At the latest: max_iters, or the passes, rounded up to a whole step. None where the clock
        alone tells, or the passes are of data that nobody knows.
    """

    def __init__(self, train_config, data_rows=None, ahead=0):
        self.passes, self.seconds = train_config.max_passes, train_config.max_seconds
        self.by_steps = not (self.passes or self.seconds)
        self.data_rows, self.ahead = data_rows, ahead
        self.step_rows = train_config.batch_size * train_config.gradient_accumulation_steps
        self.steps = train_config.max_iters if self.by_steps else None
        if self.passes and data_rows:
            rows = Fraction(str(self.passes)) * data_rows  # as it is written: 1.1 of 10 are 11
            self.steps = max(1, math.ceil((rows - ahead) / self.step_rows))

    def rows(self, step):
        """Return how many rows a run has trained on after so many steps."""
        return step * self.step_rows + self.ahead

    def used_up(self, step):
        """Tell whether steps or passes are over; of the time it says nothing."""
        return self.steps is not None and step >= self.steps

    def progress(self, step, seconds=0.0, reserve_s=0.0):
        """Return the fraction of a run that is over, 0 to 1; at 1 no step follows.

        Parameters
        ----------
        step : int
            Steps done.
        seconds, reserve_s : float
            As of schedule.budget_used.
        """
        if self.by_steps:
            return min(step / self.steps, 1.0)
        passes = min(self.rows(step) / self.rows(self.steps), 1.0) if self.steps else 0.0
        time = budget_used(seconds, self.seconds, reserve_s) if self.seconds else 0.0
        return max(passes, time)

    def schedule(self, step, *spent):
        """Return the progress that the schedule goes by; None where it counts steps."""
        return None if self.by_steps else self.progress(step, *spent)

    def seconds_left(self, step, seconds, step_s):
        """Return the seconds until the end, about, of a run whose steps take `step_s`."""
        by_steps = math.inf if self.steps is None else (self.steps - step) * step_s
        by_clock = self.seconds - seconds if self.seconds else math.inf
        return max(min(by_steps, by_clock), 0.0)

    def length(self):
        """Return the length of a run in words."""
        steps = "" if self.steps is None else plural(self.steps, "step", ",")
        if self.by_steps:
            return steps
        time, passes = f"{self.seconds:g} seconds" if self.seconds else "", ""
        if self.passes:
            passes = describe_passes(self.passes) + (f" ({steps})" if steps else "")
        return f"at most {time} and {passes}" if time and passes else time or passes

    def place(self, step, seconds):
        """Return in words how far a run has come."""
        of = "" if self.steps is None else f" of {self.steps:,}"
        return f"step {step:,}{of}" + (f", {self.time(seconds)}" if self.seconds else "")

    def time(self, seconds):
        """Return in words how much of its time a run has used."""
        return f"{seconds:.0f} of {self.seconds:g} s"

    def reason(self, step, seconds):
        """Return in words why a run is over, and what it has used of everything else."""
        steps, made = plural(step, "step", ","), self.rows(step) / self.data_rows
        made = round(made) if made >= 1000 else float(f"{made:.3g}")
        if not self.used_up(step):
            passes = f"{digits(made)} of {count_passes(self.passes)}" if self.passes else None
            return f"ended after {self.time(seconds)}: {steps}, {passes or count_passes(made)}"
        if self.by_steps:
            return f"ended after {steps}: {describe_passes(made)}"
        time = f", {self.time(seconds)}" if self.seconds else ""
        return f"ended after {describe_passes(self.passes)}: {steps}{time}"


def digits(x):
    """Return a number as it was given, without an exponent: "0.1234567", "1,500"."""
    return f"{Decimal(str(x)).normalize():,f}"


def count_passes(n):
    """Return a number of passes with its noun."""
    return f"{digits(n)} pass{'es' * (n != 1)}"


def describe_passes(n):
    """Return a number of passes in words."""
    return f"{count_passes(n)} through the training data"
