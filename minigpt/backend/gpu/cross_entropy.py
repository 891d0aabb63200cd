"""The LM head and its loss on a GPU: three matrix products, and one kernel between them."""

import functools

import cupy
import numpy as np

from minigpt.backend.gpu.launch import each, empty, launch, supported, threads
from minigpt.backend.gpu.product import product
from minigpt.backend.places import place_of
from minigpt.ops import cross_entropy

ALIGNED = 64  # elements: with rows of such lengths, products run at the speed of the tensor cores
SHARE = 1 / 16  # of the GPU's memory, for logits at one time: all of a step's, as a rule


@functools.cache
def memory_of(device):
    """Return the bytes of memory that CuPy may use on the GPU with that number, the current one."""
    total, limit = cupy.cuda.runtime.memGetInfo()[1], cupy.get_default_memory_pool().get_limit()
    return min(total, limit or total)


def most_logits(size):
    """Return how many logits of that many bytes may exist at one time."""
    return int(SHARE * memory_of(cupy.cuda.runtime.getDevice()) / size)


def cross_entropy_forward(x, targets, w, b=None, count=None):
    """As the op; the loss of 16-bit arrays, and lse, are float32."""
    if not supported(x, w, b):
        return NotImplemented
    loss, _, cache = compute(x, targets, w, b, count)
    return loss, cache


def cross_entropy_backward(dloss, cache, frozen=False):
    """As the op; the logits and their lse are computed again, for both come in one pass."""
    x, targets, w, b, _, count = cache
    if not supported(x, w, b):
        return NotImplemented
    return compute(x, targets, w, b, count, dloss, frozen)[1]


def cross_entropy_both(x, targets, w, b=None, count=None, dloss=1.0, frozen=False):
    """As the op; the logits of some rows are computed once, for loss and gradients.

    dloss may be a number, or an array () float32 on the GPU.
    """
    if not supported(x, w, b):
        return NotImplemented
    loss, gradients, _ = compute(x, targets, w, b, count, dloss, frozen)
    return loss, *gradients


def compute(x, targets, w, b, count, dloss=None, frozen=False):
    """Return the loss, (dx, grads) or, without `dloss`, None, and the cache."""
    V, C = w.shape
    length = ALIGNED * -(-V // ALIGNED)
    x2, t = x.reshape(-1, C), cupy.ascontiguousarray(targets.reshape(-1), np.int32)
    if count is None:
        count = max(int((t >= 0).sum()), 1)
    lse, losses = empty((len(x2), 1), np.float32), empty(len(x2), np.float32)
    dx, sums = None if dloss is None else empty(x2.shape, x2.dtype), {}
    if dloss is not None and not frozen:
        sums = {name: Total(p) for name, p in (("w", w), ("b", b)) if p is not None}
    for rows in cross_entropy.row_chunks(len(x2), length, most_logits(x.itemsize)):
        logits = empty((rows.stop - rows.start, length), x.dtype)[:, :V]
        product(x2[rows], w, logits, flip_b=True)
        softmax(logits, length, b, t[rows], lse[rows], losses[rows], count, dloss)
        if dloss is not None:
            product(logits, w, dx[rows])
        if "w" in sums:
            sums["w"].plus(logits, x2[rows])
        if "b" in sums:
            sums["b"].plus(cupy.ones((len(logits), 1), b.dtype), logits)
        del logits  # so that the next rows use its memory
    grads = {name: total.gradient() for name, total in sums.items()}
    gradients = None if dloss is None else (dx.reshape(x.shape), grads)
    cache = cross_entropy.CrossEntropyCache(x, targets, w, b, lse, count)
    return losses.sum(), gradients, cache


def softmax(logits, length, b, targets, lse, losses, count, dloss):
    """Write lse and the loss of each row; with dloss, replace the logits by their gradient.

    A row of logits begins `length` elements after the one before.
    """
    n, V = logits.shape
    at, number = (dloss, 0.0) if isinstance(dloss, cupy.ndarray) else (None, float(dloss or 0))
    options = float(count), int(dloss is not None), at, number
    launch(
        "cross_entropy",
        logits.dtype,
        (n,),
        threads(-(-V // each(logits.dtype))),
        (logits, b, targets, lse, losses, V, length, *options),
    )


class Total:
    """The gradient of a parameter, as a sum of products in float32: in its place, if it has one."""

    def __init__(self, parameter):
        self.dtype, (self.place, self.add) = parameter.dtype, place_of(parameter)
        new = self.place is None
        self.sum = empty(parameter.shape, np.float32) if new else self.place

    def plus(self, a, b):
        """Add a^T @ b, which for a vector has one row."""
        product(a, b, self.sum, self.add, flip_a=True)
        self.add = True

    def gradient(self):
        """Return the sum; one that has no place is of the parameter's dtype."""
        return self.sum.astype(self.dtype, copy=False) if self.place is None else self.place
