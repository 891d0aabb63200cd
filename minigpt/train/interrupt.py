"""Ctrl-C and SIGTERM, obeyed between two steps of training."""

import contextlib
import os
import signal


class Interrupt:
    """Remembers Ctrl-C or SIGTERM, so that the loop can stop between two steps.

    A second Ctrl-C raises KeyboardInterrupt as usual; a second SIGTERM ends the program.

    Attributes
    ----------
    signal : int or None
        The number of the signal that came.
    """

    def __init__(self):
        self.signal = None

    def __enter__(self):
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def note(self, number, _):
        """Remember the signal; the next one has its usual effect."""
        self.signal = number
        signal.signal(number, self.before[number])
        with contextlib.suppress(OSError):  # not print: the signal may have come inside another
            os.write(2, b"\nfinishing this step and saving; press Ctrl-C again to quit now\n")

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
