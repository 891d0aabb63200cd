"""A forward and a backward pass as functions of a flat list of arrays."""

import contextlib
import inspect

import numpy as np

from minigpt import backend
from tests.tools import registry
from tests.tools.calling import leaves, map_tree, read_only
from tests.tools.derivatives import Analytic

BOUNDS = {"differences": 1e-8, "complex step": 1e-13, "directions": 1e-8}  # relative errors
MODEL = 10  # times that for a whole model, whose numbers are rounded in many ops one by one
FORMS = "override", "plain"


def analytic(x):
    """Return the array `x` of floats as complex numbers that every op continues analytically."""
    return x.astype(complex).view(Analytic) if x.dtype.kind in "fc" else x


@contextlib.contextmanager
def form(name):
    """In the form "plain" all ops are the definitions: no override replaces them."""
    if name == "override":
        yield
    else:
        with backend.plain():
            yield


class Problem:
    """A pair of passes as functions of a flat list of arrays.

    Parameters
    ----------
    forward, backward, xs, ws, options, factor
        As in check_backward.
    """

    def __init__(self, forward, backward, xs, ws, options, factor):
        self.passes = forward, backward
        self.bounds = {check: factor * bound for check, bound in BOUNDS.items()}
        self.options = {k: read_only(v) if hasattr(v, "flags") else v for k, v in options.items()}
        self.tree = map_tree(np.array, (xs, ws))
        names = getattr(forward, "inputs", None) or positional(forward)
        self.names = [names[i] if i < len(names) else f"array {i}" for i in range(len(xs))]
        self.names += [name for name, _ in leaves(ws)]
        self.arrays = [read_only(x) for _, x in leaves(self.tree)]
        self.shape = np.shape(self.forward(self.arrays)[0])  # of y

    def forward(self, arrays):
        """Return y, cache of these arrays."""
        values = iter(arrays)
        xs, ws = map_tree(lambda _: next(values), self.tree)
        return self.passes[0](*xs, **ws, **self.options)

    def along(self, direction, convert=read_only):
        """Return y as a function of t: at the arrays + t * direction, {index: array}."""
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
        """Return the gradient of each array."""
        _, cache = self.forward(self.arrays)
        found = self.passes[1](read_only(np.asarray(dy)), cache)
        found = found if isinstance(found, tuple) else (found,)
        *dxs, dws = found if isinstance(found[-1], dict) else (*found, {})
        assert len(dxs) == len(self.tree[0]), f"{len(dxs)} gradients of arrays"
        dws, ws = dict(leaves(dws)), dict(leaves(self.tree[1]))
        assert dws.keys() == ws.keys(), f"gradients of {sorted(dws)}"
        gradients = [*dxs, *(dws[name] for name in ws)]
        for name, x, dx in zip(self.names, self.arrays, gradients, strict=True):
            assert dx.shape == x.shape, f"{name}: {dx.shape}, not {x.shape}"
            assert dx.dtype == x.dtype, f"{name}: {dx.dtype}, not {x.dtype}"
        return gradients

    def note(self, form, i, check, error):
        """Assert that the error of the gradient of array i is within its bound, and record it."""
        name, bound = self.names[i], self.bounds[check]
        # not >: a NaN must fail
        assert error <= bound, f"{name}: relative error {error:.2e} > {bound:.0e} by {check}"
        registry.note(self.passes[1], form, name, check, error, bound)


def positional(f):
    """Return the names of the positional parameters of f."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, p in inspect.signature(f).parameters.items() if p.kind in kinds]
