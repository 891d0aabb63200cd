"""Is a backward pass the gradient of its forward pass? A numerical answer, in float64.

Two methods, neither of which knows the formulas: finite differences, and complex steps, which have
no round-off. Upstream gradients dy are random: with dy = 1, softmax and a fresh layernorm have
gradient 0, and any multiple of the right formula would pass.
"""

import inspect
import math
from typing import NamedTuple

import numpy as np

from minigpt.backend import plain
from minigpt.library.derivatives import Analytic, complex_step, five_point
from minigpt.params import leaves, map_tree

DIFFERENCES, COMPLEX = 1e-7, 1e-10  # largest relative errors of a right gradient
FLOOR = 1e-3  # elements below this share of the largest one are compared with that instead
WHOLE = 1000  # elements up to which each is checked; beyond, DIRECTIONS at random
DIRECTIONS = 16


class Passes:
    """A pair of passes as functions of a flat list of arrays, to be moved at will.

    Parameters
    ----------
    forward, backward : callables
        `forward(*xs, **ws, **options) -> y, cache`; `backward(dy, cache)` gives a gradient per
        x, then a dict (or nested tree) with one per w.
    xs : sequence of float64 arrays
    ws : dict of float64 arrays, or of trees of them
    options : dict
        Further arguments, which have no gradient.

    Attributes
    ----------
    names : list of str
        Of the arrays: xs by the parameters of `forward` (or its attribute `inputs`), then ws.
    arrays : list of read-only arrays
    shape : tuple
        Of y.
    """

    def __init__(self, forward, backward, xs, ws, options):
        self.passes, self.options = (forward, backward), options
        self.options = {k: read_only(v) if hasattr(v, "flags") else v for k, v in options.items()}
        names = getattr(forward, "inputs", None) or positional(forward)
        self.names = [names[i] if i < len(names) else f"array {i}" for i in range(len(xs))]
        self.names += [name for name, _ in leaves(ws)]
        self.n, self.ws = len(xs), ws
        self.arrays = [read_only(np.array(x)) for x in (*xs, *(w for _, w in leaves(ws)))]
        self.shape = np.shape(self.forward(self.arrays)[0])

    def forward(self, arrays):
        """Return y, cache of these arrays."""
        values = iter(arrays)
        xs = [next(values) for _ in range(self.n)]
        ws = map_tree(lambda *_: next(values), self.ws)
        result = self.passes[0](*xs, **ws, **self.options)
        require(
            isinstance(result, tuple) and len(result) == 2,
            "forward must return two things: y, and the cache that backward takes",
        )
        if not hasattr(result[0], "shape"):  # an array as text, at each call, would take long
            raise AssertionError(f"forward: y must be one array, not {result[0]!r:.60}")
        return result

    def along(self, direction, convert=None):
        """Return y as a function of t: at the arrays + t * direction, {index: array}."""
        convert = convert or read_only
        arrays = [convert(x) for x in self.arrays]

        def at(t):
            moved = list(arrays)
            for i, v in direction.items():
                moved[i] = moved[i] + t * v
            return np.array(self.forward(moved)[0])

        return at

    def upstream(self, rng):
        """Return a random dy."""
        return np.asarray(rng.standard_normal(self.shape))

    def gradients(self, dy):
        """Return the gradient of each array.

        Raises
        ------
        AssertionError
            If they are not as many as the arrays, or not of their names, shapes and dtypes.
        """
        _, cache = self.forward(self.arrays)
        found = self.passes[1](read_only(np.asarray(dy)), cache)
        found = found if isinstance(found, tuple) else (found,)
        *dxs, dws = found if isinstance(found[-1], dict) else (*found, {})
        require(
            len(dxs) == self.n,
            f"backward: {len(dxs)} gradients of arrays, but there are {self.n}: "
            f"{', '.join(self.names[: self.n]) or 'none'}",
        )
        dws, ws = dict(leaves(dws)), dict(leaves(self.ws))
        require(
            dws.keys() == ws.keys(),
            f"backward: gradients of parameters {sorted(dws)}, but they are {sorted(ws)}",
        )
        gradients = [*dxs, *(dws[name] for name in ws)]
        for name, x, dx in zip(self.names, self.arrays, gradients, strict=True):
            shape, dtype = np.shape(dx), getattr(dx, "dtype", type(dx).__name__)
            for found, needed in ((shape, x.shape), (dtype, x.dtype)):
                require(found == needed, f"{name}: its gradient is {found}, but {name} is {needed}")
        return gradients


