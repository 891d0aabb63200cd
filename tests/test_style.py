"""House rules that a linter does not know."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for top in ("minigpt", "tests", "bench") for p in ROOT.glob(f"{top}/**/*.py"))
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b")


def code_lines(function):
    """Number of lines of a function below its docstring, or below its first line."""
    start = function.body[0].end_lineno if ast.get_docstring(function) else function.lineno
    return function.end_lineno - start


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_finished(path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= 300
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if code_lines(f) > 40] == []
    assert UNFINISHED.findall(source) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("minigpt/**/*.py")), ids=lambda path: path.stem)
def test_a_file_and_what_it_offers_have_docstrings(path):
    tree = ast.parse(path.read_text("utf-8"))
    offered = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    offered = [n for n in offered if not n.name.startswith("_")]
    assert ast.get_docstring(tree)
    if path.stem.startswith("fused_"):
        return  # namesakes: the ops' docstrings are theirs
    assert [n.name for n in offered if not ast.get_docstring(n)] == []
