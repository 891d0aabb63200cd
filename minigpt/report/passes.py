"""Both passes of a model over a batch of its validation data: the gradients, and the time by op."""

import dataclasses
from typing import NamedTuple

from minigpt.model import count_parameters
from minigpt.model.flops import count_flops
from minigpt.report.op_times import by_op
from minigpt.sample.evaluation import spread
from minigpt.sample.tasks import task_of

FLOPS = 5e9  # of both passes of the batch, about
SECONDS = 0.3  # to measure them
LEAST_TOKENS, MOST_TOKENS = 64, 2048  # of the batch


class Passes(NamedTuple):
    """What `run_passes` returns.

    Attributes
    ----------
    shape : (B, T)
        Of the targets.
    count : int
        Of them, without padding.
    gradients : tree of arrays
        Of the mean loss, in the layout of the parameters.
    records : list of dict
        As of op_times.by_op, of the batch.
    flops : int
        Of the batch.
    """

    shape: tuple
    count: int
    gradients: object
    records: list
    flops: int


def run_passes(checkpoint, data, flops=FLOPS, seconds=SECONDS):
    """Run both passes over validation data, on one thread; return the Passes.

    Parameters
    ----------
    checkpoint : Checkpoint
        As of load_plain, on the host.
    data : TextData, PairData or Excerpt
    flops : float
        Of both passes of the batch, about.
    seconds : float
        To time them, about; two batches are the least.
    """
    tree, config, task = checkpoint.params.tree, checkpoint.config, task_of(checkpoint.config)
    ids, targets = validation_batch(checkpoint, data, flops)
    found = []

    def step():
        found.clear()  # the memory of the gradients before
        found.append(task.loss_and_gradients(ids, targets, tree, config)[1])

    records = by_op(step, seconds, least=1)
    sources = None if task.name == "text" else ids.shape[1]
    work = count_flops(config, *targets.shape, sources)
    return Passes(targets.shape, task.count_targets(targets), found[0], records, work)


def validation_batch(checkpoint, data, flops):
    """Return a batch (ids, targets) of validation items at even distances.

    Its size goes by the work of both passes, and is within LEAST_TOKENS and MOST_TOKENS targets, if
    the split has as many.

    Parameters
    ----------
    checkpoint, data, flops : as of `run_passes`
    """
    config, task = checkpoint.config, task_of(checkpoint.config)
    tokens = min(max(flops / (6 * count_parameters(config)), LEAST_TOKENS), MOST_TOKENS)
    # A text is cut into shorter windows where one would be too much; pairs are as they are.
    short = dataclasses.replace(config, block_size=min(config.block_size, int(tokens)))
    items, targets = task.eval_size(data.val, short)
    rows = min(max(1, int(tokens * items / targets)), items)
    return next(task.eval_batches(data.val, short, rows, spread(items, rows)))
