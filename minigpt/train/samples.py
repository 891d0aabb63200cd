"""Short samples amid a run: what the model writes at each evaluation, for the metrics.

They show how the text gets better. Neither the losses nor the speed of a run may notice them: the
random numbers are their own, and they take a small part of its time.
"""

import time

from minigpt.errors import UserError

FRACTION = 0.01  # of the run's seconds that all samples together take, at most
FIRST_S = 1.0  # for the sample of a model before its first step, beside all others


class Samples:
    """Takes the samples of a run.

    Parameters
    ----------
    tokens : int
        In each of them at most; 0 is none.

    Attributes
    ----------
    spent_s : float
        On samples so far, but for one before the first step.
    """

    def __init__(self, tokens):
        self.tokens, self.spent_s = tokens, 0.0

    def take(self, run, stop):
        """Return a sample, as of Task.sample, or None where there is none.

        It ends when its time is over, or with a signal.

        Parameters
        ----------
        run : Run
        stop : Interrupt or Never
        """
        left_s = FRACTION * run.state.seconds - self.spent_s if run.state.step else FIRST_S
        if not self.tokens or left_s <= 0:
            return None
        start = time.perf_counter()

        def enough():
            return stop.signal is not None or time.perf_counter() - start > left_s

        try:
            model = run.data, run.trainer.tree, run.config
            return run.task.sample(*model, self.tokens, enough) or None
        except UserError:  # of logits that are not finite: the next steps say what has happened
            return None
        finally:
            if run.state.step:
                self.spent_s += time.perf_counter() - start
