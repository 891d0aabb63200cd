"""Gradient checks, in float64: every hand-written backward pass against numerical derivatives.

Three methods, none of which knows the formulas: five-point differences and complex steps for the
whole Jacobian of small problems, and 8 random directions with a sweep of step sizes for any.
Upstream gradients are random: with dy = 1, softmax and a fresh layernorm have gradient 0, and any
multiple of the right formula would pass.
"""

import itertools
import math

import numpy as np

from minigpt.library.check import analytic, read_only, relative_error, units
from minigpt.library.derivatives import best_of, complex_step, five_point, sweep
from tests.tools import registry
from tests.tools.calling import (
    assert_same,
    call,
    float_dtypes,
    forms,
    is_float,
    joined,
    leaves,
    map_tree,
    strided,
)
from tests.tools.problem import BOUNDS, FORMS, MODEL, Problem, form

__all__ = [
    "MODEL",
    "assert_same",
    "call",
    "check_backends",
    "check_backward",
    "check_float32",
    "check_strided",
    "float_dtypes",
    "forms",
    "is_float",
    "joined",
    "leaves",
    "map_tree",
    "read_only",
    "strided",
]

# The error of an element below this fraction of the largest one, or of 1, is relative to that.
FLOORS = {"differences": 1e-3, "complex step": 0.1, "directions": 0.1}
DIRECTIONS = 8
WHOLE = 5000  # evaluations that a whole Jacobian may cost


def check_exactly(problem, rng):
    """Assert, to the bit: the same twice; a zero dy gives zeros, a doubled dy doubled gradients."""
    before = [x.copy() for x in problem.arrays]
    dy = problem.upstream(rng)
    gradients = problem.gradients(dy)
    for factor in (1.0, 0.0, 2.0):
        scaled = problem.gradients(factor * dy)
        for name, dx, dx_scaled in zip(problem.names, gradients, scaled, strict=True):
            what = "not repeatable" if factor == 1 else "not linear in dy"
            assert np.array_equal(dx_scaled, factor * dx), f"{name}: {what}"
    ys = [np.array(problem.forward(problem.arrays)[0]) for _ in range(2)]
    assert np.array_equal(*ys), "y is not repeatable"
    for name, x, old in zip(problem.names, problem.arrays, before, strict=True):
        assert np.array_equal(x, old), f"{name} was written to"


def columns(problem, derivative, convert):
    """Return the numerical Jacobian: for each array x, dy/dx (y.size, x.size)."""
    jacobian, n_out = [], math.prod(problem.shape)
    for i, x in enumerate(problem.arrays):
        found = [derivative(problem.along({i: v}, convert)) for v in units(x.shape)]
        jacobian.append(np.array(found).reshape(x.size, n_out).T)
    return jacobian


def check_jacobian(problem):
    """Check each row of the Jacobian, which is the gradient of one element of y."""
    with form("plain"):
        expected = {"complex step": columns(problem, complex_step, analytic)}
    expected["differences"] = columns(problem, five_point, read_only)
    for name in FORMS:
        with form(name):
            rows = [problem.gradients(dy) for dy in units(problem.shape)]
        for i, x in enumerate(problem.arrays):
            actual = np.array([row[i] for row in rows]).reshape(len(rows), x.size)
            for check, jacobian in expected.items():
                error = relative_error(actual, jacobian[i], FLOORS[check])
                problem.note(name, i, check, error)


def derivative(dxs, direction):
    """Return the derivative along a direction, as the gradients give it, and its scale."""
    along = sum((dxs[i] * v).sum() for i, v in direction.items())
    size = sum((dxs[i] ** 2).sum() for i in direction) ** 0.5
    return along, max(abs(along), FLOORS["directions"] * max(1.0, size))


def check_directions(problem, rng, groups):
    """Check random directions: of all arrays in a sweep of steps, of each group by complex step."""
    for _ in range(DIRECTIONS):
        direction = {i: rng.standard_normal(x.shape) for i, x in enumerate(problem.arrays)}
        dy, found = problem.upstream(rng), {}
        for name in FORMS:
            with form(name):
                found[name] = problem.gradients(dy)
        steps = [(estimate * dy).sum() for estimate in sweep(problem.along(direction))]
        for name, dxs in found.items():
            along, scale = derivative(dxs, direction)
            best = best_of(
                [abs(along - step) / scale for step in steps], problem.bounds["directions"]
            )
            for i in direction:
                problem.note(name, i, "directions", best)
        for group in groups:
            part = {i: direction[i] for i in group}
            with form("plain"):
                step = (complex_step(problem.along(part, analytic)) * dy).sum()
            for name, dxs in found.items():
                along, scale = derivative(dxs, part)
                error = abs(along - step) / scale
                for i in group:
                    problem.note(name, i, "complex step", error)


def check_backward(forward, backward, *xs, rng, options=None, factor=1, **ws):
    """Assert that `backward` is the gradient of `forward` in every array x and parameter w.

    Every array goes in read-only. Both passes are checked as they are called and as the
    definitions alone.

    Parameters
    ----------
    forward, backward : callables
        `forward(*xs, **ws, **options) -> y, cache`; `backward(dy, cache)` gives a gradient per
        x, then a dict (or nested tree) with one per w.
    xs, ws : float64 arrays; each of ws may be a tree of them
    options : dict
        Further arguments, which have no gradient.
    factor : float
        Of the bounds.
    """
    problem = Problem(forward, backward, xs, ws, options or {}, factor)
    whole = 5 * sum(x.size for x in problem.arrays) + math.prod(problem.shape) <= WHOLE
    everything = range(len(problem.arrays))
    if registry.names_only:
        checks = list(BOUNDS)[not whole :]
        for name, i, check in itertools.product(FORMS, everything, checks):
            problem.note(name, i, check, 0.0)
        return
    for name in FORMS:
        with form(name):
            check_exactly(problem, rng)
    if whole:
        check_jacobian(problem)
    check_directions(problem, rng, [everything] if whole else [[i] for i in everything])


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
