"""The folder of a run: its lock, and its files when a run is started or resumed."""

import contextlib
import json
import os

from minigpt.errors import UserError
from minigpt.files import (
    LAST,
    READ_ONLY,
    RUN_FILES,
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
    missing = [path for path in (folder, *folder.parents) if make and not path.exists()]
    lock = None
    with contextlib.ExitStack() as stack:
        stack.callback(remove_empty, missing)
        with writing(folder):
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
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


def put_back(folder):
    """Put back what a run that was killed before its first step had set aside."""
    with contextlib.suppress(OSError):
        for aside in folder.glob(f"*{ASIDE}"):
            os.replace(aside, aside.with_name(aside.name.removesuffix(ASIDE)))


def remove_empty(folders):
    """Remove those of the folders that are empty, in this order."""
    with contextlib.suppress(OSError):
        for path in folders:
            path.rmdir()


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


def claim_folder(folder, clear):
    """Make a folder that of a run, which is about to write there.

    Parameters
    ----------
    folder : Path
    clear : bool
        Whether to remove the files of an old run.

    Raises
    ------
    UserError
        If that is not possible.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            remove_leftovers(real_path(folder / name), 0.0)  # this run has the lock
            if clear:
                remove_file(folder / name)


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
