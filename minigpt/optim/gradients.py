"""The gradients of a step in one flat buffer, and their sum of squares."""

from minigpt.backend import overridable


@overridable
def gather(flat, shards, add=False):
    """Copy arrays one after another into a flat buffer; of several shards, their sum.

    Parameters
    ----------
    flat : (N,) float
        Written to. Its precision is at least that of the arrays.
    shards : tuple of tuples of arrays
        The arrays of each shard, end to end, are N elements; all shards have the same sizes.
    add : bool
        Whether to add to what `flat` holds.
    """
    n, start = sum(x.size for x in shards[0]), 0
    if n != flat.size:
        raise ValueError(f"gather: the arrays have {n} elements, but flat has {flat.size}")
    for first, *rest in zip(*shards, strict=True):
        part = flat[start : start + first.size]
        if add:
            part += first.reshape(-1)
        else:
            part[...] = first.reshape(-1)
        for other in rest:
            part += other.reshape(-1)
        start += first.size


@overridable
def sum_of_squares(g):
    """Return (n,) numbers, of at least g's precision, whose sum is the sum of g_i^2.

    It is a pass of its own after the sum over shards and batches. Several parts, since their sum is
    `clip`'s: no launch of its own.

    Parameters
    ----------
    g : (N,) float
    """
    return (g * g).sum().reshape(1)
