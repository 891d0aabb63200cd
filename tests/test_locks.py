"""Locks: of the system, and where it grants all or none, of a file that says who holds it."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minigpt import locks
from minigpt.locks import AlreadyLocked, acquire, born, release

fcntl = pytest.importorskip("fcntl")

DISKS = {
    "grants every lock": lambda *_: None,
    "knows no locks": lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no locks")),
}


@pytest.fixture(params=DISKS)
def no_locks(request, monkeypatch):
    """A file system whose locks cannot be trusted."""
    monkeypatch.setattr(fcntl, "flock", DISKS[request.param])


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".lock"


@pytest.fixture
def other():
    """A living process of this host."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


def write(path, age_s=0.0, **changes):
    """Leave a lock's file that is as old, of this process but for the changes."""
    path.write_text(json.dumps({**locks.me(), **changes}))
    os.utime(path, (time.time() - age_s,) * 2)


def test_one_at_a_time_has_a_lock(path):
    lock = acquire(path)
    with pytest.raises(AlreadyLocked, match=f"number {os.getpid()} on .*, since 2"):
        acquire(path)
    with pytest.raises(AlreadyLocked):
        acquire(path, timeout_s=0.05)
    release(lock)
    assert not path.exists()
    release(acquire(path))
    release(None)


def test_who_waits_for_a_lock_gets_it(path):
    lock = acquire(path)
    threading.Timer(0.1, release, [lock]).start()
    second = acquire(path, timeout_s=10)
    assert path.exists()
    with pytest.raises(AlreadyLocked):
        acquire(path)
    release(second)


def test_many_that_begin_together_have_it_one_after_the_other(path):
    held, most = [], []

    def work():
        lock = acquire(path, timeout_s=30)
        held.append(lock)
        most.append(len(held))
        time.sleep(0.01)
        held.remove(lock)
        release(lock)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8 and not path.exists()


def test_a_lock_whose_file_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        acquire(tmp_path / "file" / ".lock")


@pytest.mark.parametrize("left", ["", "999999\nothernode\n", "[]", '{"pid": 3}', "\0"])
def test_what_no_holder_has_written_locks_nothing(path, no_locks, left):
    path.write_text(left)
    release(acquire(path))
    assert not path.exists()


@pytest.mark.report("32")
def test_a_living_process_of_this_host_keeps_its_lock(path, no_locks, other):
    write(path, age_s=1e6, pid=other.pid, born=locks.born(other.pid))
    before = path.read_text()
    with pytest.raises(AlreadyLocked, match=f"number {other.pid} on "):
        acquire(path)
    assert path.read_text() == before


@pytest.mark.report("32")
def test_a_dead_process_of_this_host_keeps_no_lock(path, no_locks, other):
    other.communicate(b"\n")
    write(path, pid=other.pid)
    release(acquire(path))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_that_has_ended_unseen_by_its_parent_is_dead():
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        process.stdout.read()  # until it is about to end
        for _ in range(100):
            if born(process.pid) is None:
                break
            time.sleep(0.01)
        os.kill(process.pid, 0)  # it is there still
        assert born(process.pid) is None


@pytest.mark.report("32")
def test_another_process_with_the_number_of_a_dead_one_holds_nothing(path, no_locks, other):
    write(path, pid=other.pid, born=1)
    release(acquire(path))
    write(path, pid=other.pid, born=None)  # not known: its signs of life decide
    with pytest.raises(AlreadyLocked):
        acquire(path)
    write(path, age_s=locks.STALE_S + 1, pid=other.pid, born=None)
    release(acquire(path))


@pytest.mark.report("32")
def test_another_host_keeps_its_lock_while_it_shows_signs_of_life(path, no_locks):
    write(path, host="elsewhere", age_s=locks.STALE_S - 20)
    with pytest.raises(AlreadyLocked, match="on elsewhere"):
        acquire(path)
    write(path, host="elsewhere", age_s=locks.STALE_S + 1)
    release(acquire(path))


def test_a_lock_shows_signs_of_life_while_it_is_held(path, monkeypatch):
    monkeypatch.setattr(locks, "TOUCH_S", 0.01)
    lock = acquire(path)
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - path.stat().st_mtime < 60
    release(lock)


@pytest.mark.report("16")
def test_a_lock_needs_no_thread(path, monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    release(acquire(path))


@pytest.mark.report("21", "32")
@pytest.mark.skipif(not os.path.exists("/proc/self/comm"), reason="no /proc")
def test_a_process_may_have_a_name_in_any_encoding():
    comm = Path("/proc/self/comm")
    name = comm.read_bytes()
    try:
        comm.write_bytes(b"\xff) \xe9")
        assert isinstance(born(os.getpid()), int)
    finally:
        comm.write_bytes(name)
