"""The memory pool: which buffers are reused, when, and by whom."""

import gc
import itertools
import queue
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from minigpt.backend.cpu import pool
from minigpt.backend.cpu.pool import CHUNK, MAX_SIZES, SMALL, empty
from minigpt.params import LINE, aligned


@pytest.fixture(autouse=True)
def empty_pool(monkeypatch):
    """A pool without the buffers of other tests."""
    monkeypatch.setattr(pool, "_cache", pool.ThreadCache())


def address(x):
    return x.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("n", [SMALL, SMALL + 1, 3 * SMALL + 7, CHUNK // 4, CHUNK])
def test_a_buffer_begins_at_a_cache_line(n, dtype):
    held = [empty((n, 1), dtype) for _ in range(3)]
    for x in held:
        assert x.shape == (n, 1) and x.dtype == dtype
        assert address(x) % LINE == 0 and x.flags.c_contiguous and x.flags.writeable
        x[...] = 1


def test_small_arrays_come_from_numpy():
    assert empty((SMALL // 4 - 1,), "float32").base is None
    assert empty((0, 5), "float32").shape == (0, 5)
    assert not pool._cache.buffers


@pytest.mark.report("25")
def test_a_buffer_without_references_is_reused():
    x = empty((SMALL,), "float32")
    where = address(x)
    del x
    assert address(empty((2, SMALL // 2), "float32")) == where
    assert address(empty((SMALL // 2,), "float64")) == where
    assert address(empty((SMALL,), "uint8")) != where


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[5:],
        lambda x: x[1:].reshape(-1, 1)[2:].T,
        lambda x: x.view("int32")[::2],
        lambda x: np.asarray(memoryview(x)),
        lambda x: np.ndarray((SMALL // 2,), "uint8", memoryview(x.base)[SMALL:]),
        lambda x: np.lib.stride_tricks.as_strided(x, (9, 9), (0, 4)),
        lambda x: np.from_dlpack(x)[1:],
        lambda x: (value for value in x),
    ],
    ids=[
        *("a view", "a view of views", "of another dtype", "behind a memoryview"),
        *("on what is at the bottom", "as strided", "by DLPack", "in a generator"),
    ],
)
def test_a_view_keeps_the_memory(view):
    x = empty((SMALL,), "float32")
    where, kept = address(x), view(x)
    del x
    assert address(empty((SMALL,), "float32")) != where
    del kept
    assert address(empty((SMALL,), "float32")) == where


def test_small_buffers_share_a_chunk_and_do_not_overlap():
    held = [empty((SMALL + 1,), "uint8") for _ in range(9)]
    starts = sorted(map(address, held))
    assert {b - a for a, b in pairwise(starts)} == {SMALL + LINE}


def held():
    """The sizes of the chunks of this thread, in bytes."""
    return sorted(map(len, pool._cache.chunks))


def test_a_large_buffer_is_not_part_of_a_chunk():
    kept = empty((CHUNK // 4 + LINE,), "uint8")
    assert held() == [kept.size]
    kept = kept, empty((CHUNK // 4,), "uint8"), empty((SMALL,), "uint8")
    assert held() == [CHUNK // 4 + LINE, CHUNK]


def use(*shapes):
    """Fill arrays of these shapes at the same time, and let go of them."""
    for x in [empty(shape, "float32") for shape in shapes]:
        x[...] = 1


def test_work_of_many_shapes_takes_no_more_memory_than_the_largest():
    shapes = [((T, 3, 64), (T, 64), (T, 64), (T, 4, 64)) for T in (9000, 300, 4000, 8000, 2000)]
    use(*shapes[0])
    most = held()
    for of_one in shapes[1:] * 5:
        with pool.work():
            use(*of_one)
        assert held() == most


def test_memory_follows_shapes_that_grow():
    for T in range(9000, 18000, 700):
        with pool.work():
            use((T, 3, 64), (T, 64), (T, 64))
        needed = T * 5 * 64 * 4
        assert needed <= sum(held()) <= 1.2 * needed + 2 * CHUNK


def test_equal_work_cuts_no_buffers(monkeypatch):
    shapes = [(SMALL,), (3, SMALL), (CHUNK,)]
    use(*shapes)
    monkeypatch.setattr(pool, "cut", None)
    for _ in range(3):
        with pool.work():
            use(*shapes)


def test_what_comes_between_pieces_of_work_leaves_their_buffers(monkeypatch):
    def twice():
        for between in ((5 * SMALL,), (7 * SMALL,)):  # as with one batch, and one to add to it
            with pool.work():
                use((3 * SMALL,), (CHUNK,))
            use(between)

    twice()
    monkeypatch.setattr(pool, "cut", None)
    twice()


def test_an_array_in_use_keeps_its_memory_when_buffers_are_cut_anew():
    small, large = (empty((n,), "uint8") for n in (SMALL, CHUNK))
    small[...], large[...] = 7, 8
    for n in (2, 3):
        with pool.work():
            use((n * SMALL,), (n * CHUNK // 8,), (CHUNK // 4,))
    assert (small == 7).all() and (large == 8).all()


def test_memory_can_be_given_back():
    kept = empty((SMALL,), "uint8")
    kept[...] = 7
    use((CHUNK,))
    pool.give_back()
    assert held() == [] and (kept == 7).all()
    use((SMALL,))
    assert held() == [CHUNK] and (kept == 7).all()


def test_memory_lives_as_long_as_the_arrays_on_it(monkeypatch):
    chunks = []

    def watched(size, dtype):
        array = aligned(size, dtype)
        chunks.append(weakref.ref(array))
        return array

    monkeypatch.setattr(pool, "aligned", watched)
    view = empty((SMALL,), "float32")[5:]
    pool.give_back()
    assert chunks[0]() is not None
    del view
    assert chunks[0]() is None


def test_a_used_up_chunk_is_followed_by_another():
    held = [empty((CHUNK // 4,), "uint8") for _ in range(9)]
    starts = sorted(map(address, held))
    assert all(b - a >= CHUNK // 4 for a, b in pairwise(starts))


def test_too_many_sizes_are_dropped_but_arrays_in_use_stay():
    held = empty((SMALL,), "uint8")
    held[...] = 7
    for n in range(2 * MAX_SIZES):
        empty((SMALL + n + 1,), "uint8")[...] = 0
        assert len(pool._cache.buffers) <= MAX_SIZES
    empty((SMALL,), "uint8")[...] = 0
    assert (held == 7).all()


def test_threads_share_no_buffers():
    x = empty((SMALL,), "float32")
    where = address(x)
    del x
    with ThreadPoolExecutor(1) as other:
        assert address(other.submit(empty, (SMALL,), "float32").result()) != where


def test_the_last_view_may_be_dropped_by_another_thread():
    x = empty((SMALL,), "float32")
    where, views = address(x), [x[1:]]
    del x
    with ThreadPoolExecutor(1) as other:
        assert address(empty((SMALL,), "float32")) != where
        other.submit(views.clear).result()
        assert address(other.submit(empty, (SMALL,), "float32").result()) != where
    assert address(empty((SMALL,), "float32")) == where


def test_threads_that_drop_each_others_arrays_see_their_own_numbers():
    """Each is asked for an array while the others look at those before, and drop them."""
    parts, rounds = 3, 300
    queues = [queue.SimpleQueue() for _ in range(parts)]

    def work(i):
        for n in range(rounds):
            x = empty((SMALL + n % 3,), "uint8")
            x[...] = (i + n) % 251
            queues[(i + 1) % parts].put((x[5:], (i + n) % 251))
            del x
            view, number = queues[i].get()
            assert view.min() == view.max() == number

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(parts) as threads:
            list(threads.map(work, range(parts)))
    finally:
        sys.setswitchinterval(interval)


def interrupted(fn, at, other):
    """Return (fn(), other()), called before the instruction `at` of the pool, or None at its end.

    Whatever runs there, such as a garbage collection, runs between two instructions.
    """
    seen, found = itertools.count(), []

    def trace(frame, event, _):
        frame.f_trace_opcodes = True
        if event == "opcode" and next(seen) == at:
            sys.settrace(None)
            found.append(other())
        return trace

    def begin(frame, *_):
        return trace(frame, "", None) if frame.f_code.co_filename == pool.__file__ else None

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        return fn(), found[0] if found else None
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("rest", [0, 1, 3], ids=["free", "cut off a rest", "of a new chunk"])
def test_arrays_may_be_made_in_the_middle_of_making_one(rest):
    """A garbage collection may run a generator's end, for example, which computes."""
    at, other = 0, 0
    while other is not None:
        pool.give_back()
        held = [empty((CHUNK // 4,), "uint8") for _ in range(rest)]
        if not rest:
            empty((CHUNK // 4,), "uint8")
        new = lambda: empty((CHUNK // 4,), "uint8")  # noqa: E731
        made, other = interrupted(new, at, new)
        arrays = [*held, made, new(), *([] if other is None else [other])]
        for n, x in enumerate(arrays):
            x[...] = n
        assert all((x == n).all() for n, x in enumerate(arrays))
        at += 40 if rest else 1
    assert at > 50 and not pool._cache.busy


@pytest.mark.parametrize("name", ["aligned", "weakref"])
def test_an_error_leaves_the_pool_as_good_as_new(name, monkeypatch):
    held = empty((SMALL,), "uint8")
    held[...] = 7
    with monkeypatch.context() as m:
        m.setattr(pool, name, None)
        with pytest.raises((TypeError, AttributeError)):
            empty((CHUNK,), "uint8")
    first, second = empty((CHUNK,), "uint8"), empty((CHUNK,), "uint8")
    first[...], second[...] = 8, 9
    assert (held == 7).all() and (first == 8).all() and (second == 9).all()
    where = address(first)
    del first
    assert address(empty((CHUNK,), "uint8")) == where


def test_an_array_in_a_cycle_keeps_its_memory_until_the_cycle_ends():
    seen = []

    def values(_):
        x = empty((SMALL,), "uint8")
        x[...] = 7
        try:
            yield
        finally:
            empty((SMALL,), "uint8")[...] = 8
            seen.append((x == 7).all())

    cycle = []
    cycle.append(values(cycle))
    next(cycle[0])
    del cycle
    assert not seen
    empty((SMALL,), "uint8")[...] = 9
    gc.collect()
    assert seen == [True]


def test_a_program_may_end_at_any_point():
    """Arrays outlive the pool's module, and a thread dies with its arrays."""
    code = """if 1:
        import threading, time
        from minigpt.backend.cpu.pool import empty, SMALL
        class Cycle: pass
        kept = Cycle()
        kept.me, kept.x = kept, empty((SMALL,), "uint8")
        def work(x=empty((SMALL,), "uint8")):
            while True:
                x = empty((SMALL,), "uint8")
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_aligned(dtype):
    for n in (1, 1000):
        x = aligned(n, dtype, np.zeros)
        assert x.shape == (n,) and x.dtype == dtype and not x.any()
        assert address(x) % LINE == 0
