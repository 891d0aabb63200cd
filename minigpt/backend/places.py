"""Where the gradients of a step belong, so that an override may leave them there at once.

A step wants its gradients in one buffer, in float32. Those that the ops return are copied there, or
added for a further batch. For a matrix that is a pass over memory which the product x^T dy can do
by itself: the overrides of linear layers and of the head ask here for the place of a weight's
gradient, and return that very array. `sum_gradients` in train/threads.py passes it by.

On a CPU several threads each have a shard of the batch, and the gradient is the sum of their
products. There an override leaves x and dy in place of x^T dy, where they take less memory, and
`sum_gradients` makes one product of those of all shards: see `Later`.
"""

import contextlib
import threading
from typing import Any, NamedTuple

from minigpt.backend import array_module


class Later:
    """What the shards of a batch leave undone until all of their passes have ended.

    Parameters
    ----------
    rows : list of int
        The number of rows of the batch in each shard.

    Attributes
    ----------
    factors : list of {id(place): (x, dy)}
        Of each shard: x (N, C_in) and dy (N, C_out). The gradient in that place is the sum over the
        shards of x^T dy.
    changes : list of lists of callables
        Of each shard: what is to be called once the products are there.
    """

    def __init__(self, rows):
        self.rows = rows
        self.factors = [{} for _ in rows]
        self.changes = [[] for _ in rows]


class Open(NamedTuple):
    """What a thread knows within `gradients_into`; see there."""

    places: dict
    add: bool
    filled: list
    later: Any
    shard: int


_now = threading.local()  # .open: Open within `gradients_into`, else None


def address(w):
    """Return where an array lies in memory."""
    return w.data.ptr if array_module(w).__name__ == "cupy" else w.__array_interface__["data"][0]


def gradient_places(weights, gradients):
    """Return what `gradients_into` takes, of two lists of arrays.

    Parameters
    ----------
    weights : list of arrays
        As the passes see them, perhaps in 16 bit.
    gradients : list of arrays
        Where the gradient of each belongs.
    """
    return {address(w): g for w, g in zip(weights, gradients, strict=True)}


@contextlib.contextmanager
def gradients_into(places, add, later=None, shard=0):
    """Let overrides leave gradients in their places while this context lasts, in this thread.

    Each weight's gradient is made once in it: all of its batch, or of a shard.

    Parameters
    ----------
    places : as from gradient_places
    add : bool
        Whether they are added to what is there.
    later : Later, optional
        Of a batch of several shards: what nobody can make alone.
    shard : int
        The number of this one among them.

    Yields
    ------
    filled : list of arrays
        The places whose gradients have been left there so far, or the factors for them.
    """
    filled = []
    _now.open = Open(places, add, filled, later, shard)
    try:
        yield filled
    finally:
        _now.open = None


def _find(now, w):
    """Return the place of w's gradient by what is open in this thread, or None."""
    place = now.places.get(address(w))
    return None if place is None or place.shape != w.shape else place


def place_of(w, adds=True):
    """Return (where the gradient of w belongs, whether to add it); (None, False) is nowhere.

    Who asks leaves it there. `adds` is whether it can add to what is there: if not, it has no place
    for a further batch.
    """
    now = getattr(_now, "open", None)
    if now is None or now.later is not None or now.add > adds:
        return None, False
    place = _find(now, w)
    if place is None:
        return None, False
    now.filled.append(place)
    return place, now.add


def is_later(w, numbers):
    """Tell whether the gradient of w is left for later, as two factors of so many numbers.

    That is where they take less memory than the product. For all shards it is decided by the
    largest of them.
    """
    now = getattr(_now, "open", None)
    if now is None or now.later is None:
        return False
    rows = now.later.rows
    smaller = numbers * max(rows) <= w.size * rows[now.shard]
    return smaller and _find(now, w) is not None


def leave(w, x, dy):
    """Leave x (N, C_in) and dy (N, C_out) where `is_later`; return the place of w's gradient."""
    now = _now.open
    place = _find(now, w)
    now.filled.append(place)
    now.later.factors[now.shard][id(place)] = x, dy
    return place


def change(place, how):
    """Call how(), which changes a gradient: now, or once it is in the place that it is left for."""
    now = getattr(_now, "open", None)
    if now is not None and now.later is not None and id(place) in now.later.factors[now.shard]:
        now.later.changes[now.shard].append(how)
    else:
        how()
