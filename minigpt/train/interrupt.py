"""Ctrl-C and SIGTERM, granted between two steps of training."""

import contextlib
import os
import signal


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a wish that is granted between two steps.

    A second Ctrl-C is a KeyboardInterrupt as ever, a second SIGTERM the end of the program.
    """

    def __init__(self):
        self.signal = None

    def __enter__(self):
        names = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self.note) for number in names}
        return self

    def note(self, number, _):
        """Remember the signal; the next one has its old effect."""
        self.signal = number
        signal.signal(number, self.before[number])
        with contextlib.suppress(OSError):  # not print: the signal may have come amid another
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
