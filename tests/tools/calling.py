"""Call forward and backward passes on trees of arrays of any dtype, layout or library."""

import functools

import numpy as np

from minigpt.backend import array_module
from minigpt.library.check import read_only


def leaves(tree, name=""):
    """Yield (dotted name, array) for everything in nested dicts, lists and tuples."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def map_tree(f, tree):
    """Return `tree` with `f` applied to every leaf."""
    if isinstance(tree, dict):
        return {key: map_tree(f, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        values = [map_tree(f, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return f(tree)


def is_float(x):
    """Tell whether `x` is a floating array; bfloat16 is of no kind that NumPy knows."""
    return hasattr(x, "dtype") and (x.dtype.kind == "f" or x.dtype.char == "E")


def float_dtypes(tree):
    """Return the set of dtypes of all floating arrays in `tree`, as text."""
    return {str(x.dtype) for _, x in leaves(tree) if is_float(x)}


def strided(x):
    """Return a read-only copy of x in Fortran's order, with gaps between all elements."""
    y = np.zeros([2 * n for n in x.shape[::-1]], dtype=x.dtype).T
    y = y[(..., *[slice(None, None, 2)] * x.ndim)]  # the ... keeps () an array
    y[...] = x
    return read_only(y)


def joined(forward, backward, begins=False):
    """Return the passes of a stream x and of h beside it as passes of one y that holds both.

    Parameters
    ----------
    forward, backward : callables
        `forward(x, h, ...)` gives (x, h), cache or x, h, cache; `backward(dx, dh, cache)` gives
        dx, dh and further gradients.
    begins : bool
        x is None, and so is dx.
    """

    @functools.wraps(forward)
    def forward_of_one(*xs, **options):
        *ys, cache = forward(*[None] * begins, *xs, **options)
        x, h = ys if len(ys) == 2 else ys[0]
        return array_module(h).stack([x, h]), cache

    @functools.wraps(backward)
    def backward_of_one(dy, cache):
        gradients = backward(*dy, cache)
        assert (gradients[0] is None) == begins
        return gradients[begins:]

    forward_of_one.inputs = ("x", "h", "memory")[begins:]
    if hasattr(forward, "reference") and hasattr(backward, "reference"):
        of_one = joined(forward.reference, backward.reference, begins)
        forward_of_one.reference, backward_of_one.reference = of_one
    return forward_of_one, backward_of_one


def forms(forward, backward):
    """Return the pair as it is called and, where that is another, the pair that defines it."""
    definition = tuple(getattr(op, "reference", op) for op in (forward, backward))
    return list(dict.fromkeys([(forward, backward), definition]))


def call(forward, xs, ws, options, convert):
    """Return `forward(*xs, **ws, **options)`, with `convert` applied to every array."""
    options = {k: convert(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    return forward(*map_tree(convert, xs), **map_tree(convert, ws), **options)


def assert_same(found, expected, rtol, least=0.0):
    """Assert that two trees hold the same arrays, relative to the largest element of each.

    Relative to `least` where that is larger: an exact 0 may come out as a sum of rounding errors.
    """
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        atol = rtol * np.abs(x).max(initial=least)
        y = found[name].get() if hasattr(found[name], "get") else found[name]  # CuPy's, NumPy's
        y = y.astype("f") if is_float(y) and y.itemsize == 2 else y
        np.testing.assert_allclose(y, x, rtol=0, atol=atol, err_msg=name)
