"""A sign of life on standard error, for work that takes longer than a moment."""

import shutil
import sys
import time

LIVE, QUIET = 1.0, 10.0  # seconds of work before the first sign: on a terminal, elsewhere
PAUSE = 0.2  # seconds between two signs on a terminal; elsewhere each takes twice as long


class Progress:
    """On a terminal one line that changes, elsewhere a line at growing intervals.

    Only the time between `begin` and `show` counts, not that of waiting for input.
    """

    def __init__(self):
        self.stream = sys.stderr
        self.live = self.stream is not None and self.stream.isatty()
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
            print(f"\r{text:{self.width}}", end="", file=self.stream, flush=True)
            self.width = max(self.width, len(text))
        else:
            self.due = 2 * self.seconds
            print(f"note: {text}, {self.seconds:.0f} s", file=self.stream, flush=True)

    def clear(self):
        """Remove the line, before something else is printed."""
        if self.width:
            print(f"\r{'':{self.width}}\r", end="", file=self.stream, flush=True)
            self.width = 0
