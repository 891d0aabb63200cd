"""The LM head and its loss on the CPU, by tiles of rows and vocabulary."""

import math

import numpy as np

from minigpt.backend.cpu.crew import parts, share
from minigpt.backend.cpu.pool import empty, zeros
from minigpt.backend.places import is_later, leave, place_of
from minigpt.ops import cross_entropy

ROWS = 1024  # rows of x that go through the whole LM head at a time
LOGITS = 2**18  # logits of a tile, which stays in the L2 cache: 1 MB in float32
KEPT = 2**23  # logits that exist at one time where gradients are computed: 32 MB in float32
TINY, HUGE = 1e-20, 1e30  # between them, a sum of exponentials is exact enough in float32


def cross_entropy_forward(x, targets, w, b=None, count=None):
    """As the op; by tiles of rows and vocabulary."""
    if x.size == 0:
        return NotImplemented
    loss, _, cache = compute(x, targets, w, b, count)
    return loss, cache


def cross_entropy_backward(dloss, cache, frozen=False):
    """As the op; the logits and their lse are computed again, for both come in one pass."""
    x, targets, w, b, _, count = cache
    if x.size == 0:
        return NotImplemented
    return compute(x, targets, w, b, count, dloss, frozen)[1]


def cross_entropy_both(x, targets, w, b=None, count=None, dloss=1.0, frozen=False):
    """As the op; the logits of some rows are computed once, for loss and gradients."""
    if x.size == 0:
        return NotImplemented
    loss, gradients, _ = compute(x, targets, w, b, count, dloss, frozen)
    return loss, *gradients


