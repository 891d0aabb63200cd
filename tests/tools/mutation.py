"""Mutation testing: is there a test that fails for each bug? `python -m tests.tools.mutation`.

Each mutant of mutants/ is a bug. It is put into a copy of the source, one at a time, and the test
that must catch it runs there. It is caught if that test fails: not if the test does not start, or
if Python or the compiler of the GPU kernels stops it before the check. The same tests must pass on
the source as it is. A mutant that survives is a gap in the suite.

Mutants of GPU kernels need CuPy, on a GPU or on the CPU; else they are not tried.

    python -m tests.tools.mutation [WORDS]    # try those with one of the words, or all
    python -m tests.tools.mutation --list     # show them, with a count per folder
    python -m tests.tools.mutation --stale    # show those whose function, fragment or test is gone
"""

import argparse
import ast
import collections
import contextlib
import functools
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.tools.fragments import Stale, locate, replace
from tests.tools.mutants import (
    attention_mma,
    cli,
    cpu,
    data,
    environment,
    gpu,
    interchange,
    library,
    model,
    ops,
    optim,
    page,
    places,
    product,
    ranks,
    report,
    sample,
    step,
    top,
    train,
)

GPU = (gpu, attention_mma, product)  # their tests run on CuPy
MODULES = (
    *(cli, ops, cpu, places, data, optim, model, interchange, sample, train, ranks, library),
    *(report, page, step, environment, top),
    *GPU,
)
ROOT = Path(__file__).parents[2]
PARTS = ("minigpt", "tests", "setup.cfg")
CUPY_ON_CPU = ROOT.parent / "shared" / "cupy-on-cpu" / "run.sh"
AT_ONCE = 2
LIMIT_S = 300  # for one mutant
CAUGHT, SURVIVED, NOT_TRIED = "caught", "survived", "not tried"
NOT_A_CHECK = re.compile("NameError|SyntaxError|ImportError|ModuleNotFound|do not compile")


class Mutant(NamedTuple):
    """One bug.

    Attributes
    ----------
    name : str
    place : str
        "PATH::FUNCTION", as in `fragments.locate`.
    old, new : str
        A fragment that stands once in that function, and what replaces it.
    test : str
        Node id of the test that must fail, with all its parameters or one.
    gpu : bool
        Whether the test runs on CuPy.
    """

    name: str
    place: str
    old: str
    new: str
    test: str
    gpu: bool

    @property
    def folder(self):
        """The folder of the source that it is in."""
        path = Path(self.place.partition("::")[0])
        return str(path.parent if path.suffix else path)


class Outcome(NamedTuple):
    """What became of a mutant; `by` is the test, with its parameters, that failed, or a reason."""

    mutant: Mutant
    verdict: str
    by: str
    seconds: float


def all_mutants():
    """Return all mutants, those for a GPU last."""
    return [
        Mutant(name, place, old, new, f"tests/{test}", module in GPU)
        for module in MODULES
        for place, mutants in module.MUTANTS.items()
        for name, old, new, test in mutants
    ]


@functools.cache
def tests_of(file):
    """Return the names of the tests in a file, without their parameters; none if it is gone."""
    body = ast.parse(file.read_text("utf-8")).body if file.is_file() else []
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def why_stale(mutant, root=ROOT):
    """Return what of a mutant is no longer in source or suite, or None."""
    try:
        file, (start, end) = locate(root, mutant.place)
        _, source = replace(root, mutant.place, mutant.old, mutant.new)
        if file.suffix == ".py":
            end += len(source) - len(file.read_text("utf-8"))
            ast.parse(textwrap.dedent(source[source.rfind("\n", 0, start) + 1 : end]))
    except (Stale, SyntaxError) as error:
        return str(error)
    file, _, test = mutant.test.partition("::")
    if test.partition("[")[0] not in tests_of(root / file):
        return f"no test {mutant.test}"
    return None


def copy_of_source(folder):
    """Copy what tests need into a folder."""
    ignore = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, folder / part)


@contextlib.contextmanager
def plant(mutant, folder):
    """Have the bug in the copy of the source in `folder`.

    Raises
    ------
    Stale
        If its function or fragment is not there once.
    """
    path, mutated = replace(folder, mutant.place, mutant.old, mutant.new)
    source = path.read_text("utf-8")
    path.write_text(mutated, "utf-8")
    try:
        yield
    finally:
        path.write_text(source, "utf-8")


def launcher():
    """Return what a command needs in front of it to have CuPy, or None where there is none."""
    for front in ([], [str(CUPY_ON_CPU)]):
        with contextlib.suppress(OSError):
            command = [*front, sys.executable, "-c", "import cupy; cupy.arange(3)"]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return front
    return None


