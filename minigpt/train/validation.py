"""What an evaluation of a run takes: the validation split, or an even part of it.

A part, where the split has more tokens than --eval-tokens, or where a wall-clock budget leaves no
time for more: it is chosen once, so that the losses of a run compare. The rest follows at the end.
"""

import math

import numpy as np

from minigpt.sample.evaluation import even_part

SPEED = 2  # how much faster than training an evaluation is, at least
EVAL_FRACTION = 0.05  # of a wall-clock budget that an evaluation may take, at most
TRIAL_TOKENS = 4096  # of an evaluation that only shows how fast it is
REST_FRACTION = 0.1  # that the evaluation of the rest may take at the end


class Validation:
    """Which items of the validation split an evaluation takes, and how long that is.

    Parameters
    ----------
    items, targets : int
        Of the split.
    train_config : TrainConfig
    limit : int, optional
        Targets in the part that the run has evaluated so far.

    Attributes
    ----------
    which : (k,) int, or None
        Items in the part, None for all.
    rate : float or None
        Targets per second; None until one is known.
    share_s : float or None
        Seconds that an evaluation may take of a wall-clock budget.
    measure_s : float
        Seconds for what is measured beside the loss.
    """

    def __init__(self, items, targets, train_config, limit=None):
        self.items, self.targets = items, targets
        self.asked, self.budget_s = train_config.eval_tokens or targets, train_config.max_seconds
        self.share_s = self.budget_s and EVAL_FRACTION * self.budget_s
        self.rate, self.measure_s, self.limit = None, 0.0, limit
        self.which = None if limit is None else even_part(items, targets, limit)

    def affordable(self, train_rate):
        """Return how many targets there is time for, given how many a second are trained on."""
        if not self.budget_s:
            return math.inf
        return max(1, int(self.speed(train_rate) * self.share_s))

    def speed(self, train_rate):
        """Return targets per second: measured, or estimated."""
        return self.rate or SPEED * train_rate

    def trial(self):
        """Return a small part (which, done, targets) that shows how fast an evaluation is."""
        few = min(TRIAL_TOKENS, self.targets)
        return even_part(self.items, self.targets, few), 0, few

    def choose(self, train_rate):
        """Choose the part, before the first evaluation; return a line on it, or None."""
        if self.limit is not None:
            return None
        fitting = self.affordable(train_rate)
        self.limit = min(self.asked, fitting, self.targets)
        self.which = even_part(self.items, self.targets, self.limit)
        if self.which is None:
            return None
        why = "--eval-tokens" if fitting >= self.asked else f"{EVAL_FRACTION:.0%} of --max-seconds"
        return (
            f"evaluations take about {self.limit:,} of {self.targets:,} tokens, spread evenly over "
            f"the validation split ({why})"
        )

    @property
    def rest(self):
        """The items that are not in the part: (n,) int."""
        return np.delete(np.arange(self.items), self.which)

    def seconds(self, train_rate):
        """Return how long an evaluation takes, and at the end of a run the rest of the split."""
        rate = self.speed(train_rate)
        part = min(self.asked, self.affordable(train_rate)) if self.limit is None else self.limit
        part = min(part, self.targets)
        rest_s = (self.targets - part) / rate
        return part / rate + self.measure_s, rest_s if self.fits(rest_s) else 0.0

    def fits(self, rest_s):
        """Tell whether the rest of the split is evaluated at the end of the run."""
        return not self.budget_s or rest_s <= REST_FRACTION * self.budget_s
