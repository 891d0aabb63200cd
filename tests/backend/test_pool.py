"""The memory pool: which buffers are reused, when, and by whom."""

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
    assert not pool._cache.sizes


@pytest.mark.report("25")
def test_a_buffer_without_references_is_reused():
    x = empty((SMALL,), "float32")
    where = address(x)
    del x
    assert address(empty((2, SMALL // 2), "float32")) == where
    assert address(empty((SMALL,), "int32")) != where  # another dtype


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[5:],
        lambda x: x[1:].reshape(-1, 1)[2:].T,
        lambda x: x.view("int32")[::2],
        lambda x: np.asarray(memoryview(x)),
    ],
    ids=["a view", "a view of views", "of another dtype", "behind a memoryview"],
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
    return sorted(len(chunk) for chunk in (*pool._cache.cut, *pool._cache.whole))


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
        pool.begin_work()
        use(*of_one)
        assert held() == most


def test_memory_follows_shapes_that_grow():
    for T in range(9000, 18000, 700):
        pool.begin_work()
        use((T, 3, 64), (T, 64), (T, 64))
        needed = T * 5 * 64 * 4
        assert needed <= sum(held()) <= 1.2 * needed + 2 * CHUNK


def test_equal_work_cuts_no_buffers(monkeypatch):
    shapes = [(SMALL,), (3, SMALL), (CHUNK,)]
    use(*shapes)
    monkeypatch.setattr(pool, "cut", None)
    for _ in range(3):
        pool.begin_work()
        use(*shapes)


def test_an_array_in_use_keeps_its_memory_when_buffers_are_cut_anew():
    small, large = (empty((n,), "uint8") for n in (SMALL, CHUNK))
    small[...], large[...] = 7, 8
    for n in (2, 3):
        pool.begin_work()
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


def test_a_used_up_chunk_is_followed_by_another():
    held = [empty((CHUNK // 4,), "uint8") for _ in range(9)]
    starts = sorted(map(address, held))
    assert all(b - a >= CHUNK // 4 for a, b in pairwise(starts))


def test_too_many_sizes_are_dropped_but_arrays_in_use_stay():
    held = empty((SMALL,), "uint8")
    held[...] = 7
    for n in range(2 * MAX_SIZES):
        empty((SMALL + n + 1,), "uint8")[...] = 0
        assert len(pool._cache.sizes) <= MAX_SIZES
    empty((SMALL,), "uint8")[...] = 0
    assert (held == 7).all()


def test_threads_share_no_buffers():
    x = empty((SMALL,), "float32")
    where = address(x)
    del x
    with ThreadPoolExecutor(1) as other:
        assert address(other.submit(empty, (SMALL,), "float32").result()) != where


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_aligned(dtype):
    for n in (1, 1000):
        x = aligned(n, dtype, np.zeros)
        assert x.shape == (n,) and x.dtype == dtype and not x.any()
        assert address(x) % LINE == 0
