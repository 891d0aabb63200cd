"""The training loop: steps, evaluations and checkpoints, and a progress bar."""

import sys
import time

from minigpt.train.interrupt import Interrupt

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"


class Throughput:
    """Tokens per second of training alone, since the last line of the metrics."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Begin anew."""
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
    """
    state, throughput = run.state, Throughput()
    if state.due:  # the run was interrupted during an evaluation
        record(run, state.due, 0.0, bar)
    while not state.over and stop.signal is None:
        start, tokens = time.perf_counter(), state.tokens
        numbers = run.advance()
        throughput.add(state.tokens - tokens, time.perf_counter() - start)
        if numbers is not None:
            if run.skips.fault:
                bar.write(run.skips.fault, file=sys.stderr)
            loss = format_loss(run.losses.mean)
            measures = format_measures(state.measures)
            bar.set_postfix_str(f"loss {loss}, {throughput.rate:,.0f} tokens/s{measures}", False)
        bar.update(int(state.seconds) - bar.n if run.train_config.max_seconds else 1)
        if run.logged:
            record(run, numbers, throughput.rate, bar)
            throughput.clear()


def record(run, numbers, rate, bar):
    """Write the metrics of a step; if it is due, evaluate, save and print a line."""
    state, measures, evaluated = run.state, {}, run.state.due is not None
    if evaluated:
        bar.set_postfix_str("evaluating")
        run.evaluate()
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
            f"{rate:,.0f} tokens/s",
            file=sys.stdout,
        )
        sys.stdout.flush()


def format_loss(loss):
    """Return a loss as text."""
    return "-" if loss is None else f"{loss:.4f}"


def format_measures(measures):
    """Return what was measured beside the loss: ", exact match 99.50%", or nothing."""
    return "".join(f", {name.replace('_', ' ')} {x:.2%}" for name, x in measures.items())


def train_run(run):
    """Train to the end, or until a signal asks to stop; return the signal or None."""
    from tqdm import tqdm  # slow to import, and --help needs none

    state, seconds = run.state, run.train_config.max_seconds
    bar = tqdm(
        total=round(seconds or run.train_config.max_iters),
        initial=int(state.seconds) if seconds else state.step,
        bar_format=BAR,
        disable=None,
        dynamic_ncols=True,
        leave=False,
        smoothing=0,
    )
    with Interrupt() as stop, bar:
        try:
            train_steps(run, bar, stop)
        except KeyboardInterrupt:
            # Within a step, the weights are those of the last one until the optimizer begins.
            if run.trainer.optimizer.step_count != state.step or state.over:
                raise
        if not state.over:
            run.read()
            run.save_last()
    return stop.signal
