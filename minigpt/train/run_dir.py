"""The folder of a run: its lock, and its files when a run is started or resumed."""

import contextlib
import json

from minigpt.errors import UserError
from minigpt.files import (
    LAST,
    RUN_FILES,
    AlreadyLocked,
    acquire,
    release,
    write_atomically,
    writing,
)

LOCK = ".lock"  # exists while a run is going on; one that was killed leaves it, and locks nothing


@contextlib.contextmanager
def locked(folder, make):
    """Keep the folder of a run locked, so that no other process trains there.

    Where a file system has no locks, or the folder cannot be written, there is none.

    Parameters
    ----------
    folder : Path
    make : bool
        Whether to make the folder if it is missing. If it is still empty at the end, it is removed.

    Raises
    ------
    UserError
        If another process has locked it, or if there can be no such folder.
    """
    if "\0" in str(folder):
        raise UserError(f"--out-dir {str(folder)!r}: no folder can have that name; name another")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out-dir {folder} is a file; name a folder")
    missing = [path for path in (folder, *folder.parents) if make and not path.exists()]
    with writing(folder):
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
    try:
        lock = acquire(folder / LOCK) if folder.is_dir() else None
    except AlreadyLocked:
        raise UserError(
            f"--out-dir {folder}: locked by another running process; name another folder, or wait "
            "for that run to end or stop it"
        ) from None
    try:
        yield
    finally:
        release(lock)
        with contextlib.suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()


def check_folder(folder, overwrite):
    """Raise a UserError if a new run cannot have the folder."""
    if any((folder / name).exists() for name in RUN_FILES) and not overwrite:
        resume = "resume it with --resume, " if (folder / LAST).exists() else ""
        raise UserError(
            f"--out-dir {folder} holds another run: {resume}replace it with --overwrite, or name "
            "another folder"
        )


def clear_folder(folder):
    """Make the folder of a new run, or empty it of an old one."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)


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
