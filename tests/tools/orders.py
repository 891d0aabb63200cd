"""Results that do not depend on the order in which blocks and threads run."""

import os
import subprocess
import sys


def assert_any_order(digest):
    """Assert that a function of a test module, without arguments, returns the same string again.

    Where kernels run on the CPU also in a fresh process, with blocks and threads in the opposite
    order; a real GPU has another order each time.
    """
    first = digest()
    assert digest() == first
    if os.environ.get("CUPY_ON_CPU") != "1":
        return
    reverse = os.environ.get("CUPY_ON_CPU_ORDER") != "reverse"
    name = digest.__name__
    command = [sys.executable, "-c", f"from {digest.__module__} import {name}; print({name}())"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environ["CUPY_ON_CPU_ORDER"] = "reverse" if reverse else ""
    assert subprocess.check_output(command, env=environ, text=True).strip() == first
