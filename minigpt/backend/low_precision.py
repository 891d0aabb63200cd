"""Ops as they are written, called with 16-bit arrays: computed in float32.

Kernels compute in float32 whatever the type of their arrays is. Where no kernel takes the arrays
of a call (wider rows than a block has threads for, wider heads, an empty array) the op itself runs.
It is written for float32 and float64: in 16 bits its means and sums would be rounded at each
step. Besides, CuPy makes float32 of a bfloat16 array and a Python number, and has no product of
bfloat16 in more than two dimensions.
"""

LOW = "eE"  # dtype.char of float16 and of ml_dtypes' bfloat16


def map_arrays(fn, tree):
    """Return nested tuples, lists and dicts with fn(x) for each array x."""
    if isinstance(tree, dict):
        return {key: map_arrays(fn, x) for key, x in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [map_arrays(fn, x) for x in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return fn(tree) if hasattr(tree, "dtype") and hasattr(tree, "shape") else tree


def low_dtype(args, kwargs):
    """Return the dtype of the first floating array among the arguments if it has 16 bits."""
    found = []
    map_arrays(lambda x: x.dtype.char in "efdE" and found.append(x.dtype), (args, kwargs))
    return found[0] if found and found[0].char in LOW else None


def in_float32(op, args, kwargs):
    """Return op(*args, **kwargs); if the first array has 16 bits, computed in float32.

    Results are rounded, but for numbers (the loss) and for what the op itself put into its cache,
    such as a mean.
    """
    dtype = low_dtype(args, kwargs)
    if dtype is None:
        return op(*args, **kwargs)
    wide = {}  # id of a float32 copy: the copy, what it is a copy of

    def widen(x):
        if x.dtype.char not in LOW:
            return x
        y = x.astype("float32")
        wide[id(y)] = y, x
        return y

    def restore(x):
        return wide[id(x)][1] if id(x) in wide else x

    def narrow(x):
        x = restore(x)
        return x.astype(dtype) if x.dtype.char == "f" and x.ndim else x

    result = op(*map_arrays(widen, args), **map_arrays(widen, kwargs))
    if op.__name__.endswith("_forward"):
        *ys, cache = result
        return *map_arrays(narrow, ys), map_arrays(restore, cache)
    return map_arrays(narrow, result)
