"""What a run writes into its folder: it takes the folder at the first write, not before."""

import json

from minigpt.errors import UserError
from minigpt.files import METRICS, append, writing
from minigpt.train.run_dir import claim_folder, cut_metrics


class RunFiles:
    """The files of a run, but for the checkpoints.

    Parameters
    ----------
    folder : Path
    cut : int or None
        The last step whose line the metrics of a resumed run keep; None for a new run, which
        clears the folder.
    notes : list of str
        Receives what could not be written.

    Attributes
    ----------
    kept : Kept or None
        What has been written into the folder for the run to be trained on.
    claimed : bool
        Whether the folder is this run's own.
    unwritten : list of str
        Lines of the metrics that could not be written yet.
    """

    def __init__(self, folder, cut, notes):
        self.folder, self.cut, self.notes, self.new = folder, cut, notes, cut is None
        self.kept, self.claimed, self.unwritten, self.failed = None, False, [], False

    def log(self, line):
        """Add a line to the metrics; where that is not possible, it is kept for the next time."""
        self.unwritten.append(json.dumps(line, allow_nan=False) + "\n")
        self.write_lines()

    def write_lines(self):
        """Bring the metrics up to date; the first failure of several is noted."""
        failed, self.failed = self.failed, False
        try:
            self.claim()
            with writing(self.folder / METRICS) as path:
                if self.cut is not None:
                    cut_metrics(path, self.cut)
                    self.cut = None
                if self.unwritten:
                    append(path, "".join(self.unwritten))
                    self.unwritten.clear()
        except UserError as error:
            self.failed = True
            if not failed:
                self.notes.append(f"{error}; its lines are kept, and tried again with the next")

    def claim(self):
        """Make the folder this run's own, right before the first thing is written there."""
        if not self.claimed:
            claim_folder(self.folder, clear=self.new)
            self.claimed = True
            if self.kept is not None:
                self.kept.confirm()

    def leave(self):
        """Leave a folder in which nothing has been written as it was before."""
        if self.kept is not None and not self.claimed:
            self.kept.undo()
