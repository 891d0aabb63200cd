import threading
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from minigpt.backend.cores import usable_cores
from minigpt.errors import UserError
from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import GRAD_NORM, GRAD_SCALE
from minigpt.params import Params
from minigpt.train.threads import Workers, cut, sum_gradients


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_at_least_one_core():
    assert usable_cores() >= 1


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
    told = "^8 threads cannot be started: .*; take fewer by --threads$"
    with pytest.raises(UserError, match=told):
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
