"""The evaluations of a run: its loss over the validation split, and what is kept of the best."""

import math

from minigpt.errors import SMALLER_MODEL, memory_for
from minigpt.files import BEST
from minigpt.sample.evaluation import bits_per_byte, count_bytes
from minigpt.train.nonfinite import first_in_evaluation
from minigpt.train.run import check_same_weights


@memory_for("in an evaluation", f"use fewer --threads; or {SMALLER_MODEL}")
def evaluate(run, stop, show=None):
    """Take validation loss and measures, and write the best checkpoint if this is it.

    Parameters
    ----------
    run : Run
    stop : object
        Its attribute `signal` is looked at before every batch.
    show : callable, optional
        show(done, total), in tokens, is called now and then.

    Raises
    ------
    Stopped
        If `signal` is not None; state.due is left for another try.
    """
    state, validation = run.state, run.validation
    check_same_weights(run.trainer, state.step)
    map = run.ranks.map(run.trainer.workers.map, stop)
    if validation.limit is None and validation.budget_s and not run.trainer.count:
        loss_of(run, *validation.trial(), map, None)  # no step has shown how fast this is
    note = validation.choose(run.train_rate)
    run.notes += [note] if note else []
    state.eval_targets = validation.limit
    state.val_loss = loss_of(run, validation.which, 0, validation.limit, map, show)
    run.val_bpb = bits_of(run, state.val_loss, validation.which)
    start = run.clock.seconds
    if run.task.measure:
        model = run.data, run.trainer.params, run.config
        state.measures = run.task.measure(*model, map, validation.share_s, run.ranks.first)
        run.count_seconds(run.clock.lap(validation.share_s))
    own = run.ranks.own(stop)  # the sample is the first rank's
    run.sample = run.ranks.first(lambda: run.samples.take(run, own))
    run.count_seconds(run.clock.lap())
    validation.measure_s = run.clock.seconds - start
    before = state.best_loss, state.best_step
    if state.best_loss is None or state.val_loss < state.best_loss:
        state.best_loss, state.best_step = state.val_loss, state.step
        if not run.try_to_save(BEST):
            state.best_loss, state.best_step = before


@memory_for("in an evaluation", f"use fewer --threads; or {SMALLER_MODEL}")
def evaluate_rest(run, stop, show=None):
    """Take the loss of the whole split, at the end of a run whose evaluations take a part.

    Where the rest does not fit the wall-clock budget, that is noted.

    Raises
    ------
    Stopped
        As `evaluate`.
    """
    validation, part_loss = run.validation, run.state.val_loss
    part, total = run.trainer.evaluated, validation.targets
    if validation.which is None:
        return
    if not validation.fits((total - part) / validation.rate):
        run.notes.append("there is no time left to evaluate the whole validation split")
        return
    map = run.ranks.map(run.trainer.workers.map, stop)
    loss = loss_of(run, validation.rest, part, total, map, show)
    run.whole_loss = (part * part_loss + (total - part) * loss) / total
    run.val_bpb = bits_of(run, run.whole_loss)
    whole = {"whole_val_loss": run.whole_loss, "whole_val_bpb": run.val_bpb}
    run.files.log({"step": run.state.step, **whole})


def bits_of(run, loss, which=None):
    """Return the bits per byte of a loss over the validation split, or items `which` of it."""
    lengths = run.data.tokenizer.byte_lengths
    sizes = count_bytes(run.task, run.data.val, run.config, lengths, which)
    return bits_per_byte(loss, *sizes)


def loss_of(run, which, done, total, map, show):
    """Return the loss of items of the validation split; `done` of `total` targets before it."""
    run.count_seconds(run.clock.lap())
    start, rate = run.clock.seconds, run.validation.rate
    step = (lambda n: show(done + n, total)) if show else None
    loss = run.trainer.evaluate(run.data.val, which, map, step)
    if not math.isfinite(loss):
        reason = f"the validation loss after step {run.state.step} is {loss}"
        raise run.diverged(reason, first_in_evaluation(run.trainer, run.data.val))
    run.count_seconds(run.clock.lap((total - done) / rate if rate else None))
    run.validation.rate = (total - done) / max(run.clock.seconds - start, 1e-9)
    return loss
