"""A pair of passes whose gradients must be within bounds, in two forms; errors are recorded."""

import contextlib

from minigpt import backend
from minigpt.library.check import Passes
from tests.tools import registry

BOUNDS = {"differences": 1e-8, "complex step": 1e-13, "directions": 1e-8}  # relative errors
MODEL = 10  # times that for a whole model, whose numbers are rounded in many ops one by one
FORMS = "override", "plain"


@contextlib.contextmanager
def form(name):
    """In the form "plain" all ops are the definitions: no override replaces them."""
    if name == "override":
        yield
    else:
        with backend.plain():
            yield


class Problem(Passes):
    """Passes whose errors have bounds.

    Parameters
    ----------
    forward, backward, xs, ws, options, factor
        As in check_backward.
    """

    def __init__(self, forward, backward, xs, ws, options, factor):
        super().__init__(forward, backward, xs, ws, options)
        self.bounds = {check: factor * bound for check, bound in BOUNDS.items()}

    def note(self, form, i, check, error):
        """Assert that the error of the gradient of array i is within its bound, and record it."""
        name, bound = self.names[i], self.bounds[check]
        # not >: a NaN must fail
        assert error <= bound, f"{name}: relative error {error:.2e} > {bound:.0e} by {check}"
        registry.note(self.passes[1], form, name, check, error, bound)
