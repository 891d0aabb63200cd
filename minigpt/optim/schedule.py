"""The learning rate over a run: warm-up, then down, by steps or by the clock.

Down is half a cosine, as in nanoGPT, or nothing for long and then a line: Hu et al. 2024,
arXiv:2404.06395, section 4 ("warmup-stable-decay"), with the linear decay of Hagele et al. 2024,
arXiv:2405.18392.

A run by steps is the same to the bit however often it is repeated or resumed. One by the clock
depends on how long its steps take: it ends in time, decay included, but no two are alike.
"""

import math

SHAPES = ("cosine", "wsd")


def learning_rate(step, config, progress=None):
    """Return the learning rate of a step.

        up     learning_rate (step + 1) / (warmup_iters + 1)           the first warmup_iters steps
        down   min_lr + height(progress) (learning_rate - min_lr)

    Parameters
    ----------
    step : int
        0 at the first step.
    config : object
        With learning_rate, min_lr, warmup_iters, lr_decay_iters, lr_schedule and lr_decay_fraction.
    progress : float, optional
        In a run by the clock, the share of it that is over. In one by steps, and if left out, the
        share of the steps between warmup_iters and lr_decay_iters.
    """
    lr, warmup, last = config.learning_rate, config.warmup_iters, config.lr_decay_iters
    up = lr * (step + 1) / (warmup + 1)
    if progress is None:
        if step < warmup:
            return up
        progress = (step - warmup) / (last - warmup) if step < last else 1.0
    share = height(progress, config.lr_schedule, config.lr_decay_fraction)
    down = config.min_lr + share * (lr - config.min_lr)
    return min(up, down) if step < warmup else down


def height(progress, shape, decay_share):
    """Return how far above its floor the learning rate is: from 1 at progress 0 to 0 at 1.

    cosine  (1 + cos(pi progress)) / 2
    wsd     min(1, (1 - progress) / decay_share)        a line over the last share of the run
    """
    if progress >= 1:
        return 0.0
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (1 - progress) / decay_share) if decay_share else 1.0


def progress(seconds, max_seconds, reserve):
    """Return the share of a run by the clock that is over, 0 to 1; at 1 there is no further step.

    Parameters
    ----------
    seconds : float
        Spent on training so far, over all resumptions: what a resumed run goes on from.
    max_seconds : float
        For the whole of the run.
    reserve : float
        What is needed besides: what went before training, a step, and what comes after the last:
        evaluation, checkpoint, sample. Estimated anew as often as is wanted.
    """
    available = max_seconds - reserve
    return min(max(seconds, 0.0) / available, 1.0) if available > 0 else 1.0
