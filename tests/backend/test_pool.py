"""Memory that is reused: who gets which, and when."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from minigpt.backend.cpu import pool
from minigpt.backend.cpu.pool import CHUNK, MAX_SIZES, SMALL, empty
from minigpt.params import LINE, aligned


@pytest.fixture(autouse=True)
def of_its_own(monkeypatch):
    """A pool in which no other test has left anything."""
    monkeypatch.setattr(pool, "_mine", pool.Mine())


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


def test_what_is_small_is_numpys():
    assert empty((SMALL // 4 - 1,), "float32").base is None
    assert empty((0, 5), "float32").shape == (0, 5)
    assert not pool._mine.sizes


def test_what_nobody_looks_at_is_given_out_again():
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


def test_a_large_buffer_is_alone():
    rest = len(pool._mine.rest)
    empty((CHUNK // 4 + 1,), "uint8")
    assert len(pool._mine.rest) == rest == 0
    empty((CHUNK // 4,), "uint8")
    assert len(pool._mine.rest) >= CHUNK - CHUNK // 4


def test_a_chunk_that_is_used_up_is_followed_by_another():
    held = [empty((CHUNK // 4,), "uint8") for _ in range(9)]
    starts = sorted(map(address, held))
    assert all(b - a >= CHUNK // 4 for a, b in pairwise(starts))


def test_many_sizes_are_forgotten_and_what_is_in_use_stays():
    held = empty((SMALL,), "uint8")
    held[...] = 7
    for n in range(2 * MAX_SIZES):
        empty((SMALL + n + 1,), "uint8")[...] = 0
        assert len(pool._mine.sizes) <= MAX_SIZES
    empty((SMALL,), "uint8")[...] = 0
    assert (held == 7).all()


def test_a_thread_has_memory_of_its_own():
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
