"""Dropout: Srivastava et al. 2014, JMLR 15, in the inverted form (section 10), which scales in
training and not at test time.

The mask is a function of (seed, step, batch of the step, layer, site in the layer, position), not
of a generator's state. So it is the same on every backend and for any number of threads, and the
backward pass recomputes it instead of keeping it. Word n of a stream is mix(key + (n + 1) GAMMA),
computed alone, without words 0 .. n - 1: any shard, thread or pass can make its part.

The bits are those of SplitMix64 as in Java 8 and Vigna's splitmix64.c, whose `mix` is
mix64variant13 (Stafford) in Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators", OOPSLA, figure 16.
"""

import functools
import math
from typing import NamedTuple

from minigpt.backend import array_module, overridable

GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the counter's stride
LANES = 4  # 16-bit numbers in a 64-bit word
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
    """The key of a stream of random bits, and the first row of an array within the whole batch.

    A key is made by folding in integers, one level at a time: seed, step, batch of the step, layer,
    site in the layer.
    """

    key: int
    row: int = 0

    @classmethod
    def of(cls, *ints):
        """Return the key of these integers, for example (seed, step)."""
        return cls(0).fold(*ints)

    def fold(self, *ints):
        """Return a new key that depends on this one and on each of the integers in turn."""
        key = self.key
        for i in ints:
            key = mix((key + (i + 1) * GAMMA) & WORD)
        return Rng(key, self.row)


def random_words(key, start, n, xp):
    """Return words start .. start + n - 1 of the stream of `key`: (n,) uint64 of random bits."""
    counter = xp.arange(start + 1, start + n + 1, dtype=xp.uint64)
    return mix(counter * GAMMA + key)


@functools.lru_cache(maxsize=64)
def threshold(p):
    """Return t and 1 / (1 - p), with p rounded to t / 65536 < 1."""
    t = min(round(p * 65536), 65535)
    return t, 65536 / (65536 - t)


def keep_mask(shape, p, rng, xp):
    """Return which elements stay, (shape) bool: those whose 16 random bits are t or more.

    So P(drop) = t / 65536, with t of `threshold`. Row 0 of axis 0 is row rng.row of the whole
    batch: a shard gets its part of the whole mask.
    """
    n = math.prod(shape)
    start = rng.row * math.prod(shape[1:])
    first = start // LANES
    words = random_words(rng.key, first, (start + n + LANES - 1) // LANES - first, xp)
    bits = words.view(xp.uint16)[start % LANES :][:n]  # little-endian: low bits first
    return (bits >= threshold(p)[0]).reshape(shape)


@overridable
def dropout_forward(x, p, rng):
    """y = x * mask / (1 - p): each element is 0 with probability p.

    The mean stays, since E[mask] = 1 - p.

    Parameters
    ----------
    x : (B, ...) float
    p : float
        0 <= p < 1, rounded to a multiple of 2^-16.
    rng : Rng or None
        None is no dropout: y is x itself.

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
    """dx = dy * mask / (1 - p): given the mask, y is linear in x, element by element.

    The mask is that of the forward pass, recomputed.

    Returns
    -------
    dx : as dy
    """
    return dropout_forward(dy, *cache)[0]
