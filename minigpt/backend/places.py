"""Where the gradients of a step belong, so that an override may leave them there at once.

A step wants its gradients in one buffer, in float32. Those that the ops return are copied there, or
added for a further batch. For a matrix that is a pass over memory which the product x^T dy can do
by itself: on a GPU, the overrides of linear layers and of the head ask here for the place of a
weight's gradient, and return that very array. `sum_gradients` in train/threads.py passes it by.
"""

import contextlib
import threading

from minigpt.backend import array_module

_now = threading.local()  # .open: (places, add, filled) within `gradients_into`, else None


def gradient_places(weights, gradients):
    """Return what `gradients_into` takes, of two lists of arrays; {} unless they are on a GPU.

    Parameters
    ----------
    weights : list of arrays
        As the passes see them, perhaps in 16 bit.
    gradients : list of arrays
        Where the gradient of each belongs.
    """
    pairs = zip(weights, gradients, strict=True)
    return {w.data.ptr: g for w, g in pairs if array_module(w).__name__ == "cupy"}


@contextlib.contextmanager
def gradients_into(places, add):
    """Let overrides leave gradients in their places while this context lasts, in this thread.

    Each weight's gradient is made once in it: all of its batch.

    Parameters
    ----------
    places : as from gradient_places
    add : bool
        Whether they are added to what is there.

    Yields
    ------
    filled : list of arrays
        The places that something has been left in so far.
    """
    filled = []
    _now.open = places, add, filled
    try:
        yield filled
    finally:
        _now.open = None


def place_of(w):
    """Return (where the gradient of w belongs, whether to add it); (None, False) is nowhere.

    Who asks leaves it there.
    """
    now = getattr(_now, "open", None)
    place = now and now[0].get(w.data.ptr)
    if place is None or place.shape != w.shape:
        return None, False
    _, add, filled = now
    filled.append(place)
    return place, add
