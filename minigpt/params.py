"""Parameters: a tree of named views on one flat buffer.

Clipping, the optimizer, a checkpoint and a copy to a GPU are then one pass over one array, while
the mathematics sees `p["attn"]["c_attn"]["w"]`. Gradients and optimizer state have the same layout.
"""

import functools
import math
import operator

import numpy

LINE = 64  # bytes: vectors that begin where cache lines do are loaded faster
LINE_ELEMENTS = LINE // 4  # of float32


def leaves(tree, prefix=""):
    """Yield (dotted name, leaf) of nested dicts and lists, or of Params, in their order.

    A leaf is whatever is neither dict nor list: an array, or a shape (a tuple).
    """
    tree = tree.tree if isinstance(tree, Params) else tree
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def paths(tree, above=()):
    """Yield the keys that lead to each leaf, (key, key, ...), in the order of `leaves`."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from paths(value, (*above, key))
        else:
            yield *above, key


def map_tree(fn, tree, prefix=""):
    """Return a tree of the same nesting with fn(dotted name, leaf) for each leaf."""

    def child(key, value):
        if isinstance(value, dict | list):
            return map_tree(fn, value, f"{prefix}{key}.")
        return fn(f"{prefix}{key}", value)

    if isinstance(tree, dict):
        return {key: child(key, value) for key, value in tree.items()}
    return [child(i, value) for i, value in enumerate(tree)]


def aligned(n, dtype, allocate=numpy.empty):
    """Return an array (n,) that begins at a cache line; `allocate` makes it."""
    dtype = numpy.dtype(dtype)
    array = allocate(n + LINE // dtype.itemsize, dtype)
    if not isinstance(array, numpy.ndarray):  # a GPU's allocations are aligned anyway
        return array[:n]
    first = -array.__array_interface__["data"][0] % LINE // dtype.itemsize
    return array[first : first + n]


class Params:
    """Named views on one flat buffer, matrices first.

    Params can be read like their tree: `params["h"][0]["attn"]["c_attn"]["w"]`, and can stand where
    a tree of parameters is expected. Printed, they are a table of names and shapes.

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
    arrays : list of arrays
        The views in the order of `flat`.
    starts : list of int
        Where each of them begins in `flat`.
    decayed : int
        Elements of `flat` that belong to matrices and embeddings (ndim >= 2). They come first, so
        that weight decay applies to one slice. Gains and biases follow.
    """

    def __init__(self, shapes, xp, dtype, flat=None):
        named = dict(leaves(shapes))
        order = sorted(
            zip(named, paths(shapes), strict=True), key=lambda leaf: len(named[leaf[0]]) < 2
        )  # stable
        self._paths = [path for _, path in order]
        starts, at = {}, 0
        for name, _ in order:
            starts[name] = at
            at += math.prod(named[name])
        self.shapes, self.starts = shapes, list(starts.values())
        self.size = at
        self.decayed = sum(math.prod(shape) for shape in named.values() if len(shape) >= 2)
        self.flat = aligned(at, dtype, xp.zeros) if flat is None else flat
        self.tree = map_tree(lambda name, shape: self._view(starts[name], shape), shapes)
        self.arrays = self.ordered(self.tree)
        self._xp = xp

    def _view(self, start, shape):
        return self.flat[start : start + math.prod(shape)].reshape(shape)

    def __getitem__(self, key):
        return self.tree[key]

    def __iter__(self):
        return iter(self.tree)

    def __len__(self):
        return len(self.tree)

    def __contains__(self, key):
        return key in self.tree

    def get(self, key, default=None):
        """Return the subtree or the array of that name at the top, or `default`."""
        return self.tree.get(key, default)

    def keys(self):
        """Return the names at the top of the tree."""
        return self.tree.keys()

    def items(self):
        """Return (name, subtree or array) of the top of the tree."""
        return self.tree.items()

    def __repr__(self):
        dtype, module = self.flat.dtype, type(self.flat).__module__.partition(".")[0]
        rows = [(name, str(view.shape), f"{view.size:,}") for name, view in self.leaves()]
        rows.append(("total", f"{dtype}, {module}", f"{self.size:,}"))
        a, b, c = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(f"{name:<{a}}  {shape:<{b}}  {n:>{c}}" for name, shape, n in rows)

    def leaves(self):
        """Yield (dotted name, view) in the order of the tree."""
        return leaves(self.tree)

    def ordered(self, tree):
        """Return the leaves of a tree of this layout in the order of `flat`."""
        return [functools.reduce(operator.getitem, path, tree) for path in self._paths]

    def zeros_like(self):
        """Return Params of the same layout, all zero: for gradients and optimizer state."""
        return Params(self.shapes, self._xp, self.flat.dtype)

    def part(self, own):
        """Return Params of one array as long as the slice `own` of `flat`, all zero."""
        return Params({"part": (own.stop - own.start,)}, self._xp, self.flat.dtype)