def run_tests(tests, folder, front, limit_s, *flags):
    """Run tests in a copy of the source.

    Parameters
    ----------
    tests : list of node ids
    folder : Path
    front : list of str or None
        As from `launcher`, for tests on CuPy; None for tests on NumPy.
    limit_s : float
        Seconds.

    Returns
    -------
    code : int
        Exit code of pytest; -1 if it ran for too long.
    lines : {"PASSED" or "FAILED" or "ERROR": list of lines}
    """
    backend = [] if front is None else ["--backend=cupy", "-m", "cupy"]
    command = [*(front or []), sys.executable, "-m", "pytest", "-q", "--slow", "-rpfE", "--tb=no"]
    # Files of bytecode tell their source by its size and second: a mutant may change neither.
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "500"}
    process = subprocess.Popen(
        [*command, "-p", "no:cacheprovider", *backend, *flags, *tests],
        cwd=folder,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with what the tests have started
        process.communicate()
        return -1, {}
    lines = {}
    for line in out.splitlines():
        kind, _, rest = line.partition(" ")
        lines.setdefault(kind, []).append(rest)
    return process.returncode, lines


def is_of(line, test):
    """Tell whether a line of pytest's summary is of a test, with whatever parameters."""
    return line == test or line.startswith((f"{test}[", f"{test} "))


def judge(mutant, folder, front):
    """Return the Outcome of one mutant."""
    start = time.monotonic()
    front = front if mutant.gpu else None
    with plant(mutant, folder):
        code, lines = run_tests([mutant.test], folder, front, LIMIT_S, "-x")
    failed = [line for line in lines.get("FAILED", ()) if is_of(line, mutant.test)]
    verdict = SURVIVED
    if code == 1 and failed and not NOT_A_CHECK.search(failed[0]):
        verdict, by = CAUGHT, failed[0]
    elif code == -1:
        by = f"no end within {LIMIT_S} s"
    else:
        by = (failed or lines.get("ERROR") or [f"exit code {code}"])[0]
    return Outcome(mutant, verdict, by.removeprefix("tests/"), time.monotonic() - start)


def check_unmutated(mutants, folder, front):
    """Raise a RuntimeError unless all tests pass on the source as it is."""
    for on_gpu in {mutant.gpu for mutant in mutants}:
        tests = sorted({mutant.test for mutant in mutants if mutant.gpu == on_gpu})
        limit_s = LIMIT_S * len(tests)
        code, lines = run_tests(tests, folder, front if on_gpu else None, limit_s)
        passed = lines.get("PASSED", ())
        bad = [test for test in tests if not any(is_of(line, test) for line in passed)]
        bad += lines.get("FAILED", []) + lines.get("ERROR", [])
        if code or bad:
            raise RuntimeError(f"without a bug, exit code {code}; not passed: {', '.join(bad)}")


def run_mutants(mutants, report=lambda outcome: None):
    """Return the Outcome of each mutant, a few at a time; `report` is called for each."""
    front = launcher() if any(mutant.gpu for mutant in mutants) else None
    tried = [mutant for mutant in mutants if front is not None or not mutant.gpu]
    with tempfile.TemporaryDirectory() as temporary:
        copies = queue.SimpleQueue()
        for i in range(AT_ONCE):
            copy_of_source(folder := Path(temporary, str(i)))
            copies.put(folder)

        def run(mutant):
            if mutant not in tried:
                return Outcome(mutant, NOT_TRIED, "needs CuPy", 0.0)
            folder = copies.get()
            try:
                outcome = judge(mutant, folder, front)
            finally:
                copies.put(folder)
            report(outcome)
            return outcome

        check_unmutated(tried, Path(temporary, "0"), front)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(run, mutants))


def print_list(mutants):
    """Print each mutant with its test, and the table of tests/README.md."""
    for mutant in mutants:
        print(f"{mutant.place}: {mutant.name}  [{mutant.test.removeprefix('tests/')}]")
    print()
    print(*folder_table(mutants), f"All {len(mutants)}", sep="\n")


def folder_table(mutants):
    """Return the rows of a table in Markdown: how many mutants each folder has."""
    counts = collections.Counter(mutant.folder for mutant in mutants)
    return [f"| `{folder}` | {n} |" for folder, n in sorted(counts.items())]


def print_stale(mutants):
    """Print the mutants that no longer fit the source or the suite; return how many."""
    stale = [(mutant, why) for mutant in mutants if (why := why_stale(mutant))]
    for mutant, why in stale:
        print(f"{mutant.name}: {why}")
    print(f"{len(stale)} of {len(mutants)} are stale")
    return len(stale)


def print_outcome(outcome):
    """Print a line for an Outcome."""
    mutant, verdict, by, seconds = outcome
    print(f"{verdict:9} {seconds:5.1f} s  {mutant.place}: {mutant.name}  [{by}]", flush=True)


def main(argv=None):
    """Try the mutants whose place, name or test has one of the words, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.mutation", description=main.__doc__
    )
    parser.add_argument("--list", action="store_true", help="show them instead")
    parser.add_argument("--stale", action="store_true", help="show those that fit no more instead")
    parser.add_argument("words", nargs="*", metavar="WORD")
    options = parser.parse_args(argv)
    mutants = [
        mutant
        for mutant in all_mutants()
        if not options.words
        or any(word in mutant.place + mutant.name + mutant.test for word in options.words)
    ]
    if options.list or options.stale:
        return int(bool(print_stale(mutants) if options.stale else print_list(mutants)))
    found = [outcome.verdict for outcome in run_mutants(mutants, print_outcome)]
    print(", ".join(f"{found.count(v)} {v}" for v in (CAUGHT, SURVIVED, NOT_TRIED)))
    return int(SURVIVED in found)


if __name__ == "__main__":
    sys.exit(main())
