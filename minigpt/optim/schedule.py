r"""The learning rate over a run: warm-up, then decay, by steps or by the run's progress.

cosine: half a cosine, as in nanoGPT. wsd (warmup-stable-decay): constant, then a line. Hu et al.
2024, arXiv:2404.06395, section 4; with a linear decay, as in Hägele et al. 2024, arXiv:2405.18392.

    learning_rate     /''\\                        /-----------\
                     /    '.                     /             \
    min_lr          /       '-.____             /               \\____
                  warmup          cosine       warmup  constant  line    wsd

A run by steps is the same to the bit however often it is repeated or resumed. One with a wall-clock
budget depends on how long its steps take: it ends in time, decay included, but no two are alike.
What the progress of a run is, by time and by passes through its data: train/limits.py.
"""

import math

SHAPES = ("cosine", "wsd")
FORGET, PASSES = 0.25, 24  # fraction lost in a run of one pass; passes beyond which it is the same
MOST = 0.01  # of the weights in a step
WARMUP_FRACTION = 0.1  # of a run by its progress: the warm-up is over then at the latest


def learning_rate(step, config, progress=None):
    """Return the learning rate of a step.

        up     learning_rate (step + 1) / (warmup_iters + 1)           the first warmup_iters steps
        down   min_lr + decay(progress) (learning_rate - min_lr)

    By progress, where a run has a budget of time or passes and its steps may be few, the warm-up
    ends after a tenth at the latest.

    Parameters
    ----------
    step : int
        0 at the first step.
    config : object
        With learning_rate, min_lr, warmup_iters, lr_decay_iters, lr_schedule and lr_decay_fraction.
    progress : float, optional
        The fraction of the run that is over, with a budget of time or passes. Without one, and if
        left out, the fraction of the steps between warmup_iters and lr_decay_iters.
    """
    lr, warmup, last = config.learning_rate, config.warmup_iters, config.lr_decay_iters
    up = lr * (step + 1) / (warmup + 1)
    if progress is None:
        if step < warmup:
            return up
        progress = (step - warmup) / (last - warmup) if step < last else 1.0
    elif step < warmup:
        up = max(up, lr * min(progress / WARMUP_FRACTION, 1.0))
    fraction = decay(progress, config.lr_schedule, config.lr_decay_fraction)
    down = config.min_lr + fraction * (lr - config.min_lr)
    return min(up, down) if step < warmup else down


def decay(progress, shape, decay_fraction):
    """Return how far above min_lr the learning rate is: from 1 at progress 0 to 0 at 1.

    cosine  (1 + cos(pi progress)) / 2
    wsd     min(1, (1 - progress) / decay_fraction)        a line over the last part of the run
    """
    if progress >= 1:
        return 0.0
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (1 - progress) / decay_fraction) if decay_fraction else 1.0


def weight_decay(passes, per_step, lr):
    """Return the weight decay of a run that will have met its data so many times.

        weight_decay = min(FORGET sqrt(min(passes, PASSES)) per_step, MOST) / lr

    At this learning rate the weights lose the fraction FORGET sqrt(passes) in each pass: the more
    often a run meets its data, the fewer passes its weights remember, and the less it overfits. The
    best decays on small parts of two texts are 0.3, 0.6, 0.7, 1.1 and 1.5 a pass for 4, 8, 12, 16
    and 32 passes, and less than 0.2 for 2; a larger part wants more. Below 2 passes nothing was
    measured. See bench/experiments.md, "Weight decay by passes".

    Parameters
    ----------
    passes : float
        Through the data, from the first to the last step.
    per_step : float
        Passes that a step makes.
    lr : float
        The peak learning rate.
    """
    a_pass = FORGET * math.sqrt(min(passes, PASSES))
    return min(a_pass * per_step, MOST) / lr if lr else 0.0


def describe(config, by_progress=False, steps=None):
    """Return the schedule in words: learning rate, warm-up, decay.

    Parameters
    ----------
    config : object
        As of learning_rate.
    by_progress : bool
        Whether it goes by the progress.
    steps : int, optional
        Of the run at most, if that is known; by progress alone it matters.
    """
    lr, low, warmup = config.learning_rate, config.min_lr, config.warmup_iters
    if by_progress and steps:
        warmup = min(warmup, math.ceil(WARMUP_FRACTION * steps))
    steps = "1 step" if warmup == 1 else f"{warmup:,} steps"
    text = f"{lr:g}" + (f" after {steps} of warm-up" if warmup else "")
    if low == lr or (config.lr_schedule == "wsd" and not config.lr_decay_fraction):
        return f"{text}, constant"
    shape = "by a cosine"
    if config.lr_schedule == "wsd":
        shape = f"in a line, over the last {config.lr_decay_fraction:.0%}"
    early = not by_progress and config.lr_decay_iters != config.max_iters
    end = f", at step {config.lr_decay_iters:,}" if early else ""
    return f"{text}, down to {low:g} {shape}{end}"


def budget_used(seconds, max_seconds, reserve):
    """Return the fraction of a wall-clock budget that is used up, 0 to 1; at 1 no step follows.

    Parameters
    ----------
    seconds : float
        Spent on training so far, resumed parts included.
    max_seconds : float
        The budget of the whole run.
    reserve : float
        Seconds needed beside those: for one more step, and after the last: evaluation, checkpoint,
        sample. It may be estimated anew at every call.
    """
    available = max_seconds - reserve
    return min(max(seconds, 0.0) / available, 1.0) if available > 0 else 1.0
