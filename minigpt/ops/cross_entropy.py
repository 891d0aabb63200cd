"""The LM head and its loss: softmax cross-entropy of logits = x @ w^T + b, in nats per token.

Head and loss are one op, because the logits of a large vocabulary are the largest array of a model
(50257 numbers a token in GPT-2) and are needed for a moment only: rows pass through both in chunks,
and the backward pass computes the logits again.
"""

from typing import Any, NamedTuple

from minigpt.backend import array_module, overridable

CHUNK = 2**22  # logits that exist at one time, 16 MB in float32


class CrossEntropyCache(NamedTuple):
    """What the backward pass needs.

    Attributes
    ----------
    x, targets, w, b : as cross_entropy_forward was given them
    lse : (N, 1)
        log sum exp of the logits, for all N rows of x.
    count : int
        What the sum of the losses was divided by.
    """

    x: Any
    targets: Any
    w: Any
    b: Any
    lse: Any
    count: int


def head(x, w, b=None):
    """Return logits (..., V) = x @ w^T + b."""
    logits = x @ w.T
    return logits if b is None else logits + b


@overridable
def cross_entropy_forward(x, targets, w, b=None, count=None):
    """The mean over all tokens of -log softmax(logits)[target]. With logits = x @ w^T + b:

        lse  = log sum_j exp(logits_j)
        loss = sum over tokens of (lse - logits_target) / count

    Parameters
    ----------
    x : (..., C) float
        The last hidden state of each token.
    targets : (...) int
        The next token of each, in 0 .. V - 1; -1 marks a token to ignore (padding).
    w : (V, C), dtype of x
        A row per token, as in the embedding, so that both can be one array (the tied head).
    b : (V,), optional
    count : int, optional
        What the sum is divided by; by default the number of targets that are not ignored. A shard
        of a batch passes the number in the whole batch.

    Returns
    -------
    loss : () float, dtype of x
        Nats per token. The loss of a uniform guess is ln V.
    cache : CrossEntropyCache
    """
    xp = array_module(x)
    V, C = w.shape
    x2, t = x.reshape(-1, C), targets.reshape(-1)
    if count is None:
        count = max(int((t >= 0).sum()), 1)
    lse = xp.empty((len(x2), 1), dtype=x.dtype)
    loss = xp.zeros((), dtype=x.dtype)
    for rows in row_chunks(len(x2), V):
        logits = head(x2[rows], w, b)  # (n, V)
        top = logits.max(axis=-1, keepdims=True)  # without it exp could overflow
        lse[rows] = top + xp.log(xp.exp(logits - top).sum(axis=-1, keepdims=True))
        right = logits[xp.arange(len(logits)), t[rows]]  # a target of -1 picks some logit: unused
        losses = xp.where(t[rows] >= 0, lse[rows, 0] - right, 0.0)  # (n,)
        loss = loss + losses.sum()
    return loss / count, CrossEntropyCache(x, targets, w, b, lse, count)


@overridable
def cross_entropy_backward(dloss, cache, frozen=False):
    """Gradients of x, w and b: first of the logits (`logits_gradient`), then as in a linear layer.

        dlogits = (softmax(logits) - onehot(target)) * dloss / count
        dx      = dlogits @ w
        dw      = dlogits^T @ x
        db      = sum of dlogits over the tokens

    count enters once, in dlogits; dx, dw and db inherit it. So shards that all divide by the count
    of the whole batch simply add up.

    Parameters
    ----------
    dloss : () float
    frozen : bool
        Whether w and b are constants: then dw and db are not made.

    Returns
    -------
    dx : (..., C)
    grads : {"w": dw (V, C)} and "b": db (V,) if there is a b; {} if they are frozen
    """
    x, _, w, b, _, _ = cache
    xp = array_module(x)
    V, C = w.shape
    x2 = x.reshape(-1, C)
    dx, grads = xp.empty_like(x2), {}
    if not frozen:
        grads = {name: xp.zeros_like(y) for name, y in (("w", w), ("b", b)) if y is not None}
    for rows in row_chunks(len(x2), V):
        dlogits = logits_gradient(dloss, cache, rows)
        dx[rows] = dlogits @ w
        if "w" in grads:
            grads["w"] += dlogits.T @ x2[rows]
        if "b" in grads:
            grads["b"] += dlogits.sum(axis=0)
    return dx.reshape(x.shape), grads


def logits_gradient(dloss, cache, rows=slice(None)):
    """Return dL/dlogits (n, V) of some rows of x, or of all: softmax minus one-hot.

        partial lse / partial logits_j           = exp(logits_j - lse) = softmax(logits)_j
        partial logits_target / partial logits_j = 1[j = target]

    and the loss of a token is lse - logits_target, divided by count. Ignored tokens get 0. Each row
    sums to 0: adding one number to all logits changes no probability.

    Parameters
    ----------
    dloss : () float
    cache : CrossEntropyCache
    rows : slice
        Of x (N, C), that is, with all axes but the last joined into one.
    """
    x, targets, w, b, lse, count = cache
    xp = array_module(x)
    x, t = x.reshape(-1, x.shape[-1])[rows], targets.reshape(-1)[rows]
    dlogits = xp.exp(head(x, w, b) - lse[rows])
    dlogits[xp.arange(len(dlogits)), t] -= 1
    dlogits *= (t >= 0)[:, None] * (dloss / count)
    return dlogits


@overridable
def cross_entropy_both(x, targets, w, b=None, count=None, dloss=1.0, frozen=False):
    """Both passes at once, as training wants them. Arguments as in the two.

    Overrides make the gradients of a chunk while its logits exist, and compute those only once.

    Returns
    -------
    loss : () float
    dx : (..., C)
    grads : {"w": dw (V, C)} and "b": db (V,) if there is a b; {} if they are frozen
    """
    loss, cache = cross_entropy_forward(x, targets, w, b, count)
    return loss, *cross_entropy_backward(dloss, cache, frozen)


def row_chunks(n, V, logits=None):
    """Yield slices of rows 0 .. n - 1, each of at most `logits` logits and at least one row.

    By default that is CHUNK.
    """
    rows = max(1, (logits or CHUNK) // V)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))
