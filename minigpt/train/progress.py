"""What a run shows while it is at work: a bar on a terminal, elsewhere a line now and then."""

import contextlib
import sys
import time

BAR = "{percentage:3.0f}%|{bar}| {desc}, {elapsed}, {remaining} left{postfix}"
REFRESH_S = 0.1  # seconds between two pictures of the bar during an evaluation
FIRST_S, LONGEST_S = 10.0, 300.0  # seconds before the first line, and at most between two of them


def format_loss(loss):
    """Return a loss as text."""
    return "-" if loss is None else f"{loss:.4f}"


def format_bits(bpb):
    """Return bits per byte beside a loss, as text: ", 2.2373 bits/byte", or nothing."""
    return "" if bpb is None else f", {bpb:.4f} bits/byte"


def format_measures(measures):
    """Return what was measured beside the loss: ", exact match 99.50% of 2,000", or nothing."""
    shares = dict(measures)
    n = shares.pop("measured_pairs", None)  # older runs have none
    of = f" of {n:,}" if n else ""
    return "".join(f", {name.replace('_', ' ')} {x:.2%}{of}" for name, x in shares.items())


class Silent(contextlib.nullcontext):
    """Shows nothing of a run but notes, on standard error: what `Bar` and `Lines` have in common.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run):
        super().__init__(self)
        self.run = run

    def step(self, rate=None):
        """Show that a step is done, at so many tokens per second; None where it was not read."""

    def evaluating(self, done, total):
        """Show that so many of the tokens of an evaluation are done."""

    def line(self, text):
        """Print a line for the user on standard output."""

    def note(self, text):
        """Print a line on standard error; if that is not possible, nothing is lost."""
        with contextlib.suppress(OSError):
            self.print(text, sys.stderr)

    def print(self, text, file):
        """Print a line."""
        print(text, file=file, flush=True)

    def numbers(self, rate):
        """Return loss, tokens per second and what was measured last, as text."""
        loss, measures = format_loss(self.run.losses.mean), format_measures(self.run.state.measures)
        return f"loss {loss}, {rate:,.0f} {self.run.task.counted}/s{measures}"

    def notes(self):
        """Print the notes of the run."""
        while self.run.notes:
            self.note(f"note: {self.run.notes.pop(0)}")


class Lines(Silent):
    """Shows a line on standard error after FIRST_S, and then at growing intervals."""

    def __init__(self, run):
        super().__init__(run)
        self.began, self.pause_s, self.first = time.monotonic(), FIRST_S, run.state.step
        self.next = self.began + FIRST_S

    def step(self, rate=None):
        """Show a line if it is time for one, and the step was read."""
        if rate is not None and time.monotonic() >= self.next:
            self.report(f", {self.numbers(rate)}, {format_time(self.left())} left")

    def evaluating(self, done, total):
        """Show a line if it is time for one."""
        if time.monotonic() >= self.next:
            self.report(f", evaluating: {done / total:.0%}")

    def left(self):
        """Return the seconds until the end of the run, about."""
        state = self.run.state
        step_s = (time.monotonic() - self.began) / max(state.step - self.first, 1)
        return self.run.limits.seconds_left(state.step, state.seconds, step_s)

    def report(self, text):
        """Show a line that begins with how far the run has come."""
        self.note(f"{self.run.place}{text}")
        self.pause_s = min(2 * self.pause_s, LONGEST_S)
        self.next = time.monotonic() + self.pause_s

    def line(self, text):
        """Print a line for the user on standard output."""
        self.print(text, sys.stdout)


class Bar(Silent):
    """Shows a bar.

    Parameters
    ----------
    run : Run
    cls : type
        A tqdm.
    """

    def __init__(self, run, cls):
        super().__init__(run)
        # Without tqdm's thread, which only wakes up a bar that has not been updated for long.
        self.bar = type("Bar", (cls,), {"monitor_interval": 0})(
            total=1.0,
            initial=run.progress,
            desc=run.place,
            bar_format=BAR,
            miniters=0,
            dynamic_ncols=True,
            leave=False,
            smoothing=0,
        )
        self.shown = 0.0

    def __exit__(self, *_):
        self.bar.close()

    def step(self, rate=None):
        """Move the bar."""
        if rate is not None:
            self.bar.set_postfix_str(self.numbers(rate), False)
        self.bar.set_description_str(self.run.place, False)
        self.bar.update(max(self.run.progress - self.bar.n, 0.0))
        if self.run.state.over:
            self.bar.refresh()  # tqdm leaves out what follows the last drawing closely

    def evaluating(self, done, total):
        """Say so beside the bar."""
        if not done or time.monotonic() - self.shown >= REFRESH_S:
            self.bar.set_postfix_str(f"evaluating, {done / total:.0%}")
            self.shown = time.monotonic()

    def line(self, text):
        """Print a line for the user on standard output."""
        self.print(text, sys.stdout)

    def print(self, text, file):
        """Print a line above the bar."""
        self.bar.write(text, file=file)
        file.flush()


def progress_of(run):
    """Return what shows the progress of a run: a bar if standard error is a terminal, or lines."""
    if not sys.stderr.isatty():
        return Lines(run)
    from tqdm import tqdm  # slow to import, and --help needs none

    return Bar(run, tqdm)


def format_time(seconds):
    """Return a time as text: 0:59, 59:59, or 9:59:59."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
