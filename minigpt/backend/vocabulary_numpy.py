"""The two ends of a large vocabulary on the CPU: embedding's backward pass, LM head with loss."""

import math

import numpy as np

from minigpt.backend.pool import empty
from minigpt.ops import cross_entropy, embedding

ROWS = 1024  # of x that meet the whole LM head at a time
LOGITS = 2**18  # that exist at a time: 1 MB in float32
TINY, HUGE = 1e-20, 1e30  # of a sum of exponentials that lost nothing worth to float32
ONE_HOT = 2**20  # elements up to which a product with one-hot rows beats sorting


def embedding_backward(dy, cache, dwte=None):
    """As the op; for many ids, sorted and then summed by segments."""
    ids, start, wte_shape, wpe_shape = cache
    if ids.size * min(ids.size, wte_shape[0]) <= ONE_HOT:
        return embedding.embedding_backward.reference(dy, cache, dwte)
    C = dy.shape[-1]
    order = ids.reshape(-1).argsort(kind="stable")
    used, firsts = np.unique(ids.reshape(-1)[order], return_index=True)
    if dwte is None:
        dwte = np.zeros(wte_shape, dy.dtype)
    dwte[used] += np.add.reduceat(dy.reshape(-1, C)[order], firsts, axis=0)
    dwpe = np.zeros(wpe_shape, dy.dtype)
    np.sum(dy, axis=0, out=dwpe[start : start + dy.shape[1]])
    return {"wte": dwte, "wpe": dwpe}


def cross_entropy_forward(x, targets, w, b=None, count=None):
    """As the op; by tiles of rows and vocabulary."""
    V, C = w.shape
    x2, t = x.reshape(-1, C), targets.reshape(-1)
    if x2.size == 0:
        return cross_entropy.cross_entropy_forward.reference(x, targets, w, b, count)
    if count is None:
        count = max(int((t >= 0).sum()), 1)
    lse = np.empty((len(x2), 1), x.dtype)
    for rows in row_chunks(len(x2)):
        with np.errstate(over="ignore"):
            total = sum_of_exponentials(x2[rows], w, b)
        # Nearly always the softmax needs no shift: only where exp has left the range of floats.
        bad = ~((total > TINY) & (total < HUGE))
        if bad.any():
            top = np.where(bad, highest_logits(x2[rows], w, b), 0)
            total = sum_of_exponentials(x2[rows], w, b, top)
            lse[rows] = np.log(total) + top
        else:
            lse[rows] = np.log(total)
    right = np.einsum("nc,nc->n", x2, w[t])  # a target of -1 picks some logit: unused
    if b is not None:
        right += b[t]
    loss = np.where(t >= 0, lse[:, 0] - right, 0).sum(dtype=x.dtype)
    return loss / count, (x, targets, w, b, lse, count)


def cross_entropy_backward(dloss, cache):
    """As the op; by tiles of rows and vocabulary."""
    x, targets, w, b, lse, count = cache
    V, C = w.shape
    x2, t = x.reshape(-1, C), targets.reshape(-1)
    dx, dw = empty(x2.shape, x.dtype), empty(w.shape, w.dtype)
    db = None if b is None else np.zeros_like(b)
    dx[...] = 0
    if x2.size == 0:
        dw[...] = 0
    factor = ((t >= 0) * (dloss / count)).astype(x.dtype)[:, None]
    for rows in row_chunks(len(x2)):
        xr, tr = x2[rows] * factor[rows], t[rows]
        for columns, p in logit_tiles(x2[rows], w, b):
            p -= lse[rows]
            np.exp(p, out=p)
            (here,) = np.nonzero((tr >= columns.start) & (tr < columns.stop))
            p[here, tr[here] - columns.start] -= 1
            dx[rows] += p @ w[columns]
            if rows.start == 0:
                np.matmul(p.T, xr, out=dw[columns])
            else:
                dw[columns] += p.T @ xr
            if b is not None:
                db[columns] += factor[rows, 0] @ p
    dx *= factor
    return dx.reshape(x.shape), {"w": dw} if b is None else {"w": dw, "b": db}


def row_chunks(n):
    """Yield slices of rows 0 .. n - 1, ROWS at a time."""
    for start in range(0, n, ROWS):
        yield slice(start, min(start + ROWS, n))


def logit_tiles(x, w, b):
    """Yield slices of the vocabulary with the logits (n, columns) of x; all use one memory.

    The rows of w are read, and those of its gradient written, once for all rows of x.
    """
    n, V = len(x), len(w)
    width = min(V, max(1, LOGITS // n))
    buffer = empty((n * width,), x.dtype)
    for start in range(0, V, width):
        columns = slice(start, min(start + width, V))
        logits = buffer[: n * (columns.stop - start)].reshape(n, -1)
        np.matmul(x, w[columns].T, out=logits)
        if b is not None:
            logits += b[columns]
        yield columns, logits


def sum_of_exponentials(x, w, b, top=None):
    """Return the sum over the vocabulary of exp(logits - top), (n, 1)."""
    total, ones = np.zeros((len(x), 1), x.dtype), np.ones(len(w), x.dtype)
    for columns, logits in logit_tiles(x, w, b):
        if top is not None:
            logits -= top
        np.exp(logits, out=logits)
        total[:, 0] += logits @ ones[columns]
    return total


def highest_logits(x, w, b):
    """Return the largest logit of each row, (n, 1)."""
    top = np.full((len(x), 1), -math.inf, x.dtype)
    for _, logits in logit_tiles(x, w, b):
        np.maximum(top, logits.max(axis=1, keepdims=True), out=top)
    return top
