"""The mean loss over a split, or over an even part of it; and its bits per byte.

Nats per token depend on what a token is. Bits per byte do not, so that models with different
tokenizers compare: what it takes to write the targets with the model, over what they take in UTF-8.

A split is a row of items in a fixed order: windows of a text, pairs by length. A part of it takes
every so many, so that it is like the whole, and the same in every evaluation of a run.
"""

import itertools
import math

import numpy as np

from minigpt.backend import array_module, to_device
from minigpt.params import leaves

EVAL_TOKENS = 512  # per forward pass on a CPU: more is no faster
GROUP = 16  # batches between two signs of progress
COUNTED_ROWS = 4096  # whose bytes are counted at a time


def spread(n, k):
    """Return k of the numbers 0 .. n - 1, at even distances: (k,) int, in order."""
    return np.arange(k) * n // k


def some_of(items, limit):
    """Return at most `limit` items of a list, at even distances."""
    return [items[i] for i in spread(len(items), min(limit, len(items)))]


def even_part(items, targets, limit):
    """Return which items make up an even part of a split.

    Parameters
    ----------
    items, targets : int
        Of the split.
    limit : int
        Targets that the part should have, about.

    Returns
    -------
    which : (k,) int, or None if all items are within the limit
    """
    return spread(items, max(1, items * limit // targets)) if targets > limit else None


def mean_loss(task, tree, config, batches, map=map, show=None, group=GROUP):
    """Return (loss, count): the mean over all targets of the batches, nats per token, and how many.

    Parameters
    ----------
    task : Task
    tree : Params or tree of arrays
        The batches move to where these are.
    config : GPTConfig or Seq2SeqConfig
    batches : iterator over (ids, targets)
    map : callable
        As the built-in one; may work on several items at the same time.
    show : callable, optional
        show(count) is called now and then with the targets that are done.
    group : int
        Batches that `map` gets at a time.
    """

    xp = array_module(next(array for _, array in leaves(tree)))

    def total(batch):
        count = task.count_targets(batch[1])
        x, y = (to_device(array, xp) for array in batch)
        loss, _ = task.loss_forward(x, y, tree, config, count=count, recompute=True)
        return float(loss) * count, count

    batches, totals = iter(batches), []
    while some := [*itertools.islice(batches, group)]:
        totals += map(total, some)
        if show:
            show(sum(count for _, count in totals))
    losses, counts = zip(*totals, strict=True)
    return sum(losses) / sum(counts), sum(counts)


def count_bytes(task, split, config, byte_lengths, which=None):
    """Return (targets, size): how many targets a split has, and their bytes in UTF-8.

    Parameters
    ----------
    task : Task
    split : (N,) int, or Pairs
    config : GPTConfig or Seq2SeqConfig
    byte_lengths : (V,) int
        Of each token; 0 for one that stands for no text, such as the END of pairs.
    which : (k,) int, optional
        Items of the split, if not all are meant.
    """
    count = size = 0
    for _, targets in task.eval_batches(split, config, COUNTED_ROWS, which):
        targets = targets[targets >= 0]  # without padding
        count += targets.size
        size += int(to_device(byte_lengths, array_module(targets))[targets].sum())
    return count, size


def bits_per_byte(loss, targets, size):
    """Return a mean loss in bits per byte of the targets, or None if they have no bytes.

    What a target without bytes costs counts, too: END says where a target ends, and without it the
    text is not written. The texts that a GPT learns from have no such token.

    Parameters
    ----------
    loss : float
        Nats per token.
    targets, size : int
        As from `count_bytes`.
    """
    return loss * targets / (math.log(2) * size) if size else None
