import contextlib
import gc
import signal
import threading
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.backend.cpu.crew import shard_slices, share, size
from minigpt.backend.cpu.threads import Threads


@given(n=st.integers(1, 50), parts=st.integers(1, 60))
def test_shards_cover_all_rows_once_in_order_and_evenly(n, parts):
    slices = shard_slices(n, parts)
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(n))
    assert len(slices) == min(n, parts)
    sizes = [s.stop - s.start for s in slices]
    assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_map_keeps_the_order_whatever_finishes_first(n):
    def slow_at_first(i):
        time.sleep(0.02 / (i + 1))
        return i, threading.current_thread().name

    with Threads(n) as threads:
        results = threads.map(slow_at_first, range(7))
    assert [i for i, _ in results] == list(range(7))
    names = [name for _, name in results]
    assert len(set(names)) == n
    assert all(names[i] == names[i % n] for i in range(7))  # item i on thread i mod n
    assert names[0] == threading.current_thread().name


def test_map_works_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    with Threads(3) as threads:
        threads.map(lambda _: meeting.wait(), range(3))  # nobody passes alone


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_exception_reaches_the_caller_and_the_threads_live_on(n, at):
    done = []

    def work(i):
        if i == at:
            raise MemoryError(f"item {i}")
        done.append(i)

    with Threads(n) as threads:
        with pytest.raises(MemoryError, match=f"item {at}"):
            threads.map(work, range(5))
        assert set(range(5)) - {*done, at} <= set(range(at + 1, 5))  # none is still running
        assert threads.map(abs, [-1, -2, -3]) == [1, 2, 3]


@pytest.fixture
def ctrl_c():
    """Return a function that interrupts this thread after some seconds."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("at", [0, 1])  # in the caller's own part, in its wait for the others
def test_ctrl_c_leaves_at_once_and_the_next_call_waits_for_what_is_left(ctrl_c, at):
    events = []

    def work(item):
        i, name = item
        events.append(("begins", i, name))
        if name == "left" and i >= at:
            stop = time.monotonic() + 0.4
            while time.monotonic() < stop:
                time.sleep(0.01)
        events.append(("ends", i, name))
        return name

    with Threads(2) as threads:
        ctrl_c(0.05)
        with pytest.raises(KeyboardInterrupt):
            threads.map(work, [(0, "left"), (1, "left")])
        assert ("ends", 1, "left") not in events
        for name in "next", "last":
            assert threads.map(work, [(0, name), (1, name)]) == [name, name]
    assert events.index(("ends", 1, "left")) < events.index(("begins", 0, "next"))


def test_what_ctrl_c_leaves_at_work_ends_after_the_others(ctrl_c):
    with pytest.raises(KeyboardInterrupt), Threads(2) as threads:
        [thread] = threads._threads
        ctrl_c(0.05)
        threads.map(lambda i: time.sleep(0.4 * i), [0, 1])
    assert thread.is_alive()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize("at", [0, 1])
def test_an_error_keeps_no_memory_of_the_pieces(at):
    class Large:
        pass

    kept = []

    def work(i):
        large = Large()
        kept.append(weakref.ref(large))
        if i == at:
            raise ValueError

    gc.disable()
    try:
        with Threads(2) as threads, contextlib.suppress(ValueError):
            threads.map(work, [0, 1])
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_threads_end_with_the_object():
    before = set(threading.enumerate())
    threads = Threads(3)
    new = set(threading.enumerate()) - before
    assert len(new) == 2
    threads.close()
    assert not any(thread.is_alive() for thread in new)
    threads.close()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ops_share_their_parts_where_a_piece_of_work_is_alone(n):
    def op(alone):
        names, parts = set(), []

        def part(items):
            nested = []
            if size() == 1:  # what shares already lends nothing; if it did, all would wait
                share(nested.append, [1, 2])
            names.add(threading.current_thread().name)
            parts.append((items, nested))

        share(part, [*range(5)])
        return len(names), sorted(parts)

    with Threads(n) as threads:
        [(count, parts)] = threads.map(op, [0])
        assert count == n and sum((items for items, _ in parts), []) == [*range(5)]
        assert all(nested == [[1, 2]] for _, nested in parts)
        assert [count for count, _ in threads.map(op, [0, 1])] == [1, 1]
        with pytest.raises(ZeroDivisionError):
            threads.map(lambda _: share(lambda items: [1 / i for i in items], [1, 1, 0]), [0])
        assert threads.map(op, [0])[0][0] == n
    assert op(0)[0] == 1


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100])
def test_ranges_cover_all_elements_once_in_cache_lines(n, size):
    ranges = []
    with Threads(n) as threads:
        ends = threads.ranges(lambda start, stop: ranges.append((start, stop)) or stop, size)
    assert [i for a, b in sorted(ranges) for i in range(a, b)] == list(range(size))
    assert all(a % 16 == 0 for a, _ in ranges)
    assert 1 <= len(ranges) <= n and ends == [stop for _, stop in sorted(ranges)]
