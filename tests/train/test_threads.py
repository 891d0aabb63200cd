import contextlib
import gc
import signal
import threading
import time
import weakref
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from minigpt.backend.cores import usable_cores
from minigpt.backend.cpu.crew import shard_slices, share, size
from minigpt.errors import UserError
from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import GRAD_NORM, GRAD_SCALE
from minigpt.params import Params
from minigpt.train.threads import Workers, cut, sum_gradients


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_at_least_one_core():
    assert usable_cores() >= 1


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

    with Workers(n) as workers:
        results = workers.map(slow_at_first, range(7))
    assert [i for i, _ in results] == list(range(7))
    names = [name for _, name in results]
    assert len(set(names)) == n
    assert all(names[i] == names[i % n] for i in range(7))  # item i on thread i mod n
    assert names[0] == threading.current_thread().name


def test_map_works_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    with Workers(3) as workers:
        workers.map(lambda _: meeting.wait(), range(3))  # nobody passes alone


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_exception_reaches_the_caller_and_the_workers_live_on(n, at):
    done = []

    def work(i):
        if i == at:
            raise MemoryError(f"item {i}")
        done.append(i)

    with Workers(n) as workers:
        with pytest.raises(MemoryError, match=f"item {at}"):
            workers.map(work, range(5))
        assert set(range(5)) - {*done, at} <= set(range(at + 1, 5))  # none is still running
        assert workers.map(abs, [-1, -2, -3]) == [1, 2, 3]


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

    with Workers(2) as workers:
        ctrl_c(0.05)
        with pytest.raises(KeyboardInterrupt):
            workers.map(work, [(0, "left"), (1, "left")])
        assert ("ends", 1, "left") not in events
        for name in "next", "last":
            assert workers.map(work, [(0, name), (1, name)]) == [name, name]
    assert events.index(("ends", 1, "left")) < events.index(("begins", 0, "next"))


def test_what_ctrl_c_leaves_at_work_ends_after_the_workers(ctrl_c):
    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        [thread] = workers._threads
        ctrl_c(0.05)
        workers.map(lambda i: time.sleep(0.4 * i), [0, 1])
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
        with Workers(2) as workers, contextlib.suppress(ValueError):
            workers.map(work, [0, 1])
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_threads_end_with_the_workers():
    before = set(threading.enumerate())
    workers = Workers(3)
    new = set(threading.enumerate()) - before
    assert len(new) == 2
    workers.close()
    assert not any(thread.is_alive() for thread in new)
    workers.close()


@pytest.mark.report("16")
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_threads_that_cannot_be_started_are_told_and_those_started_end(monkeypatch, error):
    before, blas, started, start = set(threading.enumerate()), blas_threads(), [], Thread.start

    def limited(self):
        if len(started) == 2:
            raise error
        started.append(self)
        start(self)

    monkeypatch.setattr(Thread, "start", limited)
    with pytest.raises(UserError, match="^8 threads cannot be started: .*; take fewer by --thre"):
        Workers(8)
    for thread in started:
        thread.join(timeout=10)
    assert set(threading.enumerate()) == before and blas_threads() == blas


def test_blas_has_one_thread_while_several_work_and_its_own_afterwards():
    before = blas_threads()
    with Workers(2):
        assert set(blas_threads()) <= {1}
    assert blas_threads() == before
    with Workers(1):
        assert set(blas_threads()) <= {1}
    with pytest.raises(ZeroDivisionError), Workers(2) as workers:
        workers.map(lambda i: 1 / i, [1, 0])
    assert blas_threads() == before


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

    with Workers(n) as workers:
        [(threads, parts)] = workers.map(op, [0])
        assert threads == n and sum((items for items, _ in parts), []) == [*range(5)]
        assert all(nested == [[1, 2]] for _, nested in parts)
        assert [threads for threads, _ in workers.map(op, [0, 1])] == [1, 1]
        with pytest.raises(ZeroDivisionError):
            workers.map(lambda _: share(lambda items: [1 / i for i in items], [1, 1, 0]), [0])
        assert workers.map(op, [0])[0][0] == n
    assert op(0)[0] == 1


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100])
def test_ranges_cover_all_elements_once_in_cache_lines(n, size):
    ranges = []
    with Workers(n) as workers:
        ends = workers.ranges(lambda start, stop: ranges.append((start, stop)) or stop, size)
    assert [i for a, b in sorted(ranges) for i in range(a, b)] == list(range(size))
    assert all(a % 16 == 0 for a, _ in ranges)
    assert 1 <= len(ranges) <= n and ends == [stop for _, stop in sorted(ranges)]


