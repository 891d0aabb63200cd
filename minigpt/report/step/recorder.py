"""A recorder of the passes: the arrays that each line of the ops assigns, while they run.

It sees what a debugger sees. Python calls a tracer before every line and at every return of the
functions that it traces (`sys.settrace`), in the thread that asked for it. No op is replaced,
wrapped or run twice, so what is recorded is what the passes have computed.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).parents[2]
TRACED = ("ops/", "model/gpt.py", "model/blocks.py", "optim/adamw.py")


@dataclass
class Call:
    """A call of a function, with the calls that it made.

    Attributes
    ----------
    name : str
    file : str
        From the root of the project, such as "minigpt/ops/attention.py".
    line : int
        Where the function begins.
    values : dict
        By name of argument or variable: a copy of every different array that it stood for, from
        the first to the last. Numbers of NumPy count as arrays.
    result : object
        What it returned, with copies of the arrays.
    calls : list of Call
    """

    name: str
    file: str = ""
    line: int = 0
    values: dict = field(default_factory=dict)
    result: object = None
    calls: list = field(default_factory=list)

    def __getitem__(self, name):
        """Return the array that a variable stood for at last."""
        return self.values[name][-1]

    def first(self, name):
        """Return the array that a variable stood for at first."""
        return self.values[name][0]

    def all(self, name):
        """Return the calls of a function below this one, in their order."""
        found = []
        for call in self.calls:
            found += [call] * (call.name == name) + call.all(name)
        return found

    def the(self, name, i=0):
        """Return the call number i of a function below this one.

        Raises
        ------
        LookupError
            If there are fewer.
        """
        found = self.all(name)
        if not -len(found) <= i < len(found):
            raise LookupError(f"{self.name} made {len(found)} calls of {name}, none is number {i}")
        return found[i]

    def note(self, variables):
        """Keep a copy of each array among variables that is not what it was, in place or anew."""
        for name, value in variables.items():
            if isinstance(value, np.ndarray | np.generic):
                seen = self.values.setdefault(name, [])
                if not seen or not same(seen[-1], value):
                    seen.append(np.array(value))


def same(x, y):
    """Tell whether two arrays are of one shape and hold the same numbers."""
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()


def copy_of(value):
    """Return a value with a copy of each array in it."""
    if isinstance(value, np.ndarray | np.generic):
        return np.array(value)
    if isinstance(value, dict):
        return {key: copy_of(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [copy_of(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def place_of(code):
    """Return the file of a function that is traced, from the root of the project, or None."""
    with contextlib.suppress(ValueError):
        file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
        if file.startswith(TRACED) and not code.co_name.startswith("<"):
            return f"{PACKAGE.name}/{file}"
    return None


@contextlib.contextmanager
def recording():
    """Record the calls of traced functions in this thread; gives a Call that has made them all.

    A tracer that is there already, as a debugger's, is away meanwhile.
    """
    root = Call("recording")
    stack = [root]

    def enter(frame, event, arg):
        file = place_of(frame.f_code)
        if file is None:
            return None
        call = Call(frame.f_code.co_name, file, frame.f_code.co_firstlineno)
        call.note(frame.f_locals)
        stack[-1].calls.append(call)
        stack.append(call)
        return follow

    def follow(frame, event, arg):
        stack[-1].note(frame.f_locals)
        if event == "return":
            stack.pop().result = copy_of(arg)
        return follow

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield root
    finally:
        sys.settrace(before)
