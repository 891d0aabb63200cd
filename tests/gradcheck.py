"""Finite differences: the judge of every backward pass written by hand. All in float64."""

import numpy as np

# Step of the five-point stencil: its truncation, H^4 times a fifth derivative, is near 1e-13, as
# is the round-off of y, 1e-16 / H.
H = 5e-4
RTOL = 2e-8  # below what a detour by float32 would leave, 3e-8
# Elements below this, or below this share of the largest one, are held to RTOL times it.
FLOOR = 1e-4


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
        return type(tree)([map_tree(f, value) for value in tree])
    return f(tree)


def float_dtypes(tree):
    """Return the set of dtypes of all floating arrays in `tree`, as text."""
    return {str(x.dtype) for _, x in leaves(tree) if getattr(x, "dtype", np.dtype(int)).kind == "f"}


def read_only(x):
    """Return a view of the array `x` that cannot be written to."""
    x = x.view()
    x.flags.writeable = False
    return x


def strided(x):
    """Return a read-only copy of x in Fortran's order, with gaps between all elements."""
    y = np.zeros([2 * n for n in x.shape[::-1]], dtype=x.dtype).T
    y = y[(..., *[slice(None, None, 2)] * x.ndim)]  # the ... keeps () an array
    y[...] = x
    return read_only(y)


def numerical_gradient(y, x, dy):
    """Return dL/dx of L = sum(y() * dy), element by element; `y` reads x, which is moved.

    (8 (y(x + h) - y(x - h)) - (y(x + 2h) - y(x - 2h))) / 12h, Abramowitz & Stegun 25.3.6. The
    differences come before the sum: what does not depend on x then leaves no round-off.
    """
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        xi, at = x[i], {}
        for k in (-2, -1, 1, 2):
            x[i] = xi + k * H
            at[k] = np.array(y())  # a copy: y may be x itself
        x[i] = xi
        dydx = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * H)
        gradient[i] = (dydx * dy).sum()
    return gradient


def assert_gradient(actual, expected, name, rtol=RTOL):
    """Assert that two gradients agree element by element, relatively, down to FLOOR."""
    assert actual.shape == expected.shape, f"{name}: {actual.shape}, not {expected.shape}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, not {expected.dtype}"
    floor = FLOOR * max(1.0, np.abs(expected).max(initial=0.0))
    error = np.abs(actual - expected) / np.maximum(np.abs(expected), floor)
    # not <=: a NaN must fail
    assert not (~(error <= rtol)).any(), f"{name}: relative error {error.max():.2e} > {rtol:.0e}"


def _pair(gradients, xs, ws):
    """Yield (name, array, its gradient); the order is that of the arrays, then of the names."""
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    dxs, dws = (gradients[:-1], gradients[-1]) if ws else (gradients, {})
    for i, (x, dx) in enumerate(zip(xs, dxs, strict=True)):
        yield f"array {i}", x, dx
    dws = dict(leaves(dws))
    assert dws.keys() == dict(leaves(ws)).keys(), f"gradients of {sorted(dws)}"
    for name, w in leaves(ws):
        yield name, w, dws[name]


def forms(forward, backward):
    """Return the pair as it is called and, where that is another, the pair that defines it."""
    definition = tuple(getattr(op, "reference", op) for op in (forward, backward))
    return list(dict.fromkeys([(forward, backward), definition]))


