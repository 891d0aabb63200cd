"""Locks between processes. The operating system ends one with its process, however that ends."""

import contextlib
from pathlib import Path


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
