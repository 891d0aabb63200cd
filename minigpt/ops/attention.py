"""Scaled dot-product attention: Vaswani et al. 2017, arXiv:1706.03762, eq. 1, for many heads.

Self-attention under the tril mask (causal=True) and cross attention (queries from one sequence,
keys and values from another, Tq != Tk) are one op: they differ only in what may be seen.
"""

import math
from typing import Any, NamedTuple

from minigpt.backend import array_module, overridable
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.softmax import softmax_backward, softmax_forward


class AttentionCache(NamedTuple):
    """What attention's backward pass needs.

    The definition uses q, k, v, w, dropout and rng. Overrides compute w again, for which they need
    the masks, and have a use for y. Their own cache may hold something smaller than w, from which
    it computes `cache.w` when asked.

    Attributes
    ----------
    q : (B, H, Tq, D)
    k, v : (B, H, Tk, D)
    y : (B, H, Tq, D)
    w : (B, H, Tq, Tk)
        The weights, before dropout.
    causal : bool
    key_mask : (B, Tk) bool or None
    dropout : float
    rng : Rng or None
    """

    q: Any
    k: Any
    v: Any
    y: Any
    w: Any
    causal: bool
    key_mask: Any
    dropout: float
    rng: Any


@overridable
def split_heads(x, n, n_head):
    """(B, T, n C) -> n views (B, H, T, D), one after the other in the last axis."""
    B, T, C = x.shape[0], x.shape[1], x.shape[2] // n
    if n == 1:  # the same, without a look along the axis of n
        return (x.reshape(B, T, n_head, C // n_head).transpose(0, 2, 1, 3),)
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

    If the entries of q and k are independent with variance 1, a sum of D of their products has
    variance D: the scale brings it back to 1. The mask is exact: a finite number in place of -inf,
    such as GPT-2's -1e10, is outweighed by scores that are large enough; -inf never is.
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


@overridable
def attention_forward(q, k, v, causal=False, key_mask=None, dropout=0.0, rng=None):
    """Every query takes the mean of the values, weighted by how well their keys fit it.

        s = q @ k^T / sqrt(D)       -inf where q may not see k
        w = softmax(s)              over the keys; 0 where q may not see k
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
        The probability that a weight is set to 0.
    rng : Rng, optional
        None is no dropout.

    Returns
    -------
    y : (B, H, Tq, D), dtype of q
    cache : AttentionCache
    """
    w, _ = softmax_forward(scores(q, k, causal, key_mask))
    y = dropout_forward(w, dropout, rng)[0] @ v
    return y, AttentionCache(q, k, v, y, w, causal, key_mask, dropout, rng)


@overridable
def attention_backward(dy, cache):
    """Gradients of q, k and v: the forward pass read upwards. For a product y = w @ v, per head,

        dw = dy @ v^T and dv = w^T @ dy

    as in a linear layer. It is applied twice, to dropout(w) @ v and to q @ k^T:

        dv = dropout(w)^T @ dy
        dw = dropout(dy @ v^T)        with the mask of the forward pass
        ds = softmax_backward(dw)     w * (dw - sum_j w_j dw_j)
        dq = ds @ k / sqrt(D)
        dk = ds^T @ q / sqrt(D)

    ds is 0 wherever w is 0, hence no gradient comes from the future. With the mask m, 0 or
    1 / (1 - p), y = sum_j w_j m_j v_j and dw_j = m_j dy . v_j, so that sum_j w_j dw_j = dy . y:
    overrides need no pass over the keys for that sum.

    Returns
    -------
    dq : (B, H, Tq, D)
    dk, dv : (B, H, Tk, D)
    """
    q, k, v, w = cache.q, cache.k, cache.v, cache.w
    dropped, dropout_cache = dropout_forward(w, cache.dropout, cache.rng)
    dv = dropped.swapaxes(-1, -2) @ dy
    dw = dropout_backward(dy @ v.swapaxes(-1, -2), dropout_cache)
    ds = softmax_backward(dw, (w,)) * (1 / math.sqrt(q.shape[-1]))
    return ds @ k, ds.swapaxes(-1, -2) @ q, dv
