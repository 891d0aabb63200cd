"""A folder of minigpt imports from folders below it only, in a function as well as at the top.

Files at the top of the package are folders of their own here. Backend and ops are one floor: ops
ask the backend where their arrays live, and overrides complete the ops of their names.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (  # from the lowest
    ("errors",),
    ("cli",),
    ("files", "locks", "params"),
    ("backend", "ops"),
    ("data", "optim"),
    ("model",),
    ("interchange",),
    ("sample",),
    ("report",),
    ("train",),
    ("library", ""),
    ("__main__",),
)
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
TOGETHER = {"backend", "ops"}
ARRAYS = {"numpy", "cupy", "cupyx", "torch"}
REFERENCE = {"torch", "transformers", "peft", "tiktoken"}  # what tests and benches compare with


def imports(path):
    """Yield the modules that a file imports, as dotted names."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            yield from (f"{module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (x.value for x in node.args if isinstance(x, ast.Constant))


def folder_of(module):
    """Return the folder or top-level file of a dotted name: minigpt.ops.linear -> ops."""
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return first if first in FLOOR else ""


def violations(path):
    """Return what a file imports from its own floor or above, its own folder aside."""
    own = folder_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        if module.split(".")[0] == "minigpt":
            folder = folder_of(module)
            allowed = folder == own or FLOOR[folder] < FLOOR[own] or {folder, own} == TOGETHER
            if not allowed:
                yield f"{path.relative_to(ROOT)}: {module}"


def test_imports_only_go_down():
    files = sorted((ROOT / "minigpt").rglob("*.py"))
    assert len(files) > 30
    assert {path.parts[len(ROOT.parts) + 1].removesuffix(".py") for path in files} - {
        "__init__"
    } <= FLOOR.keys()
    assert [v for path in files for v in violations(path)] == []


def test_an_import_from_above_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "minigpt" / "model" / "x.py"
    path.parent.mkdir(parents=True)
    for line in (
        "import minigpt.train.run",
        "from minigpt import sample",
        "from ..report import attention",
        "def f():\n    from minigpt.train import config",
        "importlib.import_module('minigpt.train')",
        "from minigpt import Model",
    ):
        path.write_text(line)
        assert len(list(violations(path))) == 1, line
    for line in ("from minigpt.data import pairs", "from . import gpt", "import numpy"):
        path.write_text(line)
        assert list(violations(path)) == [], line


def test_the_mathematics_imports_no_array_library():
    for folder in ("ops", "model"):
        for path in (ROOT / "minigpt" / folder).glob("*.py"):
            if path.name != "checkpoint.py":
                roots = {module.partition(".")[0] for module in imports(path)}
                assert not roots & ARRAYS, path


def test_the_package_imports_nothing_that_it_is_compared_with():
    for path in (ROOT / "minigpt").rglob("*.py"):
        roots = {module.partition(".")[0] for module in imports(path)}
        assert not roots & REFERENCE, path
