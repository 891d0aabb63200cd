"""The folder of a run: its lock, and what is written there beside the checkpoints.

A run takes its folder at the first write, not before: until then all is as it was.
"""

import contextlib
import json
import os

from minigpt.errors import UserError
from minigpt.files import (
    BEST,
    LAST,
    METRICS,
    PAGE,
    PICTURE,
    READ_ONLY,
    RUN_FILES,
    append,
    make_folder,
    marked_read_only,
    real_path,
    remove_file,
    remove_leftovers,
    write_atomically,
    writing,
)
from minigpt.locks import AlreadyLocked, acquire, release

ASIDE = ".before"  # how the name of a file ends that a run will replace when it has begun
LOCK = ".lock"  # exists while a run is going on; one that was killed leaves it, and locks nothing


@contextlib.contextmanager
def locked(folder, make):
    """Keep the folder of a run locked, so that no other process trains there.

    Parameters
    ----------
    folder : Path
    make : bool
        Whether to make the folder if it is missing. If it is still empty at the end, it is removed.

    Raises
    ------
    UserError
        If another process has locked it, if there can be no such folder, or if what is to be
        written there cannot be.
    """
    check_path(folder)
    lock = None
    with contextlib.ExitStack() as stack:
        if make:
            stack.enter_context(make_folder(folder))
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)  # reports why it could not be made
        if folder.is_dir():
            check_writable(folder)
            try:
                with writing(folder):
                    lock = acquire(folder / LOCK)
            except AlreadyLocked as error:
                who = f" ({error})" if str(error) else ""
                raise UserError(
                    f"--out-dir {folder}: locked by another running process{who}; name another "
                    "folder, wait for that run to end or stop it, or if it is dead, remove "
                    f"{folder / LOCK}"
                ) from None
        stack.callback(release, lock)
        put_back(folder)
        yield


class KeptFile:
    """A file of a run's folder that is written before the run has begun, and that can be undone.

    What was there before is set aside until one or the other is decided.
    """

    def __init__(self, raw, path):
        self.path, self.aside = path, path.with_name(path.name + ASIDE)
        with writing(path):
            if path.exists():
                os.replace(path, self.aside)
        try:
            with writing(path):
                write_atomically(path, [raw])
        except BaseException:
            self.undo()
            raise

    def undo(self):
        """Put back what was there before."""
        self.path.unlink(missing_ok=True)
        if self.aside.exists():
            os.replace(self.aside, self.path)

    def confirm(self):
        """Remove what was there before."""
        self.aside.unlink(missing_ok=True)


@contextlib.contextmanager
def keep(raw, path):
    """Write bytes to the Path `path`; undo that if what is done in this context fails.

    Yields
    ------
    file : KeptFile
        For the run to decide on, when it has begun or ends without.
    """
    file = KeptFile(raw, path)
    try:
        yield file
    except BaseException:
        file.undo()
        raise


def put_back(folder):
    """Put back what a run that was killed before its first step had set aside."""
    with contextlib.suppress(OSError):
        for aside in folder.glob(f"*{ASIDE}"):
            os.replace(aside, aside.with_name(aside.name.removesuffix(ASIDE)))


def check_path(folder):
    """Raise a UserError if a path can be no folder."""
    if "\0" in str(folder):
        raise UserError(f"--out-dir {str(folder)!r}: no folder can have that name; name another")
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"--out-dir {folder}: {path} is a link to {os.readlink(path)}, which is not there; "
                "make that folder, attach its disk, or name another folder"
            )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out-dir {folder} is a file; name a folder")


def check_writable(folder):
    """Raise a UserError if the folder, or a file of a run in it, is marked read-only."""
    for path in (folder, *(folder / name for name in RUN_FILES)):
        if marked_read_only(path):
            raise UserError(f"--out-dir {folder}: {path}: {READ_ONLY} folder")


def check_folder(folder, overwrite):
    """Raise a UserError if a new run cannot have the folder."""
    if any((folder / name).exists() for name in RUN_FILES) and not overwrite:
        resume = "resume it with --resume, " if (folder / LAST).exists() else ""
        raise UserError(
            f"--out-dir {folder} holds another run: {resume}replace it with --overwrite, or name "
            "another folder"
        )


def cut_metrics(path, step):
    """Cut from a resumed run's metrics the lines after `step`, and half-written ones."""
    lines = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = []
    for line in lines.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    with writing(path):
        write_atomically(path, ["".join(kept).encode("utf-8")])


class NoFiles:
    """Stands in for RunFiles in a process that writes no files: of several, the first does."""

    kept, old, begun, unwritten = None, False, False, ()

    def log(self, line):
        """Do nothing."""

    def write_lines(self):
        """Do nothing."""

    def leave(self):
        """Do nothing."""

    def begin(self):
        """Do nothing."""

    def replace_old(self):
        """Do nothing."""


class RunFiles:
    """The files of a run, but for the checkpoints.

    A new run leaves those of an old one until its own first checkpoint is there.

    Parameters
    ----------
    folder : Path
    cut : int or None
        The last step whose line the metrics of a resumed run keep; None for a new run.
    notes : list of str
        Receives what could not be written.

    Attributes
    ----------
    kept : KeptFile or None
        What has been written into the folder for the run to be trained on.
    old : bool
        Whether the folder still has the files of an old run, which this one replaces.
    begun : bool
        Whether something has been written.
    unwritten : list of str
        Lines of the metrics that could not be written yet.
    trackers : Trackers or None
        Get each line, once the folder is this run's.
    """

    def __init__(self, folder, cut, notes):
        self.folder, self.cut, self.notes, self.kept = folder, cut, notes, None
        self.old = cut is None and any((folder / name).exists() for name in RUN_FILES)
        self.begun, self.unwritten, self.failed = False, [], False
        self.trackers, self.untracked = None, []

    def log(self, line):
        """Add a line to the metrics; where that is not possible, it is kept for the next time."""
        self.unwritten.append(json.dumps(line, allow_nan=False) + "\n")
        self.untracked.append(line)
        self.write_lines()

    def track(self):
        """Give the trackers the lines that they lack."""
        lines, self.untracked = self.untracked, []
        for line in lines if self.trackers is not None else []:
            self.trackers.log(line)

    def write_lines(self):
        """Bring the metrics up to date; the first failure of several is noted."""
        if self.old:
            return  # they are those of the old run
        self.track()
        failed, self.failed = self.failed, False
        try:
            self.begin()
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

    def begin(self):
        """Prepare the folder, right before the first thing is written there.

        Raises
        ------
        UserError
            If that is not possible.
        """
        if self.begun:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            remove_leftovers(real_path(self.folder / name), 0.0)  # this run has the lock
        self.begun = True
        if self.kept is not None and not self.old:
            self.kept.confirm()

    def replace_old(self):
        """Remove what is left of an old run, once the last checkpoint is this run's."""
        if not self.old:
            return
        for name in (METRICS, BEST, PICTURE, PAGE):
            with writing(self.folder / name) as path:
                remove_file(path)
        self.old = False
        if self.kept is not None:
            self.kept.confirm()
        self.write_lines()

    def leave(self):
        """Leave a folder in which nothing has been written as it was before."""
        if self.kept is not None and (self.old or not self.begun):
            self.kept.undo()
