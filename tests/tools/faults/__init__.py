"""Fault injection: `python -m tests.tools.faults [--quick] [WORDS]`.

Processes are killed, disks are full, files are damaged, numbers are not finite; many times, at
random, through the commands that users type. A row of the table is a kind of fault. Whatever is
random comes from --seed, so that a failure can be repeated.
"""

from typing import NamedTuple

SEED = 1337


class Row(NamedTuple):
    """A kind of fault.

    Attributes
    ----------
    fault : str
    trials : int
    must : str
        What must hold each time.
    failures : list of str
        Where it did not.
    note : str
        What else there is to say; if it could not be tried, why.
    """

    fault: str
    trials: int
    must: str
    failures: list
    note: str = ""

    @property
    def outcome(self):
        """What came of it, in words."""
        if not self.trials:
            return f"not tried: {self.note}"
        count = f"{len(self.failures)} failed: {self.failures[0]}" if self.failures else "all held"
        return f"{count}; {self.note}" if self.note else count