@given(sizes=st.lists(st.integers(0, 9), max_size=6), a=st.integers(0, 60), b=st.integers(0, 60))
def test_cut_pieces_are_the_range_of_all_end_to_end(sizes, a, b):
    whole = np.arange(sum(sizes))
    arrays = [x.reshape(1, -1) for x in np.split(whole, np.cumsum(sizes)[:-1])] if sizes else []
    pieces = cut(arrays, min(a, b), max(a, b))
    came = np.concatenate([*(piece.reshape(-1) for piece in pieces), []])
    np.testing.assert_array_equal(came, whole[min(a, b) : max(a, b)])
    assert all(np.shares_memory(piece, whole) for piece in pieces if piece.size)


def gradients(rng, shards):
    """Params of odd sizes, one over several blocks, and a tree of gradients for each shard."""
    grads = Params({"w": (3, 2**16), "h": [{"b": (5,)}, {"b": (1,)}], "v": (7, 11)}, np, "float32")
    trees = []
    for _ in range(shards):
        tree = grads.zeros_like()
        tree.flat[...] = rng.standard_normal(tree.size)
        trees.append(tree)
    return grads, trees


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("add", [False, True])
def test_sum_gradients_is_the_sum_in_order(rng, n, shards, add):
    grads, trees = gradients(rng, shards)
    grads.flat[...] = 0.5
    expected = np.full_like(grads.flat, 0.5) if add else trees[0].flat.copy()
    for tree in trees if add else trees[1:]:
        expected += tree.flat
    with Workers(n) as workers:
        sum_gradients(workers, [tree.tree for tree in trees], grads, add)
    np.testing.assert_array_equal(grads.flat, expected)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_norm_over_threads_is_that_of_the_whole_and_always_the_same_bits(rng, n):
    grads, (tree,) = gradients(rng, 1)
    expected = np.linalg.norm(tree.flat.astype(np.float64))
    adamw, seen = AdamW(grads), set()
    with Workers(n) as workers:
        for _ in range(5):
            adamw.prepare(tree.flat, workers.ranges)
            seen.add(float(adamw.state[GRAD_NORM]))
    assert len(seen) == 1 and seen.pop() == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_passes_through_the_sum_to_the_norm(rng):
    grads, trees = gradients(rng, 2)
    trees[1].flat[7] = np.nan
    adamw = AdamW(grads)
    with Workers(2) as workers:
        sum_gradients(workers, [tree.tree for tree in trees], grads)
        adamw.prepare(grads.flat, workers.ranges)
    assert np.isnan(adamw.state[GRAD_NORM]) and np.isnan(adamw.state[GRAD_SCALE])


@pytest.mark.parametrize("n", [1, 3])
def test_a_part_of_no_weights_has_a_norm_and_a_step(n, rng):
    grads, _ = gradients(rng, 1)
    adamw = AdamW(grads, own=slice(grads.size, grads.size))
    before = grads.flat.copy()
    with Workers(n) as workers:
        adamw.step(np.ones_like(before), 0.1, workers.ranges)
    assert adamw.state[GRAD_NORM] == 0.0
    np.testing.assert_array_equal(grads.flat, before)