def compute(x, targets, w, b, count, dloss=None, frozen=False):
    """Return the loss, (dx, grads) or, without `dloss`, None, and the cache."""
    V, C = w.shape
    x2, t = x.reshape(-1, C), targets.reshape(-1)
    if count is None:
        count = max(int((t >= 0).sum()), 1)
    lse = np.empty((len(x2), 1), x.dtype)
    gradients, p, later = None, None, False
    if dloss is not None:
        factor = ((t >= 0) * (dloss / count)).astype(x.dtype)[:, None]
        later = not frozen and is_later(w, len(x2) * (V + C))
        gradients = zeros(x.shape, x.dtype), {} if frozen else room(w, b, later)
        p = empty((len(x2) if later else min(len(x2), max(1, KEPT // V)), V), x.dtype)
    size = (1, ROWS) if gradients is None else (V, KEPT)
    for rows in cross_entropy.row_chunks(len(x2), *size):
        if gradients is None:
            head(x2[rows], t[rows], w, b, lse[rows])
            continue
        terms = p[rows] if later else p[: rows.stop - rows.start]
        dx = gradients[0].reshape(x2.shape)[rows]
        head(x2[rows], t[rows], w, b, lse[rows], terms, factor[rows], dx)
        add_weights(gradients[1], x2[rows], terms, first=rows.start == 0)
    if later:
        gradients[1]["w"] = leave(w, p, x2)  # w is (V, C), p dlogits: dw = dlogits^T x
    right = np.vecdot(x2, w[t])  # a target of -1 picks some logit: unused
    if b is not None:
        right += b[t]
    loss = np.where(t >= 0, lse[:, 0] - right, 0).sum(dtype=x.dtype)
    return loss / count, gradients, cross_entropy.CrossEntropyCache(x, targets, w, b, lse, count)


def room(w, b, later):
    """Return {"w": dw, "b": db} to fill, without dw where it is made `later`.

    dw is made in its place. Not for a further batch, where the embedding's rows would be added to
    the sum in place of dw, which is another order: then, and without a place, it is in memory of
    the pool.
    """
    grads = {} if b is None else {"b": np.zeros_like(b)}
    if not later:
        place, _ = place_of(w, adds=False)
        grads["w"] = empty(w.shape, w.dtype) if place is None else place
    return grads


def head(x, t, w, b, lse, terms=None, factor=None, dx=None):
    """Write lse of the logits of some rows x; with `terms` (n, V), dlogits there, and add to dx."""

    def run(parts_of_rows):
        for rows in parts_of_rows:
            p = None if terms is None else terms[rows]
            lse[rows], total = normalize(x[rows], w, b, p)
            if p is not None:
                differentiate(p, t[rows], w, factor[rows], total, dx[rows])

    share(run, parts(len(x), len(x) * w.size))


def differentiate(p, t, w, factor, total, dx):
    """Make dlogits of p = exp(logits - top), in its place, and add dlogits w to dx."""
    scale = factor / total
    for columns in vocabulary_tiles(*p.shape):
        dlogits = p[:, columns]
        dlogits *= scale
        (here,) = np.nonzero((t >= columns.start) & (t < columns.stop))
        dlogits[here, t[here] - columns.start] -= factor[here, 0]
        dx += dlogits @ w[columns]


def add_weights(grads, x, dlogits, first):
    """Add what some rows x contribute to dw and db; the `first` of them begin dw."""

    def run(tiles):
        for columns in tiles:
            dl = dlogits[:, columns]
            if "w" in grads and first:
                np.matmul(dl.T, x, out=grads["w"][columns])
            elif "w" in grads:
                grads["w"][columns] += dl.T @ x
            if "b" in grads:
                grads["b"][columns] += dl.sum(axis=0)

    if grads:
        share(run, list(vocabulary_tiles(*dlogits.shape)))


def normalize(x, w, b, terms=None):
    """Return lse (n, 1) of the logits of x, and the sum of `exponentials`."""
    # Nearly always the softmax needs no shift: only where exp has left the range of floats. The
    # sum is then infinite, or, with the BLAS kernels of some CPUs, a nan: both compare as bad.
    with np.errstate(over="ignore", invalid="ignore"):
        total = exponentials(x, w, b, terms)
    bad = ~((total > TINY) & (total < HUGE))
    if not bad.any():
        return np.log(total), total
    top = np.where(bad, highest_logits(x, w, b), 0)
    total = exponentials(x, w, b, terms, top)
    return np.log(total) + top, total


def exponentials(x, w, b, terms=None, top=None):
    """Return the sum over the vocabulary of exp(logits - top), (n, 1); its terms go to `terms`."""
    total, ones = np.zeros((len(x), 1), x.dtype), np.ones(len(w), x.dtype)
    for columns, logits in logit_tiles(x, w, b, terms):
        if top is not None:
            logits -= top
        np.exp(logits, out=logits)
        total[:, 0] += sum_rows(logits, ones[columns])
    return total


def sum_rows(x, ones):
    """Return the sum of each row of x (n, m): a product with ones, which is faster than sum."""
    return x @ ones


def vocabulary_tiles(n, V):
    """Yield slices of the vocabulary, whose logits of n rows are a tile."""
    width = min(V, max(1, LOGITS // n))
    for start in range(0, V, width):
        yield slice(start, min(start + width, V))


def logit_tiles(x, w, b, into=None):
    """Yield slices of the vocabulary with the logits (n, columns) of x, in `into` (n, V).

    Without it, all share one buffer. The rows of w are read once for all rows of x.
    """
    n, buffer = len(x), None
    for columns in vocabulary_tiles(n, len(w)):
        width = columns.stop - columns.start
        if into is None and buffer is None:
            buffer = empty((n * width,), x.dtype)
        logits = buffer[: n * width].reshape(n, -1) if into is None else into[:, columns]
        np.matmul(x, w[columns].T, out=logits)
        if b is not None:
            logits += b[columns]
        yield columns, logits


def highest_logits(x, w, b):
    """Return the largest logit of each row, (n, 1)."""
    top = np.full((len(x), 1), -math.inf, x.dtype)
    for _, logits in logit_tiles(x, w, b):
        np.maximum(top, logits.max(axis=1, keepdims=True), out=top)
    return top
