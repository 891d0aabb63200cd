"""Find a function in a source file, and a fragment of code in that function.

Code is compared token by token: spaces, line breaks, comments, the kind of quotes and commas
before a closing bracket make no difference. Python (.py) and CUDA C++ (.cu).
"""

import ast
import functools
import re

TOKEN = re.compile(
    r"""
    (?P<comment> \#[^\n]* | //[^\n]* ) |
    (?P<string> \"{3}.*?\"{3} | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' ) |
    (?P<word> \w+ ) |
    (?P<mark> [^\w\s] )
    """,
    re.VERBOSE | re.DOTALL,
)
COMMENT = {".py": "#", ".cu": "//"}
OPEN, CLOSE = "([{", ")]}"


class Stale(ValueError):
    """A function or fragment that is not found exactly once."""


@functools.lru_cache(1000)
def tokens(text, suffix):
    """Return [(token, its start, its end)] of a text, without comments."""
    found, start = [], 0
    while match := TOKEN.search(text, start):
        token, end = match[0], match.end()
        if match.lastgroup == "comment" and not token.startswith(COMMENT[suffix]):
            token, end = token[0], match.start() + 1  # // in Python, # in C++
        elif match.lastgroup == "string" and len(token) > 1:
            token = f'"{token[1:-1]}"'
        if not token.startswith(COMMENT[suffix]):
            if found and token in CLOSE and found[-1][0] == ",":
                found.pop()
            found.append((token, match.start(), end))
        start = end
    return tuple(found)


def python_spans(node, prefix=""):
    """Yield (name, start line, end line) of what a module or class defines by name."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
            yield prefix + child.name, first, child.end_lineno
            if isinstance(child, ast.ClassDef):
                yield from python_spans(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            yield from ((prefix + name, child.lineno, child.end_lineno) for name in names)


@functools.lru_cache(1000)
def python_definitions(source):
    """Return [(name, start, end)] of the functions, methods, classes and values of a module."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans = python_spans(ast.parse(source))
    return [(name, starts[first - 1], starts[last]) for name, first, last in spans]


def closing(code, i):
    """Return the index of the bracket that closes the one at index i."""
    depth = 0
    for j in range(i, len(code)):
        depth += (code[j] in OPEN) - (code[j] in CLOSE)
        if depth == 0:
            return j
    raise ValueError("brackets do not close")


def find_cuda(source, name):
    """Return [(start, end)] of the definitions of a function or struct."""
    found = tokens(source, ".cu")
    code, spans = [*(token for token, _, _ in found), "", ""], []
    for i in (i for i, token in enumerate(code) if token == name):
        body = i + 1
        if code[body] == "(":
            body = closing(code, body) + 1
            body += code[body] == "const"
        if code[body] == "{":
            spans.append((found[i][1], found[closing(code, body)][2]))
    return spans


def find_function(source, name, suffix):
    """Return [(start, end)] of the definitions of that name in a source text."""
    if suffix == ".cu":
        return find_cuda(source, name)
    return [(start, end) for found, start, end in python_definitions(source) if found == name]


def find_fragment(text, fragment, suffix):
    """Return [(start, end)] of the places of a fragment in a text."""
    found, sought = tokens(text, suffix), [t for t, _, _ in tokens(fragment, suffix)]
    code, n = [token for token, _, _ in found], len(sought)
    return [
        (found[i][1], found[i + n - 1][2])
        for i in range(len(code) - n + 1)
        if code[i : i + n] == sought
    ]


def files_of(path):
    """Return the source files that a path names: itself, or those right in that folder."""
    return [path] if path.is_file() else [*sorted(path.glob("*.py")), *sorted(path.glob("*.cu"))]


def locate(root, place):
    """Return the one file and the (start, end) of the one definition that a place names.

    Parameters
    ----------
    root : Path
    place : str
        "PATH::NAME": a file or a folder below the root; a function, Class.method, class or value
        at the top of a Python file, or a function or struct of CUDA.

    Raises
    ------
    Stale
        Unless there is exactly one.
    """
    path, _, name = place.partition("::")
    found = [
        (file, span)
        for file in files_of(root / path)
        for span in find_function(file.read_text("utf-8"), name, file.suffix)
    ]
    if len(found) != 1:
        raise Stale(f"{place}: {len(found)} definitions, not one")
    return found[0]


def replace(root, place, old, new):
    """Return a file and its text with the fragment `old` of a function replaced by `new`.

    Raises
    ------
    Stale
        Unless there is exactly one such function and, in it, exactly one such fragment.
    """
    file, (start, end) = locate(root, place)
    source = file.read_text("utf-8")
    spans = find_fragment(source[start:end], old, file.suffix)
    if len(spans) != 1:
        raise Stale(f"{place}: {len(spans)} times {old!r}, not once")
    first, last = (start + i for i in spans[0])
    return file, source[:first] + new + source[last:]
