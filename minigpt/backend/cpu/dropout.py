"""Dropout on the CPU: the random bits of one block of elements at a time."""

import math

import numpy as np

from minigpt.backend.cpu.attention_tiles import words_of
from minigpt.backend.cpu.blocking import row_blocks
from minigpt.backend.cpu.pool import empty
from minigpt.ops.dropout import LANES, threshold


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
    words = words_of(rng.key, np.arange(first + 1, stop + 1, dtype=np.uint64))
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
