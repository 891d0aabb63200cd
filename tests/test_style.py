"""House rules that a linter does not know."""

import ast
import functools
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted(ROOT.glob("minigpt/**/*.py"))
FILES = [*PACKAGE, *sorted(ROOT.glob("tests/**/*.py")), *sorted(ROOT.glob("bench/**/*.py"))]
KERNELS = sorted(ROOT.glob("minigpt/**/*.cu"))
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b")
MANY_LINES = 400


@functools.cache
def parse(path):
    return ast.parse(path.read_text("utf-8"))


def code_lines(function):
    """Number of lines of a function below its docstring, or below its first line."""
    start = function.body[0].end_lineno if ast.get_docstring(function) else function.lineno
    return function.end_lineno - start


def public(path):
    """Return the functions and classes that a file defines without an underscore."""
    found = (n for n in parse(path).body if isinstance(n, ast.FunctionDef | ast.ClassDef))
    return [node for node in found if not node.name.startswith("_")]


def overridden(path):
    """Return the names of the functions that a file in backend/cpu or backend/gpu overrides."""
    if path.parent.parent.name != "backend":
        return set()
    homes = (ROOT / "minigpt" / folder / path.name for folder in ("ops", "optim"))
    return {node.name for home in homes if home.is_file() for node in public(home)}


def where(path, what):
    return f"{path.relative_to(ROOT)}: {what}"


def test_functions_are_short():
    long = [
        where(path, node.name)
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef) and code_lines(node) > 40
    ]
    assert long == []


def test_lines_of_kernels_are_as_long_as_those_of_python():
    lines = [(path, line) for path in KERNELS for line in path.read_text("utf-8").splitlines()]
    assert [where(path, line) for path, line in lines if len(line) > 100] == []


@pytest.mark.filterwarnings("default")
def test_files_are_finished():
    """A file of very many lines is a smell and not an error: does its subject end before?"""
    unfinished = []
    for path in FILES:
        source = path.read_text("utf-8")
        unfinished += [where(path, word) for word in UNFINISHED.findall(source)]
        if (n := source.count("\n")) > MANY_LINES:
            warnings.warn(where(path, f"{n} lines"), stacklevel=1)
    assert unfinished == []


def test_files_and_what_they_offer_have_docstrings():
    """An override has the docstring of its op."""
    bare = [where(path, "the file") for path in PACKAGE if not ast.get_docstring(parse(path))]
    bare += [
        where(path, node.name)
        for path in PACKAGE
        for node in public(path)
        if not ast.get_docstring(node) and node.name not in overridden(path)
    ]
    assert bare == []
