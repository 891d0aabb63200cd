"""Records of the gradient checks: what was checked, and the worst errors. A pytest plugin.

    python -m pytest -p tests.tools.registry --gradients FILE tests/ops tests/model ...

FILE receives a JSON list with an object per subject, form, input and check: its worst error, the
bound that held, and how many times it was checked. With --names-only nothing is computed, so that
the errors are 0: it tells in a moment what would be checked.
"""

import json
from pathlib import Path

KEYS = "subject", "form", "input", "check"

results = {}  # (subject, form, input, check) -> [worst error, bound, times]
names_only = False


def pytest_addoption(parser):
    parser.addoption("--gradients", metavar="FILE", help="write the worst errors to FILE")
    parser.addoption(
        "--names-only", action="store_true", help="check no gradient, only record its name"
    )


def pytest_configure(config):
    global names_only
    names_only = config.getoption("--names-only")


def pytest_sessionfinish(session):
    if path := session.config.getoption("--gradients"):
        Path(path).write_text(json.dumps(records(), indent=1), "utf-8")


def subject(backward):
    """Return the name of a backward pass here: ops.linear, blocks.mlp, gpt.loss."""
    place = backward.__module__.removeprefix("minigpt.").removeprefix("model.").partition(".")[0]
    return f"{place}.{backward.__name__.removesuffix('_backward')}"


def note(backward, form, name, check, error, bound):
    """Record a check of the gradient of input `name`."""
    key = subject(backward), form, name, check
    worst, _, times = results.get(key, (0.0, None, 0))
    results[key] = [max(worst, float(error)), bound, times + 1]


def records():
    """Return the records of the package's own backward passes, in order."""
    return [
        dict(zip(KEYS, key, strict=True), error=error, bound=bound, times=times)
        for key, (error, bound, times) in sorted(results.items())
        if not key[0].startswith("tests.")
    ]


def load(path):
    """Return the list that --gradients has written."""
    return json.loads(Path(path).read_text("utf-8"))


def table(records):
    """Return {subject: {check: (worst error, bound)}}, over all inputs and forms."""
    rows = {}
    for r in records:
        row = rows.setdefault(r["subject"], {})
        error, _ = row.get(r["check"], (0.0, None))
        row[r["check"]] = max(error, r["error"]), r["bound"]
    return rows
