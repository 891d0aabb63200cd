"""Dropout: Srivastava et al. 2014, JMLR 15, in the inverted form that needs no change at test time.

The mask is a function of (seed, step, layer, place, position), not of a generator's state, so it
is the same on every backend and for any number of threads, and the backward pass makes it again
instead of keeping it. The bits are SplitMix64's: Steele, Lea & Flood 2014, "Fast splittable
pseudorandom number generators", OOPSLA, figure 16.
"""

import math
from typing import NamedTuple

from minigpt.backend import array_module, overridable

GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the counter's stride
LANES = 4  # 16-bit numbers in a word
WORD = 2**64 - 1


def mix(z):
    """SplitMix64's finalizer, for a Python int below 2^64 or an array of uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    if isinstance(z, int):
        z &= WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    if isinstance(z, int):
        z &= WORD
    return z ^ (z >> 31)


class Rng(NamedTuple):
    """A key of random bits, and the place of the first row of an array in the whole batch."""

    key: int
    row: int = 0

    @classmethod
    def of(cls, *ints):
        """Return the key that belongs to these integers, (seed, step) say."""
        return cls(0).fold(*ints)

    def fold(self, *ints):
        """Return a new key that depends on this one and on each of the integers in turn."""
        key = self.key
        for i in ints:
            key = mix((key + (i + 1) * GAMMA) & WORD)
        return self._replace(key=key)


def random_words(key, start, n, xp):
    """Return words start .. start + n - 1 of the stream of `key`: (n,) uint64 of random bits."""
    counter = xp.arange(start + 1, start + n + 1, dtype=xp.uint64)
    return mix(counter * GAMMA + key)


def threshold(p):
    """Return p in units of 2^-16, below 1, and 1 / (1 - p) for the p so rounded."""
    t = min(round(p * 65536), 65535)
    return t, 65536 / (65536 - t)


def keep_mask(shape, p, rng, xp):
    """Return which elements stay, (shape) bool: 16 random bits each, held against p.

    Rows of axis 0 stand at rng.row of the whole batch: a shard gets its part of the whole mask.
    """
    n = math.prod(shape)
    start = rng.row * math.prod(shape[1:])
    first = start // LANES
    words = random_words(rng.key, first, (start + n + LANES - 1) // LANES - first, xp)
    bits = words.view(xp.uint16)[start % LANES :][:n]  # little-endian: low bits first
    return (bits >= threshold(p)[0]).reshape(shape)


@overridable
def dropout_forward(x, p, rng):
    """y = x * mask / (1 - p): each element is 0 with probability p, and the mean stays.

    Parameters
    ----------
    x : (B, ...) float
    p : float, 0 <= p < 1, rounded to a multiple of 2^-16
    rng : Rng or None
        None is no dropout: y is x.

    Returns
    -------
    y : as x
    cache : (p, rng)
    """
    if rng is None or p == 0:
        return x, (p, None)
    mask = keep_mask(x.shape, p, rng, array_module(x))
    return x * mask.astype(x.dtype) * threshold(p)[1], (p, rng)


@overridable
def dropout_backward(dy, cache):
    """dx = dy * mask / (1 - p), with the mask of the forward pass, made again."""
    return dropout_forward(dy, *cache)[0]
