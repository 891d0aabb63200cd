"""Dropout on the CPU: the random bits of one block of elements at a time."""

import functools
import math

import numpy as np

from minigpt.backend.cpu.blocking import row_blocks
from minigpt.backend.cpu.pool import empty
from minigpt.ops.dropout import GAMMA, LANES, threshold


def random_words(key, first, n):
    """Return words first .. first + n - 1 of the stream of `key`, as ops.dropout: (..., n) uint64.

    Word w is mix(key + (w + 1) GAMMA). The product is a sum of two that are small or kept.

    Parameters
    ----------
    key : int
    first : (..., 1) uint64
    n : int
    """
    z = empty((*first.shape[:-1], n), np.uint64)
    return mix(np.add(first * GAMMA + key, multiples(1 << (n - 1).bit_length())[:n], out=z))


@functools.lru_cache(32)
def multiples(n):
    """Return (1 .. n) GAMMA modulo 2^64: cached, hence read-only."""
    x = np.arange(1, n + 1, dtype=np.uint64) * GAMMA
    x.flags.writeable = False
    return x


def mix(z):
    """Return ops.dropout's mix of an array of uint64, written over it."""
    shifted = np.right_shift(z, 30, out=empty(z.shape, z.dtype))
    z ^= shifted
    z *= 0xBF58476D1CE4E5B9
    z ^= np.right_shift(z, 27, out=shifted)
    z *= 0x94D049BB133111EB
    z ^= np.right_shift(z, 31, out=shifted)
    return z


def drop(x, place, p, rng, out):
    """Write x * mask / (1 - p) into out.

    Parameters
    ----------
    x : array
        A block of elements.
    place : int
        The number of its first element in the whole batch.
    p, rng
        As in ops.dropout.dropout_forward.
    out : as x
        May be x itself.
    """
    limit, scale = threshold(p)
    first, stop = place // LANES, -(-(place + x.size) // LANES)
    words = random_words(rng.key, np.array([first], np.uint64), stop - first)
    bits = words.view(np.uint16)[place - first * LANES :][: x.size]
    np.multiply(x, (bits >= limit).reshape(x.shape), out=out)
    out *= scale


def first_place(x, rng):
    """Return the number of x's first element in the whole batch, counted as in ops.dropout."""
    return 0 if rng is None else rng.row * math.prod(x.shape[1:])


def dropout_forward(x, p, rng):
    """As the op; dropout_backward, being dropout_forward of dy, runs it too."""
    if rng is None or p == 0:
        return x, (p, None)
    y = empty(x.shape, x.dtype)
    place = first_place(x, rng)
    for start, xr, yr in row_blocks(x.reshape(-1), y.reshape(-1)):
        drop(xr, place + start, p, rng, out=yr)
    return y, (p, rng)
