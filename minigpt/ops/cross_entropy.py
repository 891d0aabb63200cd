"""The LM head and its loss: logits = x @ w^T + b, then softmax cross-entropy, in nats per token.

One op, because the logits of a large vocabulary are the largest array of a model (50257 numbers a
token in GPT-2) and are needed for a moment only: rows pass through head, loss and gradient in
chunks, and the backward pass makes the logits again. A caller who knows what the backward pass will
get may say so to the forward pass: a faster namesake then makes the gradients while the logits of a
chunk exist.
"""

from minigpt.backend import array_module, overridable

CHUNK = 2**22  # logits that exist at one time, 16 MB in float32


def row_chunks(n, V, logits=None):
    """Yield slices of rows 0 .. n - 1, each of at most so many logits (and at least one row).

    With `logits` left out it is CHUNK of them.
    """
    rows = max(1, (logits or CHUNK) // V)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def head(x, w, b=None):
    """Return logits (..., V) = x @ w^T + b."""
    logits = x @ w.T
    return logits if b is None else logits + b


@overridable
def cross_entropy_forward(x, targets, w, b=None, count=None, dloss=None):
    """loss = sum over tokens of (log sum_j exp(logits_j) - logits_target) / count.

    Parameters
    ----------
    x : (..., C) float
        What the last layer says of each token.
    targets : (...) int
        The next token of each, in 0 .. V - 1; -1 marks a token to ignore (padding).
    w : (V, C), dtype of x
        A row per token, as in the embedding, so that both can be one array (the tied head).
    b : (V,), optional
    count : int, optional
        What the sum is divided by; the number of targets that are not ignored. A shard of a
        batch passes the number in the whole batch.
    dloss : () float, optional
        What the backward pass will be called with, where it is known.

    Returns
    -------
    loss : () float, dtype of x
        Nats per token. The loss of a uniform guess is ln V.
    cache : (x, targets, w, b, lse, count, ready)
        lse (N, 1) = log sum exp of the logits, for all N rows of x; ready is (dx, grads) of dloss
        where a faster namesake has made them, else None.
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
        top = logits.max(axis=-1, keepdims=True)
        lse[rows] = top + xp.log(xp.exp(logits - top).sum(axis=-1, keepdims=True))
        right = logits[xp.arange(len(logits)), t[rows]]  # a target of -1 picks some logit: unused
        loss = loss + xp.where(t[rows] >= 0, lse[rows, 0] - right, 0.0).sum()
    return loss / count, (x, targets, w, b, lse, count, None)


@overridable
def cross_entropy_backward(dloss, cache):
    """Gradients of x, w and b. Of the logits of a token that counts:

        dlogits = (softmax(logits) - onehot(target)) * dloss / count

    and then those of the linear layer. Each row of dlogits sums to 0.

    Parameters
    ----------
    dloss : () float
        That which the forward pass was told, if it was.

    Returns
    -------
    dx : (..., C)
    grads : {"w": dw (V, C)} and "b": db (V,) if there is a b
    """
    x, targets, w, b, lse, count, ready = cache
    if ready is not None:
        return ready
    xp = array_module(x)
    V, C = w.shape
    x2, t = x.reshape(-1, C), targets.reshape(-1)
    dx, dw = xp.empty_like(x2), xp.zeros_like(w)
    db = None if b is None else xp.zeros_like(b)
    for rows in row_chunks(len(x2), V):
        dlogits = xp.exp(head(x2[rows], w, b) - lse[rows])
        dlogits[xp.arange(len(dlogits)), t[rows]] -= 1
        dlogits *= (t[rows] >= 0)[:, None] * (dloss / count)  # ignored rows: 0
        dx[rows] = dlogits @ w
        dw += dlogits.T @ x2[rows]
        if b is not None:
            db += dlogits.sum(axis=0)
    grads = {"w": dw} if b is None else {"w": dw, "b": db}
    return dx.reshape(x.shape), grads
