"""A file of minigpt imports from lower floors only, whether at its top or inside a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = (
    *("embedding", "linear", "layernorm", "softmax"),
    *("dropout", "rotary", "attention", "activation", "residual", "cross_entropy"),
)
FLOORS = {
    "minigpt": -1,
    "minigpt.backend": 0,
    "minigpt.backend.pool": 0,
    "minigpt.backend.device": 0,
    "minigpt.cli": 0,
    "minigpt.interrupt": 0,
    "minigpt.lock": 0,
    "minigpt.backend.__main__": 1,
    "minigpt.ops": 1,
    **{f"minigpt.ops.{op}": 1 for op in OPS},
    "minigpt.params": 1,
    "minigpt.tokenizer": 1,
    "minigpt.corpus": 1,
    "minigpt.blocks": 2,
    "minigpt.optim": 2,
    "minigpt.schedule": 2,
    "minigpt.data": 2,
    "minigpt.dates": 2,
    "minigpt.pairs": 2,
    "minigpt.parallel": 2,
    "minigpt.muon": 3,
    "minigpt.gpt": 3,
    "minigpt.seq2seq": 3,
    "minigpt.models": 3,
    "minigpt.checkpoint": 4,
    "minigpt.decoding": 4,
    "minigpt.beam": 4,
    "minigpt.tasks": 4,
    "minigpt.recipe": 4,
    "minigpt.estimate": 4,
    "minigpt.trainer": 4,
    "minigpt.divergence": 4,
    "minigpt.folder": 4,
    "minigpt.run": 5,
    "minigpt.resume": 5,
    "minigpt.sample": 5,
    "minigpt.attention": 6,
    "minigpt.train": 6,
}
# Found by name at run time and named by nobody, so that they can be deleted, with the files that
# only they import. They may take what they share with the ops: those are complete by the time
# that one of them is first called.
FUSED = {NUMPYS := "minigpt.backend.fused_numpy", "minigpt.backend.fused_cupy"}
PARTS_OF_FUSED = {
    *(
        f"minigpt.backend.{part}_numpy"
        for part in ("activation", "residual", "rotary", "rows", "tiles")
    ),
    "minigpt.backend.kernels_cupy",
    *(
        f"minigpt.backend.{part}_{xp}"
        for part in ("attention", "optimizer", "vocabulary")
        for xp in ("numpy", "cupy")
    ),
}
WITHIN_A_FLOOR = {
    ("minigpt.backend.device", "minigpt.backend"),
    ("minigpt.trainer", "minigpt.recipe"),
    ("minigpt.ops.attention", "minigpt.ops.softmax"),
    ("minigpt.ops.attention", "minigpt.ops.dropout"),
    ("minigpt.ops.residual", "minigpt.ops.dropout"),
    ("minigpt.ops.residual", "minigpt.ops.layernorm"),
    ("minigpt.seq2seq", "minigpt.gpt"),
    ("minigpt.models", "minigpt.gpt"),
    ("minigpt.models", "minigpt.seq2seq"),
    ("minigpt.resume", "minigpt.run"),
    ("minigpt.beam", "minigpt.decoding"),
    ("minigpt.tasks", "minigpt.beam"),
}
NO_ARRAY_LIBRARY = {"minigpt.blocks", "minigpt.gpt", "minigpt.seq2seq"}


def module_name(path):
    """minigpt/ops/__init__.py -> minigpt.ops"""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path.relative_to(ROOT)): path for path in ROOT.glob("minigpt/**/*.py")}
KNOWN = FLOORS.keys() | FUSED | PARTS_OF_FUSED | MODULES.keys()


def imports(module, source, is_package=False):
    """Names of all modules that `source` imports: at any depth, relative or by import_module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            levels = node.level - is_package
            base = module.split(".")[: -levels or None] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            # `from minigpt import cli` takes a module, `from minigpt import UserError` does not.
            inside = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in KNOWN else base for name in inside)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            if getattr(called, "id", called) in ("import_module", "__import__"):
                yield node.args[0].value


def allowed(module, imported):
    """Tell whether `module` may import `imported`."""
    library = imported.split(".")[0]
    if library == "torch":
        return False
    if library in ("numpy", "cupy", "cupyx"):
        return module not in NO_ARRAY_LIBRARY and not module.startswith("minigpt.ops")
    if library != "minigpt":
        return True
    if module in FUSED | PARTS_OF_FUSED:
        shared = ("minigpt", "minigpt.backend", "minigpt.backend.pool", *PARTS_OF_FUSED)
        if module.startswith("minigpt.backend.optimizer_"):
            shared += "minigpt.params", "minigpt.optim"
        return imported in shared or imported.startswith("minigpt.ops.")
    if imported not in FLOORS:
        return False
    return FLOORS[imported] < FLOORS[module] or (module, imported) in WITHIN_A_FLOOR


def violations(module, source, is_package=False):
    """All modules that `source` imports and must not."""
    return [name for name in imports(module, source, is_package) if not allowed(module, name)]


