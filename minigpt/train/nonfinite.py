"""Steps that are skipped since a number is not finite: how many, and where it comes from."""

import math

from minigpt.backend import array_module, to_device
from minigpt.backend.cpu.crew import shard_slices
from minigpt.errors import UserError
from minigpt.model.gpt import logits
from minigpt.ops.dropout import Rng
from minigpt.optim.gradients import sum_of_squares
from minigpt.sample.tasks import task_of

LIMIT = 5  # steps in a row that may be skipped


class Diverged(UserError):
    """Training has diverged: the weights are of no use, or soon will be."""


class WeightsDiffer(UserError):
    """Several processes have come to different weights, none of which are to be saved."""


class Skips:
    """Counts the steps that were skipped, at whatever intervals the optimizer is read.

    While the loss scale of float16 can still be halved, a skipped step is how it is found: that is
    no fault, and not counted.

    Attributes
    ----------
    taken, skipped : int
    scale : float
        The loss scale, 1.0 in float32.
    in_a_row : int
        Steps that were skipped at a loss scale of 1, in the readings since the last that found a
        step taken.
    fault : str or None
        What the last reading found, for the user.
    """

    def __init__(self, in_a_row=0):
        self.taken, self.skipped, self.scale = 0, 0, 1.0
        self.in_a_row, self.fault = in_a_row, None

    def begin(self, progress):
        """Go on from (steps taken, steps skipped, loss scale)."""
        self.taken, self.skipped, self.scale = progress

    def count(self, progress, step, loss, norm):
        """Count what was skipped since the last reading.

        Parameters
        ----------
        progress : (int, int, float)
            Steps taken, steps skipped, loss scale.
        step : int
            Steps done.
        loss, norm : float
            Of which one is not finite if the last step was skipped.

        Returns
        -------
        what : str or None
            What is wrong, if LIMIT steps in a row were skipped.
        """
        taken, skipped, halvings = self.taken, self.skipped, round(math.log2(self.scale))
        self.begin(progress)
        new = max(0, self.skipped - skipped - halvings)
        self.in_a_row = self.in_a_row + new if self.taken == taken else 0
        what = "a loss or a gradient is not finite"  # that of a step before the last one
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif not math.isfinite(norm):
            what = f"the norm of the gradient is {norm}"
        steps = f"step {step} is" if new == 1 else f"{new} steps up to step {step} are"
        self.fault = f"{steps} skipped: {what}" if new else None
        if new and self.in_a_row >= LIMIT:
            return f"at step {step} {what}, and {self.in_a_row} steps in a row were skipped"
        return None


class NonFinite(Exception):
    """Ends a forward pass at the first layer that went bad; its text is the layer's name."""


def first_in_step(trainer, split, step):
    """Say what the first thing is that is not finite in the last step of a Trainer.

    In the order of the passes: weights, layers of the forward pass, gradients. The weights are as
    they were, since the step was skipped, so that the forward pass can be repeated.

    Parameters
    ----------
    trainer : Trainer
    split : (N,) int, or Pairs
    step : int
        0 at the first.

    Returns
    -------
    text : str
        For example "the output of h.3".
    """
    batches = enumerate(trainer.batches(split, step))
    keyed = ((batch, Rng.of(trainer.train_config.seed, step, i)) for i, batch in batches)
    return first_forward(trainer, keyed, trainer.compute_tree) or first_gradient(trainer)


def first_in_evaluation(trainer, split):
    """Say what the first thing is that is not finite in the evaluation of a split."""
    batches = trainer.task.eval_batches(split, trainer.config, trainer.eval_rows())
    keyed = ((batch, None) for batch in batches)
    return first_forward(trainer, keyed, trainer.tree) or "the loss"


def first_forward(trainer, keyed, tree):
    """Return the first of weights and layers, over pairs (batch, Rng or None), or None."""
    for name, weights in trainer.params.leaves():
        if not finite(weights):
            return f"the weights {name}"
    for batch, rng in keyed:
        for rows in shard_slices(len(batch[0]), trainer.workers.n):  # as much memory as a step
            x, targets = (to_device(array[rows], trainer.xp) for array in batch)
            key = rng and rng._replace(row=rows.start)
            layer = first_layer(x, targets, tree, trainer.config, key)
            if layer:
                return f"the output of {layer}"
    return None


def first_gradient(trainer):
    """Return the first gradient of the backward pass, or what came of them all."""
    grads = dict(trainer.grads.leaves())
    names = backward_order(grads)
    for name in names:
        if not finite(grads[name]):
            return f"the gradient of {name}"
    if finite(sum_of_squares(trainer.grads.flat)):
        return "the loss"
    name = max(names, key=lambda name: float(abs(grads[name]).max()))
    return f"the sum of squares of the gradient, the largest of which is that of {name}"


def finite(x):
    """Tell whether all of an array is."""
    return bool(array_module(x).isfinite(x).all())


def first_layer(x, targets, p, config, rng):
    """Return the name of the first layer whose output is not finite, or None."""
    try:
        y = task_of(config).hidden(x, targets, p, config, rng, check)
        for row in y:  # of a large vocabulary, the logits would be many
            check("the head", logits(row, p))
    except NonFinite as error:
        return str(error)
    return None


def check(name, *arrays):
    """Raise NonFinite if an array is not finite."""
    if not all(map(finite, arrays)):
        raise NonFinite(name)


def backward_order(names):
    """Return the names of parameters, in the order of the tree, as the backward pass meets them."""
    return sorted(reversed(list(names)), key=lambda name: name.startswith("encoder."))
