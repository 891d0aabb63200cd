"""The folder of a run: its files, and what becomes of them when a run is begun or resumed."""

import contextlib
import json
import os

from minigpt.errors import UserError
from minigpt.files import LAST, RUN_FILES, Taken, acquire, release, writing

LOCK = ".lock"  # there while a run is at work; of one that was killed it is left, and holds nothing


@contextlib.contextmanager
def alone(folder, make):
    """Have the folder of a run to oneself: no other run may be at work there.

    Where a file system has no locks, or the folder cannot be written, there is none.

    Parameters
    ----------
    folder : Path
    make : bool
        Whether to make the folder if it is missing. If it is still empty at the end, it goes again.

    Raises
    ------
    UserError
        If another run is at work there, or if the folder cannot be.
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
    except Taken:
        raise UserError(
            f"--out-dir {folder}: another run is at work there; name another folder, or wait for "
            "that run or end it"
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
        resume = "go on with it by --resume, " if (folder / LAST).exists() else ""
        raise UserError(
            f"--out-dir {folder} holds another run: {resume}lose it by --overwrite, or name "
            "another folder"
        )


def clear_folder(folder):
    """Make the folder of a new run, or empty it of an old one."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)


def cut_metrics(path, step):
    """Cut from a resumed run's metrics what came after `step`, and half-written lines."""
    lines = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = []
    for line in lines.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    with writing(path):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