def test_every_file_has_a_floor():
    assert {"minigpt.cli", "minigpt.ops.attention"} <= MODULES.keys()
    assert MODULES.keys() - FLOORS.keys() - FUSED - PARTS_OF_FUSED == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_come_from_lower_floors(module):
    path = MODULES[module]
    assert violations(module, path.read_text("utf-8"), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    "module, source, found",
    [
        ("minigpt.cli", "import minigpt.train", ["minigpt.train"]),
        ("minigpt.cli", "from minigpt import train", ["minigpt.train"]),
        ("minigpt.cli", "from minigpt.ops.linear import linear_forward", ["minigpt.ops.linear"]),
        ("minigpt.cli", "from minigpt.ops import linear", ["minigpt.ops.linear"]),
        ("minigpt.cli", "from . import data", ["minigpt.data"]),
        ("minigpt.cli", "from .data import main", ["minigpt.data"]),
        ("minigpt.cli", "from minigpt import UserError, gpt", ["minigpt.gpt"]),
        ("minigpt.cli", "def f():\n    from minigpt import gpt", ["minigpt.gpt"]),
        ("minigpt.cli", "if __name__ == '__main__':\n    import minigpt.gpt", ["minigpt.gpt"]),
        ("minigpt.cli", "importlib.import_module('minigpt.gpt')", ["minigpt.gpt"]),
        ("minigpt.cli", "import_module('minigpt.gpt')", ["minigpt.gpt"]),
        ("minigpt.cli", "__import__('minigpt.gpt')", ["minigpt.gpt"]),
        ("minigpt.cli", "import minigpt.unheard_of", ["minigpt.unheard_of"]),
        ("minigpt.cli", "import minigpt.cli", ["minigpt.cli"]),
        ("minigpt.optim", "import minigpt.data", ["minigpt.data"]),
        ("minigpt.ops.softmax", "import minigpt.ops.dropout", ["minigpt.ops.dropout"]),
        ("minigpt.ops.softmax", "from .dropout import keep_mask", ["minigpt.ops.dropout"]),
        ("minigpt.ops.softmax", "from .. import cli, params", ["minigpt.params"]),
        ("minigpt.ops.softmax", "from ..gpt import logits", ["minigpt.gpt"]),
        ("minigpt.ops.attention", "from minigpt.ops import linear", ["minigpt.ops.linear"]),
        ("minigpt.ops.linear", "import numpy as np", ["numpy"]),
        ("minigpt.ops.linear", "def f():\n    from cupy import cuda", ["cupy"]),
        ("minigpt.blocks", "import cupyx.scipy", ["cupyx.scipy"]),
        ("minigpt.gpt", "from numpy.linalg import norm", ["numpy.linalg"]),
        ("minigpt.seq2seq", "import numpy", ["numpy"]),
        ("minigpt.train", "import torch", ["torch"]),
        ("minigpt.train", f"import {NUMPYS}", [NUMPYS]),
        ("minigpt.backend", "from minigpt.backend import fused_numpy", [NUMPYS]),
        ("minigpt.backend.fused_cupy", "from .fused_numpy import softmax_forward", [NUMPYS]),
        ("minigpt.backend.fused_numpy", "from minigpt import cli", ["minigpt.cli"]),
        ("minigpt.backend.attention_numpy", f"import {NUMPYS}", [NUMPYS]),
        (
            "minigpt.train",
            "from minigpt.backend import attention_numpy",
            ["minigpt.backend.attention_numpy"],
        ),
        ("minigpt.backend.fused_numpy", "import minigpt.params", ["minigpt.params"]),
        ("minigpt.backend.fused_numpy", "import minigpt.gpt", ["minigpt.gpt"]),
        ("minigpt.backend.optimizer_cupy", "import minigpt.muon", ["minigpt.muon"]),
    ],
)
def test_the_checker_finds(module, source, found):
    assert violations(module, source) == found


def test_the_checker_finds_what_a_package_imports():
    assert violations("minigpt", "from . import cli", is_package=True) == ["minigpt.cli"]
    assert violations("minigpt.ops", "from .linear import x", is_package=True) == [
        "minigpt.ops.linear"
    ]
    assert violations("minigpt.backend", "from .. import UserError", is_package=True) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("minigpt.cli", "import argparse\nfrom minigpt import UserError"),
        ("minigpt.backend", "import numpy\nimportlib.import_module(name)"),
        ("minigpt.ops.attention", "from minigpt.ops.softmax import softmax_forward"),
        ("minigpt.ops.attention", "from .dropout import dropout_forward"),
        ("minigpt.ops.linear", "from minigpt.backend import overridable"),
        ("minigpt.backend.fused_cupy", "import cupy\nfrom minigpt.ops.dropout import random_words"),
        ("minigpt.backend.fused_numpy", "from minigpt.backend import array_module"),
        ("minigpt.backend.fused_numpy", "from minigpt.backend import attention_numpy, pool"),
        ("minigpt.backend.optimizer_cupy", "from minigpt import optim, params"),
        ("minigpt.parallel", "from minigpt.backend.pool import empty"),
        ("minigpt.train", "import numpy\nfrom minigpt import gpt, sample\nimport minigpt.cli"),
    ],
)
def test_the_checker_allows(module, source):
    assert violations(module, source) == []
