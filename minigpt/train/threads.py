"""Threads over shards of the batch: each takes its rows through the forward and backward pass.

BLAS uses one thread in each of them: several would wait for each other in every product of a small
model. What the shards have left is brought together in a fixed order, so that a run depends on the
number of threads, but never on their timing. minigpt/README.md, "Who computes what", has a picture.
"""

import contextlib
import itertools

import numpy as np

from minigpt.backend.blas import blas_threads
from minigpt.backend.cpu import pool
from minigpt.backend.cpu.pool import empty
from minigpt.backend.cpu.threads import Threads
from minigpt.optim.gradients import gather

STACK = 2**20  # numbers of x, or of a product to be added, that a thread has at one time


class Workers(Threads):
    """The threads of a run, with BLAS on one in each of them while the object lives."""

    def __init__(self, n):
        self._blas = contextlib.ExitStack()
        self._blas.enter_context(blas_threads(1))
        super().__init__(n)

    def close(self):
        """As of Threads; the caller's memory goes back, too, and BLAS has its own threads again."""
        try:
            pool.give_back()
            super().close()
        finally:
            self._blas.close()


def cut(arrays, start, stop):
    """Return views on the elements start .. stop - 1 of arrays that are laid end to end."""
    pieces, at = [], 0
    for array in arrays:
        a, b = max(start - at, 0), min(stop - at, array.size)
        if b - a == array.size:
            pieces.append(array)
        elif a < b:
            pieces.append(array.reshape(-1)[a:b])
        at += array.size
    return tuple(pieces)


def sum_gradients(workers, trees, grads, add=False, filled=(), later=None):
    """Write the sum of the shards' gradients into `grads`: shard by shard, in order.

    Parameters
    ----------
    workers : Workers
    trees : list of trees of gradients
    grads : Params
        Receives the sum.
    add : bool
        Whether to add to what `grads` holds, as for a further batch of the same step.
    filled : list of arrays
        Of `grads`, those that nothing is to be copied to, once for each of the shards: see
        backend/places.py. A shard alone has left its gradients there; of several, all have left
        factors.
    later : Later, optional
        These factors.
    """
    shards = [grads.ordered(tree) for tree in trees]
    there = [[x is place for x, place in zip(x, grads.arrays, strict=True)] for x in shards]
    if any(x != there[0] for x in there) or sum(map(sum, there)) != len(filled):
        raise RuntimeError(
            "a gradient that was left in its place is not the one that is returned: did "
            "minigpt.plain() begin or end amid the step?"
        )
    edges = [*grads.starts, grads.size]
    for done, run in itertools.groupby(range(len(grads.arrays)), there[0].__getitem__):
        if done:
            continue
        run = list(run)  # arrays that are not there, one after the other
        first, stop = run[0], run[-1] + 1
        arrays = [shard[first:stop] for shard in shards]
        sum_arrays(workers, arrays, grads.flat[edges[first] : edges[stop]], add)
    if later is not None:
        places = [x for x, done in zip(grads.arrays, there[0], strict=True) if done]
        multiply(workers, factors_of(later, places), add)
        for how in itertools.chain(*later.changes):
            how()


def sum_arrays(workers, shards, flat, add):
    """Write the sum of the arrays of each shard, end to end, to `flat`; or add it."""

    def reduce(start, stop):
        whole = stop - start == flat.size  # of one thread: nothing is to be cut
        pieces = tuple(arrays if whole else cut(arrays, start, stop) for arrays in shards)
        gather(flat[start:stop], pieces, add)

    workers.ranges(reduce, flat.size)


def factors_of(later, places):
    """Return [(place, x of each shard, dy of each shard)] of what has been left as factors."""
    found = []
    for place in places:
        xs, dys = zip(*(shard[id(place)] for shard in later.factors), strict=True)
        found.append((place, xs, dys))
    return found


def multiply(workers, products, add):
    """Write the gradients that were left as factors: x^T dy over the rows of all shards; or add it.

    Each thread has a range of their rows, end to end: as a rule whole matrices, and parts of two.

    Parameters
    ----------
    workers : Workers
    products : list of (place, sequence of x (N_i, C_in), sequence of dy (N_i, C_out))
    add : bool
    """
    edges = [0, *itertools.accumulate(place.size for place, *_ in products)]

    def make(start, stop):
        for at, (place, xs, dys) in zip(edges, products, strict=False):
            first, last = (-((at - edge) // place.shape[1]) for edge in (start, stop))
            rows = slice(max(first, 0), max(last, 0))
            multiply_rows(place[rows], [x[:, rows] for x in xs], dys, add)

    workers.ranges(make, edges[-1])


def multiply_rows(out, xs, dys, add):
    """Write x^T dy to some rows of a gradient, or add it; x and dy are those of all shards."""
    n, width = sum(map(len, xs)), out.shape[1]
    step = max(1, STACK // max(n, width if add else 1))
    dy = stack(dys) if len(out) else None
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        x = stack([x[:, some] for x in xs])
        if add:
            out[some] += np.matmul(x.T, dy, out=empty((x.shape[1], width), dy.dtype))
        else:
            np.matmul(x.T, dy, out=out[some])


def stack(arrays):
    """Return arrays (N_i, C) below one another, in memory that is reused."""
    shape = sum(map(len, arrays)), arrays[0].shape[1]
    return np.concatenate(arrays, out=empty(shape, arrays[0].dtype))
