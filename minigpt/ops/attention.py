"""Scaled dot-product attention: Vaswani et al. 2017, arXiv:1706.03762, eq. 1, for many heads.

Self-attention under the tril mask (causal=True) and cross attention (queries from one sequence,
keys and values from another, Tq != Tk) are one op: they differ only in what may be seen.
"""

import math

from minigpt.backend import array_module, overridable
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.softmax import softmax_backward, softmax_forward


def split_heads(x, n, n_head):
    """(B, T, n C) -> n views (B, H, T, D), one after the other in the last axis."""
    B, T, C = x.shape[0], x.shape[1], x.shape[2] // n
    return tuple(x.reshape(B, T, n, n_head, C // n_head).transpose(2, 0, 3, 1, 4))


@overridable
def merge_heads(*xs):
    """n arrays (B, H, T, D) -> (B, T, n C): the reverse, a view where one array allows it."""
    B, H, T, D = xs[0].shape
    if len(xs) == 1:
        return xs[0].transpose(0, 2, 1, 3).reshape(B, T, H * D)
    y = array_module(xs[0]).empty((B, T, len(xs), H, D), dtype=xs[0].dtype)
    for i, x in enumerate(xs):
        y[:, :, i] = x.transpose(0, 2, 1, 3)
    return y.reshape(B, T, len(xs) * H * D)


def scores(q, k, causal, key_mask):
    """Return s = q @ k^T / sqrt(D), (B, H, Tq, Tk), with -inf wherever q may not see k.

    The -inf is exact: exp makes it a 0 that no later score, however large, can outweigh.
    """
    xp = array_module(q)
    s = (q @ k.swapaxes(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
    Tq, Tk = s.shape[-2:]
    if causal:
        seen = xp.tril(xp.ones((Tq, Tk), dtype=bool), Tk - Tq)
        s = xp.where(seen, s, -math.inf)
    if key_mask is not None:
        s = xp.where(key_mask[:, None, None, :], s, -math.inf)
    return s


def attention_weights(cache):
    """Return the weights w (B, H, Tq, Tk) of a forward pass, before dropout."""
    q, k, _, _, w, _, causal, key_mask, _, _ = cache
    return softmax_forward(scores(q, k, causal, key_mask))[0] if w is None else w


@overridable
def attention_forward(q, k, v, causal=False, key_mask=None, dropout=0.0, rng=None):
    """Every query gathers the values, weighted by how well their keys fit it.

        s = q @ k^T / sqrt(D)       the scale keeps the variance of s near 1
        w = softmax(s)              over the keys that may be seen
        y = dropout(w) @ v

    Parameters
    ----------
    q : (B, H, Tq, D) float
    k, v : (B, H, Tk, D), dtype of q
    causal : bool
        The tril mask: query i sees keys 0 .. i + Tk - Tq. With Tq < Tk the queries are the last
        ones, as in decoding with a KV cache.
    key_mask : (B, Tk) bool, optional
        True where a key may be seen; False is padding. A query that may see nothing yields 0.
    dropout : float
        Share of the weights w set to 0, with `rng`; rng=None is none.

    Returns
    -------
    y : (B, H, Tq, D), dtype of q
    cache : (q, k, v, y, w, lse, causal, key_mask, dropout, rng)
        w (B, H, Tq, Tk), or None where the backward pass makes it again; a faster namesake then
        keeps lse (B, H, Tq, 1) = log sum exp s, from which w = exp(s - lse).
    """
    s = scores(q, k, causal, key_mask)
    w, _ = softmax_forward(s)
    y = dropout_forward(w, dropout, rng)[0] @ v
    return y, (q, k, v, y, w, None, causal, key_mask, dropout, rng)


@overridable
def attention_backward(dy, cache):
    """Gradients of q, k and v: the forward pass read upwards.

        dv = dropout(w)^T @ dy
        dw = dropout(dy @ v^T)        with the mask of the forward pass
        ds = softmax_backward(dw)     0 wherever w is 0, hence nothing flows from the future
        dq = ds @ k / sqrt(D)
        dk = ds^T @ q / sqrt(D)

    Returns
    -------
    dq : (B, H, Tq, D)
    dk, dv : (B, H, Tk, D)
    """
    q, k, v, *_, dropout, rng = cache
    w = attention_weights(cache)
    dropped, dropout_cache = dropout_forward(w, dropout, rng)
    dv = dropped.swapaxes(-1, -2) @ dy
    dw = dropout_backward(dy @ v.swapaxes(-1, -2), dropout_cache)
    ds = softmax_backward(dw, (w,)) * (1 / math.sqrt(q.shape[-1]))
    return ds @ k, ds.swapaxes(-1, -2) @ q, dv
