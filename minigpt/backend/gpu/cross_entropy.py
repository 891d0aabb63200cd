"""The LM head and its loss on a GPU: three matrix products, and one kernel between them."""

import cupy
import numpy as np

from minigpt.backend.gpu.launch import launch, supported
from minigpt.backend.gpu.product import product
from minigpt.ops import cross_entropy

FLOAT32 = np.dtype(np.float32)
LOGITS = 2**27  # logits that exist at one time: 512 MB in float32


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
    x2, t = x.reshape(-1, C), cupy.ascontiguousarray(targets.reshape(-1), np.int32)
    if count is None:
        count = max(int((t >= 0).sum()), 1)
    lse, losses = cupy.empty((len(x2), 1), np.float32), cupy.empty(len(x2), np.float32)
    dx, sums = None if dloss is None else cupy.empty_like(x2), {}
    for rows in cross_entropy.row_chunks(len(x2), V, LOGITS):
        logits = product(x2[rows], w.T)
        softmax(logits, b, t[rows], lse[rows], losses[rows], count, dloss)
        if dloss is not None:
            product(logits, w, out=dx[rows])
            if not frozen:
                plus(sums, "w", logits.T, x2[rows])
            if not frozen and b is not None:
                plus(sums, "b", cupy.ones((1, len(logits)), b.dtype), logits)
    grads = {name: total.astype(w.dtype, copy=False) for name, total in sums.items()}
    if "b" in grads:
        grads["b"] = grads["b"][0]
    gradients = None if dloss is None else (dx.reshape(x.shape), grads)
    cache = cross_entropy.CrossEntropyCache(x, targets, w, b, lse, count)
    return losses.sum(), gradients, cache


def softmax(logits, b, targets, lse, losses, count, dloss):
    """Write lse and the loss of each row; with dloss, replace the logits by their gradient."""
    n, V = logits.shape
    at, number = (dloss, 0.0) if isinstance(dloss, cupy.ndarray) else (None, float(dloss or 0))
    launch(
        "cross_entropy",
        logits.dtype,
        (n,),
        (min(1024, 64 * -(-V // 256)),),  # whole warps, be they 32 or 64: 4 logits per thread
        (logits, b, targets, lse, losses, V, float(count), int(dloss is not None), at, number),
    )


def plus(sums, name, a, b):
    """Add a @ b to sums[name] (float32), which may not exist yet."""
    sums[name] = product(a, b, out=sums.get(name), add=name in sums, dtype=FLOAT32)
