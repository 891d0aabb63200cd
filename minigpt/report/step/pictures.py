"""What a step is shown as: stages, an op's two passes side by side, and matrices with labels."""

import linecache
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minigpt.report.step.recorder import PACKAGE, Call


@dataclass(frozen=True, eq=False)
class Picture:
    """A matrix as it is shown: numbers that a pass has computed, with labels.

    Attributes
    ----------
    name : str
        As in the code: "q", "dlogits".
    values : (n, m) array
    rows, columns : list of str
        Labels.
    note : str
        What it is, in a few words.
    origins : dict
        Where cell (i, j) comes from, by the key of a picture, "STAGE.NAME": (rows, columns), each
        "i", "j", "all", or a list that has for every i the list of them.
    keep : sequence of int
        Columns, those first that are shown where there is no room for all.
    """

    name: str
    values: np.ndarray
    rows: list
    columns: list
    note: str = ""
    origins: dict = field(default_factory=dict)
    keep: tuple = ()

    def first_columns(self, room):
        """Return the indices of at most `room` columns, those to keep first."""
        kept = dict.fromkeys(self.keep[:room])
        return [*kept, *(j for j in range(len(self.columns)) if j not in kept)][:room]

    def columns_within(self, room):
        """Return the indices of at most `room` columns, in their order."""
        return sorted(self.first_columns(room))


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of an op: the call of it that is shown.

    Attributes
    ----------
    call : Call
    formulas : tuple of str
        As they stand in the docstring of the op.
    shapes : str
    pictures : tuple of Picture
    notes : tuple of str
        Sentences, for a reader.
    example : str
        The arithmetic of one number: "s[1, 0] = ... = 0.1234".
    """

    call: Call
    formulas: tuple
    shapes: str
    pictures: tuple = ()
    notes: tuple = ()
    example: str = ""

    @property
    def place(self):
        """Where the op is: "minigpt/ops/softmax.py:9"."""
        return f"{self.call.file}:{line_of(self.call)}"


@dataclass(frozen=True, eq=False)
class Stage:
    """An op in the step: what it does forward, and backward where it has a backward pass.

    Attributes
    ----------
    key : str
        "softmax", and of a model with several blocks "h.1.softmax".
    title : str
    forward : Pass
    backward : Pass or None
    """

    key: str
    title: str
    forward: Pass
    backward: Pass | None = None


def line_of(call):
    """Return the number of the line with the "def" of a call's function, below its decorators."""
    file, line = str(Path(PACKAGE.parent, call.file)), call.line
    while linecache.getline(file, line).lstrip().startswith("@"):
        line += 1
    return line


def number(x):
    """Return a number as text: four digits."""
    return f"{x + 0.0:.4g}"  # not -0


def term(x):
    """Return a number as it stands behind a sign: in brackets if it is negative."""
    return f"({number(x)})" if x < 0 else number(x)


def add(*xs):
    """Return a sum as text: "0.12 + (-0.3)"."""
    return " + ".join([number(xs[0]), *map(term, xs[1:])])


def dot(xs, ys):
    """Return a sum of products as text: "-0.12 * 0.3 + 0.5 * (-0.1)"."""
    firsts = [number(xs[0]), *map(term, xs[1:])]
    return " + ".join(f"{x} * {term(y)}" for x, y in zip(firsts, ys, strict=True))
