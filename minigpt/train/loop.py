"""The training loop: steps, evaluations and checkpoints; whatever ends it, what it has is saved."""

import contextlib
import time
import traceback

import numpy

from minigpt import cli
from minigpt.backend.devices import PRECISIONS, tf32_products
from minigpt.errors import SMALLER_MODEL, memory_for
from minigpt.files import LAST, METRICS
from minigpt.report.vega import check_library
from minigpt.train.evaluate import evaluate, evaluate_rest
from minigpt.train.interrupt import Stopped
from minigpt.train.means import Throughput
from minigpt.train.nonfinite import Diverged, WeightsDiffer
from minigpt.train.progress import format_bits, format_loss, format_measures, progress_of
from minigpt.train.threads import Workers
from minigpt.train.trackers import tracked

SAVE_S = 300.0  # seconds of training that no checkpoint has, at most, where evaluations are rare


def train_steps(run, shown, stop):
    """Train until the last step or until a signal asks to stop; log, evaluate and save on the way.

    Parameters
    ----------
    run : Run
        Started.
    shown : Silent, Lines or Bar
    stop : Interrupt or Never

    Raises
    ------
    Stopped
        If a step or an evaluation was left because of a signal.
    """
    state, throughput = run.state, Throughput()
    shown.notes()
    if state.due:  # the run was interrupted during an evaluation, or begins with one
        record(run, state.due, 0.0, shown, stop)
    while not state.over and stop.signal is None:
        start, tokens = time.perf_counter(), state.tokens
        numbers = run.advance(stop)
        throughput.add(state.tokens - tokens, time.perf_counter() - start)
        rate = throughput.rate
        if run.logged:
            record(run, numbers, rate, shown, stop)
            throughput.clear()
        stop.release()  # not before its line is written, or kept in state.due
        if numbers is not None and run.skips.fault:
            shown.note(run.skips.fault)
        shown.step(None if numbers is None else rate)
        shown.notes()
    if state.over and not state.due:
        evaluate_rest(run, stop, shown.evaluating)


def record(run, numbers, rate, shown, stop):
    """Write the metrics of a step; if it is due, evaluate, save and print a line."""
    state, measures, evaluated = run.state, {}, run.state.due is not None
    if evaluated:
        stop.release()
        shown.evaluating(0, 1)
        evaluate(run, stop, shown.evaluating)
        measures = {"val_loss": state.val_loss, "val_bpb": run.val_bpb, **state.measures}
        measures |= {} if run.sample is None else {"sample": run.sample}
    line = {"step": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3)}
    line |= {"train_loss": run.losses.mean, **measures, **numbers}
    run.files.log({**line, "tokens_per_second": round(rate)})
    if evaluated:
        state.due = None
        run.try_to_save(LAST)
        run.pages.renew(run)
        shown.notes()
        speed = f"   {rate:,.0f} {run.task.counted}/s" if state.step else ""
        shown.line(
            f"step {state.step:>6,}   train {format_loss(run.losses.mean)}   validation "
            f"{state.val_loss:.4f}{format_bits(run.val_bpb)}{format_measures(state.measures)}   "
            f"{state.seconds:7.1f} s{speed}"
        )
    elif state.seconds - run.saved_s > SAVE_S:
        run.try_to_save(LAST)


@contextlib.contextmanager
def started(run):
    """Give a run what its steps need, for as long as this context lasts: threads, arithmetic,
    weights and optimizer.

    BLAS has its own number of threads again at the end, and the folder of a run that has written
    nothing is as before.
    """
    train_config = run.train_config
    try:
        with (
            Workers(train_config.workers()) as workers,
            contextlib.nullcontext() if run.ranks.rank else tracked(run),
        ):
            if train_config.report_every:
                run.ranks.first(check_library)
            run.start(workers)
            with tf32_products(PRECISIONS[train_config.dtype].tf32):
                yield
    finally:
        run.files.leave()


@contextlib.contextmanager
def reported():
    """Leave NumPy's warnings out, in this thread; make a UserError of a lack of memory."""
    # Numbers that overflow are reported as what they mean: that training has diverged.
    unseen = numpy.errstate(over="ignore", invalid="ignore", divide="ignore")
    with memory_for("around the training", SMALLER_MODEL), unseen:
        yield


def unsaved(run):
    """Tell whether a run has taken whole steps, or made up an evaluation, that no file has.

    Within a step, the weights are those of the last one until the optimizer begins.
    """
    state = run.state
    whole = run.trainer.optimizer.step_count == state.step > 0
    return whole and run.saved != (state.step, bool(state.due))


def train_or_save(run, shown, stop):
    """Train to the end, or until a signal; whatever ends it, save what --resume goes on from."""
    try:
        train_steps(run, shown, stop)
    except Stopped:
        pass
    except (Diverged, WeightsDiffer):
        raise
    except BaseException as error:
        if isinstance(error, MemoryError):
            traceback.clear_frames(error.__traceback__)  # they hold the arrays of a step
        run.ranks.fail(error)
        save_after(run, shown, stop)
        raise
    stop.hold()
    if unsaved(run):
        save_now(run)
    run.files.write_lines()
    if run.files.unwritten:
        lines = cli.plural(len(run.files.unwritten), "lines")
        run.notes.append(f"{run.folder / METRICS} lacks {lines} that could not be written")
    shown.notes()


def save_now(run):
    """Write the checkpoint that --resume goes on from, whatever has been read of the last steps."""
    if run.unread:
        run.read()
    run.save_last()


def save_after(run, shown, stop):
    """Try to save what a run has come to before it ends with an error."""
    stop.hold()
    if not all(run.ranks.gather(unsaved(run), "a last save")):
        return
    try:
        save_now(run)
    except Exception as error:
        shown.note(f"step {run.state.step:,} is not saved: {cli.one_line(error)}")


def train_run(run, stop):
    """Train to the end, or until a signal asks to stop, and show how it goes."""
    with progress_of(run) as shown:
        train_or_save(run, shown, run.ranks.together(stop))
