"""Rotary positions: Su et al. 2021 (RoFormer), arXiv:2104.09864, eq. 34.

Queries and keys are rotated by angles that grow with their position. With R_m the rotation of
position m, R_m^T R_n = R_(n-m), and so

    (R_m q) . (R_n k) = q . (R_m^T R_n k) = q . (R_(n-m) k):

a score depends on the contents of query and key and on their distance, and no position is learned.

Departures: BASE is 1024 in place of 10000 (Vaswani et al.'s), and the speeds end at exactly
1 / BASE.
"""

import functools

from minigpt.backend import array_module, overridable
from minigpt.ops.attention import merge_heads, split_heads

BASE = 1024.0  # the slowest pair rotates by 1 / BASE per token


@overridable
def rotary_forward(x, start=0):
    """Rotate every pair of neighbouring channels. At position t, for pair j of a head:

        y_2j    = x_2j cos(t theta_j) - x_2j+1 sin(t theta_j)
        y_2j+1  = x_2j sin(t theta_j) + x_2j+1 cos(t theta_j)
        theta_j = BASE^(-j / (D/2 - 1))        1 where there is but one pair

    As a complex number, x_2j + i x_2j+1 is multiplied by exp(i t theta_j).

    Parameters
    ----------
    x : (B, H, T, D) float
        Queries or keys; D is even.
    start : int
        Position of the first token: the number of tokens in a KV cache.

    Returns
    -------
    y : as x
    cache : (cos, sin)
        Each (T, D / 2).
    """
    cos, sin = angles(x, start, *x.shape[-2:])
    return rotate(x, cos, sin), (cos, sin)


@overridable
def rotary_backward(dy, cache):
    """Return dx. The Jacobian is a rotation, and its transpose is its inverse: the same angle back.

    Returns
    -------
    dx : (B, H, T, D)
    """
    cos, sin = cache
    return rotate(dy, cos, -sin)


@overridable
def rotary_qkv_forward(qkv, n_head, start=0):
    """Rotate the queries and keys in the output of their common linear layer; values stay.

    An op of its own, since overrides need no copy for splitting and merging.

    Parameters
    ----------
    qkv : (B, T, 3 C) float
        Queries, keys and values, each H heads of D = C / H channels.
    n_head : int
    start : int
        As in rotary_forward.

    Returns
    -------
    y : as qkv
    cache : (n_head, cos, sin)
    """
    q, k, v = split_heads(qkv, 3, n_head)
    q, cache = rotary_forward(q, start)
    k, _ = rotary_forward(k, start)
    return merge_heads(q, k, v), (n_head, *cache)


@overridable
def rotary_qkv_backward(dy, cache):
    """Return the gradient of qkv (B, T, 3 C)."""
    n_head, *cache = cache
    dq, dk, dv = split_heads(dy, 3, n_head)
    return merge_heads(rotary_backward(dq, cache), rotary_backward(dk, cache), dv)


def rotate(x, cos, sin):
    """Return x (B, H, T, D) with its pairs of channels rotated by angles, given by cos and sin."""
    y, even, odd = array_module(x).empty_like(x), x[..., ::2], x[..., 1::2]
    y[..., ::2] = even * cos - odd * sin
    y[..., 1::2] = even * sin + odd * cos
    return y


def angles(x, start, T, D):
    """Return cos and sin, each (T, D / 2), of t theta_j for the positions start .. start + T - 1.

    They are where the array x is, and have its dtype.
    """
    known = 1 << max(start + T - 1, 0).bit_length()
    return tuple(a[start : start + T] for a in table(array_module(x), known, D, x.dtype))


@functools.lru_cache(8)
def table(xp, n, D, dtype):
    """Return cos and sin for positions 0 .. n - 1: computed once, in float64."""
    theta = BASE ** -xp.linspace(0, 1, D // 2)
    angle = xp.arange(n)[:, None] * theta
    return tuple(f(angle).astype(dtype) for f in (xp.cos, xp.sin))
