"""Files: reading text, atomic writing, locks between processes; the names in a run's folder.

The operating system ends a lock with its process, however that ends.
"""

import contextlib
import json
import os
import secrets
from pathlib import Path

from minigpt.errors import UserError

METRICS, PICTURE = "metrics.jsonl", "loss.png"
BEST, LAST = "best.safetensors", "last.safetensors"
RUN_FILES = METRICS, BEST, LAST, PICTURE


def read_text(path, where, what="text file", empty=True):
    """Read a text file in UTF-8, every character as it is, but for a byte order mark in front.

    Parameters
    ----------
    path : str or path
    where : str
        What named the file, such as "--data"; errors begin with it.
    what : str
        What the file should be.
    empty : bool
        Whether it may be empty.

    Raises
    ------
    UserError
        If the file is missing, a folder, unreadable or not UTF-8, or empty where it may not be.
    """
    text = decode_utf8(read_bytes(path, where, what), f"{where} {path}").removeprefix("\ufeff")
    if not (text or empty):
        raise UserError(f"{where} {path} is empty; name a file with text in it")
    return text


def read_metrics(folder):
    """Return the metrics of a run, a dict per line, without what a killed run left half-written.

    Raises
    ------
    OSError
        If the folder has none.
    """
    metrics = []
    for line in (folder / METRICS).read_text("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            metrics.append(json.loads(line))
    return metrics


def read_bytes(path, where, what="text file"):
    """Read a file. The parameters and the errors are those of `read_text`."""
    if os.path.isdir(path):
        raise UserError(f"{where} {path} is a folder; name a {what}")
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where} {path} cannot be read: {reason}; name a {what}") from None


def decode_utf8(raw, where):
    """Decode bytes; a UserError that begins with `where` names the first that does not fit."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} (counted "
            "from 0) does not fit; convert it first, for example by "
            "`iconv -f GBK -t UTF-8 old.txt > new.txt`"
        ) from None


def write_atomically(path, parts, own_name=False):
    """Write a file so that at any moment there is a whole one at `path`: the old or the new.

    The parts go to a temporary file, which is synced and then renamed; the folder is synced, too.

    Parameters
    ----------
    path : Path
    parts : sequence of bytes or contiguous arrays
    own_name : bool
        Whether the temporary file has a name of its own, for processes that may write the same
        file at the same time. Otherwise its name is fixed, so that what a killed process leaves is
        overwritten by the next.

    Raises
    ------
    OSError
        What was at `path` is unchanged then, and the temporary file is gone.
    """
    own = f".{secrets.token_hex(4)}" if own_name else ""
    temporary = path.with_name(f"{path.name}{own}.tmp")
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # Windows and some network disks cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def writing(path):
    """Make a UserError of what goes wrong while `path` is written."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


class AlreadyLocked(Exception):
    """Another process has the lock."""


def acquire(path, timeout_s=0.0):
    """Take the lock that a file stands for.

    Returns
    -------
    lock : FileLock or None
        None where the file system has no locks, or the file cannot be made.

    Raises
    ------
    AlreadyLocked
        If another process has had it for `timeout_s` seconds.
    """
    from filelock import FileLock, Timeout  # slow to import, and --help needs none

    try:
        lock = FileLock(path)
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise AlreadyLocked from None
    except (OSError, ValueError, NotImplementedError):
        return None
    return lock


def release(lock):
    """Give a lock back, or None, and remove its file."""
    if lock is None:
        return
    with contextlib.suppress(OSError):  # Windows removes no file that is open
        Path(lock.lock_file).unlink()  # who waits for it sees that it is gone, and makes it anew
    lock.release()