def call(forward, xs, ws, options, convert):
    """Return `forward(*xs, **ws, **options)`, with `convert` applied to every array."""
    options = {k: convert(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    return forward(*map_tree(convert, xs), **map_tree(convert, ws), **options)


def check_backward(forward, backward, *xs, rng, rtol=RTOL, options=None, **ws):
    """Assert that `backward` is the gradient of `forward` in every array x and parameter w.

    The loss is sum(y * dy) with a random dy: with dy = 1, softmax and a fresh layernorm have
    gradient 0, and any multiple of the right formula would pass. Every array goes in read-only.
    A zero dy must give exact zeros, and a doubled dy exactly the double.

    Parameters
    ----------
    forward, backward : callables
        `forward(*xs, **ws, **options) -> y, cache`; `backward(dy, cache)` gives a gradient per
        x, then a dict (or nested tree) with one per w. Ops are checked as they are called and
        as their `.reference`.
    xs, ws : float64 arrays; each of ws may be a tree of them
    options : dict
        Further arguments, which have no gradient.
    """
    xs, ws = map_tree(np.array, (xs, ws))  # of our own, to be moved by the stencil
    y, _ = call(forward, xs, ws, options or {}, read_only)
    dy = read_only(np.asarray(rng.standard_normal(np.shape(y))))
    for f, b in forms(forward, backward):

        def run(f=f):
            return call(f, xs, ws, options or {}, read_only)

        gradients = list(_pair(b(dy, run()[1]), xs, ws))
        for factor in (0.0, 2.0):
            scaled = _pair(b(read_only(np.asarray(factor * dy)), run()[1]), xs, ws)
            for (name, _, dx), (_, _, dx_scaled) in zip(gradients, scaled, strict=True):
                assert np.array_equal(dx_scaled, factor * dx), f"{name}: not linear in dy"
        for name, x, dx in gradients:
            expected = numerical_gradient(lambda: run()[0], x, dy)
            assert_gradient(dx, expected, name, rtol)


def assert_same(found, expected, rtol):
    """Assert that two trees hold the same arrays, relative to the largest element of each."""
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        atol = rtol * np.abs(x).max(initial=0.0)
        y = found[name].get() if hasattr(found[name], "get") else found[name]  # CuPy's, NumPy's
        np.testing.assert_allclose(y, x, rtol=0, atol=atol, err_msg=name)


def _compare(pair, xs, ws, options, dy, convert, expected, rtol):
    """Assert that the pair gives `expected`, (y, gradients), also with `convert`ed arrays."""
    y, cache = call(pair[0], xs, ws, options or {}, convert)
    gradients = pair[1](convert(dy), cache)
    assert_same((y, gradients), expected, rtol)
    return y, cache, gradients


def _expected(forward, backward, xs, ws, options, rng):
    """Return a random dy, and (y, gradients) with it in float64 on NumPy."""
    y, cache = call(forward, xs, ws, options or {}, np.asarray)
    dy = np.asarray(rng.standard_normal(np.shape(y)))
    return dy, (y, backward(dy, cache))


def check_float32(forward, backward, *xs, rng, options=None, rtol=2e-6, **ws):
    """Assert that float32 goes in, through the cache and out, and is near float64's result."""
    dy, expected = _expected(forward, backward, xs, ws, options, rng)

    def to_float32(x):
        return read_only(x.astype(np.float32) if x.dtype.kind == "f" else x)

    for pair in forms(forward, backward):
        result = _compare(pair, xs, ws, options, dy, to_float32, expected, rtol)
        assert float_dtypes(result) == {"float32"}


def check_strided(forward, backward, *xs, rng, options=None, **ws):
    """Assert that arrays of any memory layout, dy included, give what contiguous ones give."""
    dy, expected = _expected(forward, backward, xs, ws, options, rng)

    for pair in forms(forward, backward):
        _compare(pair, xs, ws, options, dy, strided, expected, 1e-13)


def check_backends(forward, backward, *xs, rng, xp, options=None, rtol=1e-12, **ws):
    """Assert that both passes give on the arrays of `xp` what they give on NumPy's."""
    dy, expected = _expected(forward, backward, xs, ws, options, rng)
    y, _, gradients = _compare((forward, backward), xs, ws, options, dy, xp.asarray, expected, rtol)
    for name, x in leaves((y, gradients)):
        assert type(x).__module__.split(".")[0] == xp.__name__, f"{name}: {type(x)}"
