"""Seeded faults: is there a test for each that fails? `python -m tests.tools.mutation [WORDS]`.

Each fault of mutants/ is put into a copy of the source, one at a time, and the test that must
catch it runs there. It is caught if that test fails: not if it does not start, or if what fails is
Python or the compiler of the kernels and not the check. The same tests must pass on the source as
it is. What stays unnoticed is a gap in the suite.

Faults in the kernels for GPUs need CuPy, on a device or on the CPU; else they are not tried.
"""

import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.tools.mutants import device, fused, models, ops, program, training

ROOT = Path(__file__).parents[2]
PARTS = ("minigpt", "tests", "setup.cfg")
CUPY_ON_CPU = ROOT.parent / "shared" / "cupy-on-cpu" / "run.sh"
AT_ONCE = 2
LIMIT_S = 300  # for one fault
CAUGHT, SURVIVED, NOT_TRIED = "caught", "survived", "not tried"
NOT_A_CHECK = re.compile("NameError|SyntaxError|ImportError|ModuleNotFound|do not compile")


class Fault(NamedTuple):
    """One fault.

    Attributes
    ----------
    name, file : str
    old, new : str
        Text that stands once in the file, and what is put there.
    test : str
        Node id, with all its parameters or one.
    device : bool
        Whether the test runs on CuPy.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    device: bool


class Outcome(NamedTuple):
    """What became of a fault; `by` is the test, with its parameters, that failed, or a reason."""

    fault: Fault
    verdict: str
    by: str
    seconds: float


def all_faults():
    """Return all faults, those for a device last."""
    return [
        Fault(name, file, old, new, f"tests/{test}", module is device)
        for module in (ops, fused, models, training, program, device)
        for file, faults in module.FAULTS.items()
        for name, old, new, test in faults
    ]


def copy_of_source(folder):
    """Copy what tests need into a folder."""
    ignore = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, folder / part)


@contextlib.contextmanager
def planted(fault, folder):
    """Have the fault in the copy of the source in `folder`.

    Raises
    ------
    ValueError
        If its old text is not there once: the list is stale.
    """
    path = folder / fault.file
    source = path.read_text("utf-8")
    if source.count(fault.old) != 1:
        raise ValueError(f"{fault.file}: {source.count(fault.old)} times {fault.old!r}, not once")
    path.write_text(source.replace(fault.old, fault.new), "utf-8")
    try:
        yield
    finally:
        path.write_text(source, "utf-8")


def launcher():
    """Return what a command needs in front of it to have CuPy, or None if nothing helps."""
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
    command = [*(front or []), sys.executable, "-m", "pytest", "-q", "-rpfE", "--tb=no"]
    # Files of bytecode tell their source by its size and second: a fault may change neither.
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


def judge(fault, folder, front):
    """Return the Outcome of one fault."""
    start = time.monotonic()
    front = front if fault.device else None
    with planted(fault, folder):
        code, lines = run_tests([fault.test], folder, front, LIMIT_S, "-x")
    failed = [line for line in lines.get("FAILED", ()) if is_of(line, fault.test)]
    verdict = SURVIVED
    if code == 1 and failed and not NOT_A_CHECK.search(failed[0]):
        verdict, by = CAUGHT, failed[0]
    elif code == -1:
        by = f"no end within {LIMIT_S} s"
    else:
        by = (failed or lines.get("ERROR") or [f"exit code {code}"])[0]
    return Outcome(fault, verdict, by.removeprefix("tests/"), time.monotonic() - start)


def check_unmutated(faults, folder, front):
    """Raise a RuntimeError unless all tests pass on the source as it is."""
    for on_device in {fault.device for fault in faults}:
        tests = sorted({fault.test for fault in faults if fault.device == on_device})
        limit_s = LIMIT_S * len(tests)
        code, lines = run_tests(tests, folder, front if on_device else None, limit_s)
        passed = lines.get("PASSED", ())
        bad = [test for test in tests if not any(is_of(line, test) for line in passed)]
        bad += lines.get("FAILED", []) + lines.get("ERROR", [])
        if code or bad:
            raise RuntimeError(f"without a fault, exit code {code}; not passed: {', '.join(bad)}")


def outcomes(faults, told=lambda outcome: None):
    """Return the Outcome of each fault, a few at a time; `told` hears of each as it comes."""
    front = launcher() if any(fault.device for fault in faults) else None
    tried = [fault for fault in faults if front is not None or not fault.device]
    with tempfile.TemporaryDirectory() as temporary:
        copies = queue.SimpleQueue()
        for i in range(AT_ONCE):
            copy_of_source(folder := Path(temporary, str(i)))
            copies.put(folder)

        def one(fault):
            if fault not in tried:
                return Outcome(fault, NOT_TRIED, "needs CuPy", 0.0)
            folder = copies.get()
            try:
                outcome = judge(fault, folder, front)
            finally:
                copies.put(folder)
            told(outcome)
            return outcome

        check_unmutated(tried, Path(temporary, "0"), front)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, faults))


def main(words):
    """Try the faults whose file or name has one of the words, or all; return the exit code."""
    faults = [f for f in all_faults() if not words or any(w in f.file + f.name for w in words)]

    def told(outcome):
        fault, verdict, by, seconds = outcome
        print(f"{verdict:9} {seconds:5.1f} s  {fault.file}: {fault.name}  [{by}]", flush=True)

    found = [outcome.verdict for outcome in outcomes(faults, told)]
    print(", ".join(f"{found.count(v)} {v}" for v in (CAUGHT, SURVIVED, NOT_TRIED)))
    return int(SURVIVED in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
