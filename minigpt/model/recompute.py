"""Activation recomputation, `--recompute`: a block keeps its inputs, not what its ops cached.

Chen et al. 2016, arXiv:1604.06174, section 4: of a model of L blocks only their inputs are kept,
and the backward pass of each runs its forward pass again, a third of a step's work. Dropout comes
from a counter, so the second pass drops what the first one has dropped.
"""

from typing import Any, NamedTuple


class Again(NamedTuple):
    """What a block keeps in place of its cache, to make the cache anew: a forward pass and its
    arguments.
    """

    forward: Any
    args: tuple


def without_cache(forward):
    """Return the forward pass of a block that keeps its arguments in place of its cache."""

    def forward_alone(*args):
        *outputs, _ = forward(*args)
        return *outputs, Again(forward, args)

    return forward_alone


def whole_cache(cache):
    """Return the cache of a block; where it was not kept, from a second forward pass."""
    return cache.forward(*cache.args)[-1] if isinstance(cache, Again) else cache
