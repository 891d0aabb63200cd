"""How far a model's work is, on standard error."""

import shutil
import sys
import time

from minigpt import cli

LIVE, QUIET = 1.0, 10.0  # seconds of work before the first sign: on a terminal, elsewhere
PAUSE = 0.2  # seconds between two signs on a terminal; elsewhere each takes twice as long


class Progress:
    """On a terminal one line that changes, elsewhere a line at growing intervals.

    Only the time between `begin` and `show` counts, not that of waiting for input.
    """

    def __init__(self):
        self.live = sys.stderr is not None and sys.stderr.isatty()
        self.due = LIVE if self.live else QUIET
        self.seconds, self.last, self.width = 0.0, time.monotonic(), 0

    def begin(self):
        """Start to count."""
        self.last = time.monotonic()

    def show(self, text):
        """Say how far the work is, if that is due."""
        now = time.monotonic()
        self.seconds, self.last = self.seconds + now - self.last, now
        if self.seconds < self.due:
            return
        if self.live:
            self.due = self.seconds + PAUSE
            text = text[: shutil.get_terminal_size().columns - 1]
            cli.say(f"\r{text:{self.width}}", end="")
            self.width = max(self.width, len(text))
        else:
            self.due = 2 * self.seconds
            cli.note(f"{text}, {self.seconds:.0f} s")

    def clear(self):
        """Remove the line, before something else is printed."""
        if self.width:
            cli.say(f"\r{'':{self.width}}\r", end="")
            self.width = 0
