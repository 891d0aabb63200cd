"""Rotary positions: Su et al. 2021 (RoFormer), arXiv:2104.09864, eq. 34.

Queries and keys are turned by angles that grow with their position. What a query makes of a key
then depends on their contents and on the distance between them, and no position is learned.
"""

import functools

from minigpt.backend import array_module, overridable

BASE = 1024.0  # the slowest pair turns by 1 / BASE a token; RoFormer's 10000 is for long contexts


def angles(x, start, T, D):
    """Return cos and sin, each (T, D / 2), of position * BASE^(-i / (D/2 - 1)) for pair i.

    Parameters
    ----------
    x : array
        They are where it is, of its precision.
    start, T : int
        The positions start .. start + T - 1.
    """
    known = 1 << max(start + T - 1, 0).bit_length()
    return tuple(a[start : start + T] for a in table(array_module(x), known, D, x.real.dtype))


@functools.lru_cache(8)
def table(xp, n, D, dtype):
    """Return cos and sin for positions 0 .. n - 1: made once, in float64."""
    speed = BASE ** -xp.linspace(0, 1, D // 2)
    angle = xp.arange(n)[:, None] * speed
    return tuple(f(angle).astype(dtype) for f in (xp.cos, xp.sin))


def turned(x, n_head, cos, sin):
    """Return x (B, T, 3 C) with the pairs of its first 2 C channels turned."""
    B, T, width = x.shape
    y = x.copy()
    pairs = y.reshape(B, T, 3, n_head, width // (6 * n_head), 2)[:, :, :2]
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, None], sin[:, None, None]
    a[...], b[...] = a * cos - b * sin, a * sin + b * cos
    return y


@overridable
def rotary_forward(qkv, n_head, start=0):
    """Turn queries and keys; values stay. With t the position and i the number of a pair:

        y_2i     = x_2i cos(t theta_i) - x_2i+1 sin(t theta_i)
        y_2i+1   = x_2i sin(t theta_i) + x_2i+1 cos(t theta_i)
        theta_i  = BASE^(-i / (D/2 - 1))

    As complex numbers x_2i + i x_2i+1 the pairs are multiplied by exp(i t theta_i).

    Parameters
    ----------
    qkv : (B, T, 3 C) float
        Queries, keys and values, each H heads of D = C / H channels; D is even.
    n_head : int
    start : int
        Position of the first token: the number of tokens in a KV cache.

    Returns
    -------
    y : as qkv
    cache : (n_head, cos, sin)
        cos and sin are (T, D / 2).
    """
    _, T, width = qkv.shape
    cos, sin = angles(qkv, start, T, width // (3 * n_head))
    return turned(qkv, n_head, cos, sin), (n_head, cos, sin)


@overridable
def rotary_backward(dy, cache):
    """Return the gradient of qkv: a rotation's transpose is its inverse, the same angle back."""
    n_head, cos, sin = cache
    return turned(dy, n_head, cos, -sin)
