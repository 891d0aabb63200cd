"""Parameters: a tree of named views on one flat buffer.

Clipping, the optimizer, a checkpoint and a copy to a device are then one pass over one array,
while the mathematics sees `p["attn"]["c_attn"]["w"]`. Gradients and optimizer state have the
same layout.
"""

import math

import numpy

LINE = 64  # bytes: vectors that begin where cache lines do are loaded faster


def leaves(tree, prefix=""):
    """Yield (dotted name, leaf) of nested dicts and lists, in their order.

    A leaf is whatever is neither dict nor list: an array, or a shape (a tuple).
    """
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def mapped(tree, fn, prefix=""):
    """Return a tree of the same nesting with fn(dotted name, leaf) for each leaf."""

    def child(key, value):
        if isinstance(value, dict | list):
            return mapped(value, fn, f"{prefix}{key}.")
        return fn(f"{prefix}{key}", value)

    if isinstance(tree, dict):
        return {key: child(key, value) for key, value in tree.items()}
    return [child(i, value) for i, value in enumerate(tree)]


def aligned(n, dtype, allocate=numpy.empty):
    """Return an array (n,) that begins at a cache line; `allocate` makes it."""
    dtype = numpy.dtype(dtype)
    array = allocate(n + LINE // dtype.itemsize, dtype)
    if not isinstance(array, numpy.ndarray):  # a device's memory begins at lines of its own
        return array[:n]
    first = -array.__array_interface__["data"][0] % LINE // dtype.itemsize
    return array[first : first + n]


class Params:
    """Named views on one flat buffer, matrices first.

    Parameters
    ----------
    shapes : nested dict or list of shape tuples
    xp : module
        numpy or cupy.
    dtype : dtype or str
    flat : (size,) array, optional
        The buffer; zeros by default.

    Attributes
    ----------
    flat : (size,) array
    tree : as `shapes`
        Views on `flat`, of those shapes.
    decayed : int
        Elements of `flat` that belong to matrices and embeddings (ndim >= 2): they come first,
        so that what weight decay applies to is one slice. Gains and biases follow.
    """

    def __init__(self, shapes, xp, dtype, flat=None):
        named = dict(leaves(shapes))
        self._order = sorted(named, key=lambda name: len(named[name]) < 2)  # stable
        starts, at = {}, 0
        for name in self._order:
            starts[name] = at
            at += math.prod(named[name])
        self.shapes = shapes
        self.size = at
        self.decayed = sum(math.prod(shape) for shape in named.values() if len(shape) >= 2)
        self.flat = aligned(at, dtype, xp.zeros) if flat is None else flat
        self.tree = mapped(shapes, lambda name, shape: self._view(starts[name], shape))
        self._xp = xp

    def _view(self, start, shape):
        return self.flat[start : start + math.prod(shape)].reshape(shape)

    def leaves(self):
        """Yield (dotted name, view) in the order of the tree."""
        return leaves(self.tree)

    def ordered(self, tree):
        """Return the leaves of a tree of this layout in the order of `flat`."""
        named = dict(leaves(tree))
        return [named[name] for name in self._order]

    def zeros_like(self):
        """Return Params of the same layout, all zero: for gradients and optimizer state."""
        return Params(self.shapes, self._xp, self.flat.dtype)