def require(condition, text):
    """Raise an AssertionError with that text unless the condition holds, with python -O too."""
    if not condition:
        raise AssertionError(text)


def positional(f):
    """Return the names of the positional parameters of f."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, p in inspect.signature(f).parameters.items() if p.kind in kinds]


def read_only(x):
    """Return a view of the array `x` that cannot be written to."""
    x = x.view()
    x.flags.writeable = False
    return x


def analytic(x):
    """Return the array `x` of floats as complex numbers that every op continues analytically."""
    return x.astype(complex).view(Analytic) if x.dtype.kind in "fc" else x


def units(shape):
    """Return the arrays of that shape that are 1 at one place and 0 elsewhere."""
    n = math.prod(shape)
    return np.eye(n).reshape(n, *shape)


def relative_error(actual, expected, floor):
    """Return the largest error of an element, relative to it, or to the floor times the largest."""
    least = floor * max(1.0, np.abs(expected).max(initial=0.0))
    return (np.abs(actual - expected) / np.maximum(np.abs(expected), least)).max(initial=0.0)


class Row(NamedTuple):
    """What was found of one gradient.

    Attributes
    ----------
    name : str
    shape : tuple
    differences, complex_step : float
        The largest relative error by each method; the latter nan where an op takes no complex
        numbers.
    fault : str
        What is wrong with it; "" if nothing is.
    """

    name: str
    shape: tuple
    differences: float
    complex_step: float
    fault: str


class Report(list):
    """The rows of a check, which are shown as a table."""

    def __repr__(self):
        lines = [f"{'gradient of':<16}{'shape':<16}{'differences':>12}{'complex step':>14}"]
        for row in self:
            exact = "-" if math.isnan(row.complex_step) else f"{row.complex_step:.0e}"
            line = f"{row.name:<16}{row.shape!s:<16}{row.differences:>12.0e}{exact:>14}"
            lines.append(f"{line}  {row.fault or 'right'}")
        return "\n".join(lines)


def check(forward, backward, /, *arrays, **params):
    """Check a pair of passes of your own against numerical derivatives.

    >>> def square_forward(x):
    ...     return x * x, (x,)
    >>> def square_backward(dy, cache):
    ...     (x,) = cache
    ...     return 2 * x * dy
    >>> minigpt.check(square_forward, square_backward, np.random.randn(3, 4))
    gradient of     shape            differences  complex step
    x               (3, 4)                 2e-12         0e+00  right

    It is called in float64, with a random dy, in plain mode: see `minigpt.plain`.

    Parameters
    ----------
    forward, backward : callables
        As those of minigpt/ops: `forward(*arrays, **params) -> y, cache`, and `backward(dy, cache)`
        returns a gradient per array of floats, then a dict with one per parameter of floats. Where
        there is just one gradient, it may stand alone.
    *arrays, **params
        What forward is called with. Floats have gradients. Arrays of integers, numbers, strings and
        all else are passed on and have none. A parameter may be a tree of arrays.

    Returns
    -------
    report : Report
        A Row per gradient: name, shape, largest relative errors, fault.

    Raises
    ------
    AssertionError
        If a gradient is wrong: the table says which and how. Or if the passes are not what they
        must be: repeatable, of the right number of gradients, their names, shapes and dtypes, and
        without writing to what they are given.
    """
    rng = np.random.default_rng(0)
    with plain():
        passes = passes_of(forward, backward, arrays, params)
        dy = passes.upstream(rng)
        gradients = called(passes.gradients, dy)
        check_repeatable(passes, dy, gradients)
        report = Report(row(passes, i, dy, dx, rng) for i, dx in enumerate(gradients))
    require(not any(row.fault for row in report), f"a gradient is wrong\n{report!r}")
    return report


def is_float(x):
    """Tell whether x is an array of floats, or a tree with one in it."""
    return any(
        getattr(leaf, "dtype", np.dtype(int)).kind == "f" and isinstance(leaf, np.ndarray)
        for _, leaf in leaves([x])
    )


def passes_of(forward, backward, arrays, params):
    """Return the Passes of a call: floats are moved, all else stays."""
    names = positional(forward)
    names += [f"array {i}" for i in range(len(names), len(arrays))]

    def forward_of_floats(*xs, **others):
        values = iter(xs)
        return forward(*(next(values) if is_float(x) else x for x in arrays), **others)

    floats = [i for i, x in enumerate(arrays) if is_float(x)]
    forward_of_floats.inputs = [names[i] for i in floats] or ["no array"]
    ws = {name: w for name, w in params.items() if is_float(w)}
    xs = [arrays[i].astype(np.float64) for i in floats]
    options = {name: x for name, x in params.items() if name not in ws}
    ws = map_tree(lambda _, w: np.asarray(w, np.float64), ws)
    require(xs or ws, "check: there is no array of floats to take a gradient of")
    return called(Passes, forward_of_floats, backward, xs, ws, options)


def called(f, *args):
    """Return f(*args); say it clearly where a pass writes to what it is given."""
    try:
        return f(*args)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise AssertionError(
            "a pass writes to an array that it was given, which others may still read: copy it"
        ) from error


def check_repeatable(passes, dy, gradients):
    """Assert that the same arrays give the same numbers, and that all of them are finite."""
    for name, dx, again in zip(passes.names, gradients, passes.gradients(dy), strict=True):
        require(np.isfinite(dx).all(), f"{name}: its gradient holds numbers that are not finite")
        require(
            np.array_equal(dx, again),
            f"{name}: its gradient is not repeatable; random numbers must come from an argument",
        )


def row(passes, i, dy, dx, rng):
    """Return the Row of one gradient, dx, along every element or along random directions."""
    x, name = passes.arrays[i], passes.names[i]
    whole = x.size <= WHOLE
    directions = units(x.shape) if whole else rng.standard_normal((DIRECTIONS, *x.shape))
    found = np.array([(dx * v).sum() for v in directions])
    differences = slopes(five_point, passes, i, directions, dy)
    error, exact = relative_error(found, differences, FLOOR), math.nan
    fault = describe(found, differences, x.shape if whole else None, error, DIFFERENCES)
    try:
        steps = slopes(complex_step, passes, i, directions, dy, analytic)
        # Of an op that is not analytic, as one that takes a real part, it means nothing.
        if relative_error(steps, differences, FLOOR) <= DIFFERENCES:
            exact = relative_error(found, steps, FLOOR)
            fault = describe(found, steps, x.shape if whole else None, exact, COMPLEX)
    except (TypeError, ValueError, AttributeError):  # complex numbers are nothing to this op
        pass
    return Row(name, x.shape, float(error), float(exact), fault)


def slopes(derivative, passes, i, directions, dy, convert=None):
    """Return the derivatives of sum(y * dy) along directions of array i, by a method."""
    lines = (passes.along({i: v}, convert) for v in directions)
    return np.array([(derivative(line) * dy).sum() for line in lines])


def describe(found, expected, shape, error, bound):
    """Return what is wrong with a gradient; "" if its error is within the bound.

    Parameters
    ----------
    found, expected : (n,) float
        Along n directions.
    shape : tuple or None
        Of the array, if the directions are its elements.
    """
    if error <= bound:
        return ""
    factor = (found @ expected) / max(expected @ expected, 1e-300)
    if relative_error(found, factor * expected, FLOOR) <= 1e-4 * max(abs(factor - 1), 1e-6):
        return f"WRONG: {factor:.6g} times what it should be"
    if shape is None:
        return "WRONG"
    worst = int(np.abs(found - expected).argmax())
    place = [int(j) for j in np.unravel_index(worst, shape)]
    return f"WRONG: at {place} it is {found[worst]:.6g}, but should be {expected[worst]:.6g}"
