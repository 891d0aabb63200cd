"""Files: their names in the folder of a run, and locks between processes.

The operating system ends a lock with its process, however that ends.
"""

import contextlib
from pathlib import Path

from minigpt.errors import UserError

METRICS, PICTURE = "metrics.jsonl", "loss.png"
BEST, LAST = "best.safetensors", "last.safetensors"
RUN_FILES = METRICS, BEST, LAST, PICTURE


class Taken(Exception):
    """Another process has the lock."""


def acquire(path, timeout_s=0.0):
    """Take the lock that a file stands for.

    Returns
    -------
    lock : FileLock or None
        None where the file system has no locks, or the file cannot be made.

    Raises
    ------
    Taken
        If another process has had it for `timeout_s` seconds.
    """
    from filelock import FileLock, Timeout  # slow to import, and --help needs none

    try:
        lock = FileLock(path)
        lock.acquire(timeout=timeout_s)
    except Timeout:
        raise Taken from None
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


@contextlib.contextmanager
def writing(path):
    """Make a UserError of what goes wrong while `path` is written."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
