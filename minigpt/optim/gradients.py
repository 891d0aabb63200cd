"""The gradients of a step in one flat buffer, and their sum of squares."""

from minigpt.backend import overridable


@overridable
def sum_of_squares(g):
    """Return the sum of g_i^2 of a flat array, () of its dtype."""
    return (g * g).sum()


@overridable
def gather(flat, shards, add=False):
    """Put arrays one after another into a flat buffer: the sum of several such rows of arrays.

    Parameters
    ----------
    flat : (N,) float
        Written to; of more precision than the arrays, if not of the same.
    shards : tuple of tuples of arrays
        The arrays of each, end to end, are N elements; shard by shard, they are of equal sizes.
    add : bool
        Whether to add to what `flat` holds.

    Returns
    -------
    squares : (n,) float
        Parts of the sum of flat_i^2, which an optimizer needs the norm of.
    """
    n, at = sum(x.size for x in shards[0]), 0
    if n != flat.size:
        raise ValueError(f"gather: the arrays are {n} elements, but flat is {flat.size}")
    for first, *rest in zip(*shards, strict=True):
        part = flat[at : at + first.size]
        if add:
            part += first.reshape(-1)
        else:
            part[...] = first.reshape(-1)
        for other in rest:
            part += other.reshape(-1)
        at += first.size
    return sum_of_squares(flat).reshape(1)
