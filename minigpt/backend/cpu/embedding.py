"""Embedding on the CPU: backward passes for large vocabularies, and into a gradient given up."""

import numpy as np

from minigpt.backend.cpu.pool import zeros
from minigpt.backend.places import change

ONE_HOT = 2**20  # elements up to which a product with one-hot rows beats sorting


def is_small(cache):
    """Tell whether a product with one-hot rows is the fastest way."""
    ids, _, wte, _ = cache
    return ids.size * min(ids.size, len(wte)) <= ONE_HOT


def embedding_backward(dy, cache):
    """As the op, for many ids."""
    if is_small(cache):
        return NotImplemented
    dwte = zeros(cache[2].shape, dy.dtype)
    add_rows(dy, cache, dwte)
    return {"wte": dwte, **positions(dy, cache)}


def embedding_backward_tied(dy, cache, dwte):
    """As the op, in place: dwte is written to, as soon as the head's gradient is there."""
    change(dwte, lambda: add_rows(dy, cache, dwte))
    return {"wte": dwte, **positions(dy, cache)}


def add_rows(dy, cache, dwte):
    """Add the rows of dy to the rows of dwte that their ids name."""
    ids, rows = cache[0], dy.reshape(-1, dy.shape[-1])
    if is_small(cache):
        used, index = np.unique(ids, return_inverse=True)
        onehot = index.reshape(-1, 1) == np.arange(used.size)
        dwte[used] += onehot.astype(dy.dtype).T @ rows
    else:  # sort the rows by id, then sum each segment
        order = ids.reshape(-1).argsort(kind="stable")
        used, firsts = np.unique(ids.reshape(-1)[order], return_index=True)
        dwte[used] += np.add.reduceat(rows[order], firsts, axis=0)


def positions(dy, cache):
    """Return {"wpe": its gradient}, or {} where there is none."""
    _, start, _, wpe = cache
    if wpe is None:
        return {}
    dwpe = zeros(wpe.shape, dy.dtype)
    np.sum(dy, axis=0, out=dwpe[start : start + dy.shape[1]])
    return {"wpe": dwpe}
