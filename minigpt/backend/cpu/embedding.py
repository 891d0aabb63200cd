"""Embedding on the CPU: its backward pass, for a large vocabulary."""

import numpy as np

from minigpt.backend.cpu.pool import zeros

ONE_HOT = 2**20  # elements up to which a product with one-hot rows beats sorting


def embedding_backward(dy, cache, dwte=None):
    """As the op; for many ids, sorted and then summed by segments."""
    ids, start, wte_shape, wpe_shape = cache
    if ids.size * min(ids.size, wte_shape[0]) <= ONE_HOT:
        return NotImplemented
    C = dy.shape[-1]
    order = ids.reshape(-1).argsort(kind="stable")
    used, firsts = np.unique(ids.reshape(-1)[order], return_index=True)
    if dwte is None:
        dwte = zeros(wte_shape, dy.dtype)
    dwte[used] += np.add.reduceat(dy.reshape(-1, C)[order], firsts, axis=0)
    if wpe_shape is None:
        return {"wte": dwte}
    dwpe = zeros(wpe_shape, dy.dtype)
    np.sum(dy, axis=0, out=dwpe[start : start + dy.shape[1]])
    return {"wte": dwte, "wpe": dwpe}
