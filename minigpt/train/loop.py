"""The training loop: steps, evaluations and checkpoints, and a progress bar."""

import contextlib
import sys
import time

import numpy

from minigpt import cli
from minigpt.backend.blas import blas_threads
from minigpt.backend.devices import PRECISIONS, tf32_products
from minigpt.errors import UserError
from minigpt.files import METRICS
from minigpt.train.interrupt import Interrupt, Stopped
from minigpt.train.run_dir import clear_folder, cut_metrics
from minigpt.train.threads import Workers

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"


class Throughput:
    """Tokens per second of training alone, since the last line of the metrics."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Start over."""
        self.tokens, self.seconds = 0, 0.0

    def add(self, tokens, seconds):
        """Count a step."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds

    @property
    def rate(self):
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


def train_steps(run, bar, stop):
    """Train until the last step or until a signal asks to stop; log, evaluate and save on the way.

    Parameters
    ----------
    run : Run
        Started.
    bar : tqdm
    stop : Interrupt
        Or whatever has its attribute `signal`.
    """
    state, throughput, show = run.state, Throughput(), evaluating(bar)
    if state.due:  # the run was interrupted during an evaluation
        record(run, state.due, 0.0, bar, stop)
    while not state.over and stop.signal is None:
        start, tokens = time.perf_counter(), state.tokens
        numbers = run.advance()
        throughput.add(state.tokens - tokens, time.perf_counter() - start)
        if numbers is not None:
            if run.skips.fault:
                bar.write(run.skips.fault, file=sys.stderr)
            loss = format_loss(run.losses.mean)
            measures = format_measures(state.measures)
            rate = f"{throughput.rate:,.0f} {run.task.counted}/s"
            bar.set_postfix_str(f"loss {loss}, {rate}{measures}", False)
        bar.update(int(state.seconds) - bar.n if run.train_config.max_seconds else 1)
        if run.logged:
            record(run, numbers, throughput.rate, bar, stop)
            throughput.clear()
    if state.over and not state.due:
        run.evaluate_rest(stop, show)


def evaluating(bar):
    """Return show(done, total), which says on the bar how far an evaluation has come."""
    return lambda done, total: bar.set_postfix_str(f"evaluating {done / total:.0%}")


def record(run, numbers, rate, bar, stop):
    """Write the metrics of a step; if it is due, evaluate, save and print a line."""
    state, measures, evaluated = run.state, {}, run.state.due is not None
    if evaluated:
        bar.set_postfix_str("evaluating")
        run.evaluate(stop, evaluating(bar))
        measures = {"val_loss": state.val_loss, **state.measures}
    line = {"step": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3)}
    line |= {"train_loss": run.losses.mean, **measures, **numbers}
    run.log({**line, "tokens_per_second": round(rate)})
    if evaluated:
        state.due = None
        run.save_last()
        bar.write(
            f"step {state.step:>6,}   train {format_loss(run.losses.mean)}   validation "
            f"{state.val_loss:.4f}{format_measures(state.measures)}   {state.seconds:7.1f} s   "
            f"{rate:,.0f} {run.task.counted}/s",
            file=sys.stdout,
        )
        sys.stdout.flush()


def format_loss(loss):
    """Return a loss as text."""
    return "-" if loss is None else f"{loss:.4f}"


def format_measures(measures):
    """Return what was measured beside the loss: ", exact match 99.50% of 2,000", or nothing."""
    shares = dict(measures)
    n = shares.pop("measured_pairs", None)  # runs of before have none
    of = f" of {n:,}" if n else ""
    return "".join(f", {name.replace('_', ' ')} {x:.2%}{of}" for name, x in shares.items())


@contextlib.contextmanager
def started(run, resumed=False):
    """Give a run what its steps need, for as long as this context lasts: threads, arithmetic,
    weights and optimizer, and a folder that holds what came before and no more.

    BLAS has its own number of threads again at the end.
    """
    train_config, state = run.train_config, run.state
    # One shard needs no thread of its own: BLAS then has all cores.
    with (
        blas_threads(train_config.threads),
        Workers(train_config.shards()) as workers,
        tf32_products(PRECISIONS[train_config.dtype].tf32),
    ):
        run.start(workers)
        if not resumed:
            clear_folder(run.folder)
        cut_metrics(run.folder / METRICS, state.step - bool(state.due))
        yield


@contextlib.contextmanager
def reported():
    """Leave NumPy's warnings out, in this thread; make a UserError of a lack of memory."""
    try:
        # Numbers that overflow are reported as what they mean: that training has diverged.
        with numpy.errstate(over="ignore", invalid="ignore", divide="ignore"):
            yield
    except MemoryError as error:
        raise UserError(
            f"out of memory ({cli.one_line(str(error)) or 'no more is free'}); use a smaller "
            "--batch-size (with --gradient-accumulation-steps), --block-size or model; "
            "--dry-run shows what is needed"
        ) from None


def progress_bar(run, cls, **settings):
    """Return a progress bar of a run; `cls` is a tqdm."""
    state, seconds = run.state, run.train_config.max_seconds
    return cls(
        total=round(seconds or run.train_config.max_iters),
        initial=int(state.seconds) if seconds else state.step,
        bar_format=BAR,
        dynamic_ncols=True,
        leave=False,
        smoothing=0,
        **settings,
    )


def train_or_save(run, bar, stop):
    """Train to the end; where that is not reached, save what --resume goes on from.

    Raises
    ------
    KeyboardInterrupt
        If it came at a moment of which nothing can be saved: the last checkpoint holds.
    """
    state = run.state
    try:
        train_steps(run, bar, stop)
    except Stopped:
        pass
    except KeyboardInterrupt:
        # Within a step, the weights are those of the last one until the optimizer begins.
        if run.trainer.optimizer.step_count != state.step or state.over:
            raise
    if not state.over or state.due:
        run.read()
        run.save_last()


def train_run(run):
    """Train to the end, or until a signal asks to stop; return the signal or None."""
    from tqdm import tqdm  # slow to import, and --help needs none

    with Interrupt() as stop, progress_bar(run, tqdm, disable=None) as bar:
        train_or_save(run, bar, stop)
    return stop.signal
