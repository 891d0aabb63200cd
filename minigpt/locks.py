"""Locks between processes: a file that says who holds it, and a lock on it where there are some.

The operating system ends its lock with the process, however that ends. Some network disks grant
every lock, or none; there the file speaks: it names the host, the process and when that started,
and is touched for as long as the lock is held.
"""

import contextlib
import errno
import json
import os
import platform
import threading
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TOUCH_S = 30.0  # seconds between two signs of life
STALE_S = 300.0  # seconds after which a silent process of another host counts as dead
MAKING_S = 0.05  # seconds until whoever makes a lock's file has written into it
POLL_S = 0.05  # seconds between two looks at a lock that another process holds
FAR = 1 << 20  # offset of the byte that is locked on Windows, where others cannot read it then


class AlreadyLocked(Exception):
    """Another process has the lock. Its text says which, or nothing where that is not known."""


class Lock:
    """A lock that is held: its file, open, and a thread that touches it."""

    def __init__(self, path, fd):
        self.path, self.fd, self.ended = path, fd, threading.Event()
        with contextlib.suppress(RuntimeError):  # no more threads: it is touched by nobody then
            threading.Thread(target=self.touch, daemon=True, name="lock").start()

    def touch(self):
        """Show every TOUCH_S seconds that the process lives."""
        while not self.ended.wait(TOUCH_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self):
        """Give the lock back, and remove its file."""
        self.ended.set()
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            self.path.unlink()  # who waits for it sees that it is gone, and makes it anew
        os.close(self.fd)
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self.path.unlink()


def acquire(path, timeout_s=0.0):
    """Take the lock that a file stands for.

    Returns
    -------
    lock : Lock

    Raises
    ------
    AlreadyLocked
        If another process has had it for `timeout_s` seconds.
    OSError
        If the file cannot be made.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return try_once(Path(path))
        except AlreadyLocked:
            if time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)


def release(lock):
    """Give a lock back, or None."""
    if lock is not None:
        lock.release()


def try_once(path):
    """Return the Lock of a file, or raise AlreadyLocked."""
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    try:
        fd, made = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        try:
            fd, made = os.open(path, flags), False
        except FileNotFoundError:
            raise AlreadyLocked("") from None
    try:
        free = locked_by_system(fd)
        holder = None if made else read_holder(fd)
        if not free or at_work(holder, fd):
            raise AlreadyLocked(describe(holder))
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, (json.dumps(me()) + "\n").encode())
        if not os.path.samestat(os.fstat(fd), os.stat(path)):
            raise AlreadyLocked("")
        return Lock(path, fd)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, FileNotFoundError):  # another process has removed it
            raise AlreadyLocked("") from None
        if made and not isinstance(error, AlreadyLocked):  # such as a full disk
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def locked_by_system(fd):
    """Take the system's lock on an open file; tell whether it is free, or there are no locks."""
    try:
        if fcntl is None:
            import msvcrt

            os.lseek(fd, FAR, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def me():
    """Return what a lock's file says of this process."""
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "born": born(os.getpid()),
    }


def born(pid):
    """Return when a process of this host started, in ticks; None if it is dead or unknown."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # has a name in any encoding
        fields = stat.rpartition(b")")[2].split()
        if fields[0] not in (b"Z", b"X"):  # it has ended, and its parent has not looked yet
            return int(fields[19])  # proc(5): field 22
    return None


def read_holder(fd):
    """Return what a lock's file says; None of an empty one, or what this program has not written.

    One that is empty may just be in the making.
    """
    for pause in (MAKING_S, 0.0):
        os.lseek(fd, 0, os.SEEK_SET)
        raw = os.read(fd, 4096)
        if raw:
            break
        time.sleep(pause)
    with contextlib.suppress(ValueError, TypeError):
        holder = json.loads(raw)
        if isinstance(holder, dict) and isinstance(holder["pid"], int) and holder.keys() >= {*me()}:
            return holder
    return None


def at_work(holder, fd):
    """Tell whether a process that holds a lock by its file is alive, as far as can be known."""
    if holder is None:
        return False
    recent = time.time() - os.fstat(fd).st_mtime < STALE_S
    if holder["host"] != platform.node():
        return recent
    if os.name == "nt" or holder["pid"] == os.getpid():  # there the system's locks can be trusted
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    # The number of a process that has ended may be another's by now.
    return recent if holder["born"] is None else holder["born"] == born(holder["pid"])


def describe(holder):
    """Return who holds a lock, in words; "" if that is not known."""
    if holder is None:
        return ""
    return f"number {holder['pid']} on {holder['host']}, since {holder['since']}"
