"""Signals that ask for an end, obeyed between two batches of training or of an evaluation."""

import contextlib
import os
import signal

# Those that ask for an end. Not SIGQUIT, which asks for a core dump; each system has some of them.
ENDS = "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK"


class Stopped(Exception):
    """A step or an evaluation was left between two of its batches, since a signal has come."""


class Never:
    """What takes the place of an Interrupt where no handler of signals is to be installed."""

    signal = None

    def hold(self):
        """Do nothing."""

    def release(self):
        """Do nothing."""

    def agree(self, number):
        """Do nothing."""


NEVER = Never()


def interruptible(map, stop):
    """Return a `map` that raises Stopped before an item if stop.signal is not None."""

    def checked(fn, items):
        def call(item):
            if stop.signal is not None:
                raise Stopped
            return fn(item)

        return map(call, items)

    return checked


def announce(number):
    """Say on standard error that a signal is obeyed."""
    line = "finishing this batch and saving; press Ctrl-C again to quit now"
    if number != signal.SIGINT:
        name = signal.Signals(number).name
        line = f"{name}: finishing this batch and saving; a second signal quits now"
    with contextlib.suppress(OSError):  # not print: it may have come inside another
        os.write(2, f"\n{line}\n".encode())


class Interrupt:
    """Remembers a signal that asks for an end, so that the work can be left between two batches.

    A second one raises KeyboardInterrupt; amid an update of the weights or a save, between `hold`
    and `release`, only afterwards. What the parent process has set to be ignored stays ignored, as
    under nohup. Outside of the main thread no handler can be installed, and none is.

    Parameters
    ----------
    announce : callable
        announce(number) says that a signal is obeyed.

    Attributes
    ----------
    signal : int or None
        The number of the signal that came first, to this process or one that works with it.
    holding : bool
        Whether a second signal has to wait.
    patient : bool
        Whether to wait for the end of a batch; otherwise the first signal raises KeyboardInterrupt,
        as before training and after it, when there is nothing to be saved.
    """

    def __init__(self, announce=announce):
        self.signal, self.holding, self.again, self.patient = None, False, False, False
        self.before, self.announce, self._noted = {}, announce, False

    def __enter__(self):
        for name in ENDS:
            number = getattr(signal, name, None)
            handler = number and signal.getsignal(number)
            if handler is None or handler == signal.SIG_IGN:
                continue
            with contextlib.suppress(ValueError):  # this is not the main thread
                self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, _):
        """Remember the signal; the next one raises KeyboardInterrupt."""
        first, self._noted, self.signal = not self._noted, True, self.signal or number
        if not self.patient:
            raise KeyboardInterrupt
        if first:
            self.announce(number)
        elif self.holding:
            self.again = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def patience(self):
        """Wait for the end of a batch with the first signal while this lasts."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = self.holding = False

    def agree(self, number):
        """Take over a signal that has come to another process; one of its own is not the second."""
        self.signal = self.signal or number

    def hold(self):
        """Let a second signal wait until `release`."""
        self.holding = True

    def release(self):
        """Raise KeyboardInterrupt if a second signal has come since `hold`."""
        self.holding, again, self.again = False, self.again, False
        if again:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
