"""The whole state of what is proved: `python -m tests.tools.report [--quick] [--gradients FILE]`.

Tables in Markdown: the worst errors of the gradient checks, what becomes of a run when things go
wrong around it, and the seeded faults with the tests that catch them. --quick tries those around a
run less often, and of the seeded ones a fourth, without those in the kernels for GPUs. With
--gradients the errors are those that a run of pytest has written (tests/tools/registry.py). The exit code
is 1 if a table says that something is wrong.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tests.tools.faults.table as faults_table
from tests.tools import faults, inventory, mutation, registry

GRADIENTS = (
    "tests/ops",
    *(f"tests/model/test_{name}.py" for name in ("blocks", "gpt", "encoder_decoder")),
)


class Table(NamedTuple):
    """A table of the report.

    Attributes
    ----------
    title : str
    header : list of str
    rows : list of lists of str
    notes : list of str
        Lines below it.
    right : bool
        Whether all is as it must be.
    """

    title: str
    header: list
    rows: list
    notes: list
    right: bool


def checked():
    """Run the checks of gradients; return what they have found, and lines on what failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gradients.json")
        flags = ["-q", "-p", "tests.tools.registry", f"--gradients={path}"]
        flags += ["-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *flags, *GRADIENTS]
        done = subprocess.run(command, cwd=mutation.ROOT, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return registry.load(path), failed + lines[-1:] if done.returncode else []


def gradients(options):
    """Ops and models x checks of their gradients: the worst relative error of each."""
    path = options.gradients
    records, failed = (registry.load(path), []) if path else checked()
    found = registry.table(records)
    checks = list(dict.fromkeys(itertools.chain(*found.values())))
    rows = [
        [name, *(f"{of[c][0]:.0e} < {of[c][1]:.0e}" if c in of else "" for c in checks)]
        for name, of in found.items()
    ]
    notes = [f"no check: {line}" for line in inventory.gaps(records)] + failed
    of_all = f"{len(records)} gradients, {sum(r['times'] for r in records):,} checks"
    return [Table("Gradients", ["", *checks], rows, [*notes, of_all], not notes)]


def seeded_faults(options):
    """Faults put into a copy of the source, and the tests that failed; by file, then one by one."""
    start, faults = time.monotonic(), mutation.all_faults()
    if options.quick:
        faults = [fault for fault in faults if not fault.device][::4]
    found = mutation.outcomes(faults)
    rows = [
        [o.fault.file.removeprefix("minigpt/"), o.fault.name, o.verdict, described(o)]
        for o in found
    ]
    verdicts = [outcome.verdict for outcome in found]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    notes = [f"{len(found)} faults: {counts}; {time.monotonic() - start:.0f} s"]
    right = mutation.SURVIVED not in verdicts
    return [
        Table("Seeded faults by file", ["file", "", "faults"], by_file(found), notes, right),
        Table("Seeded faults", ["file", "fault", "", "by the test"], rows, notes, right),
    ]


def by_file(found):
    """Return a row per file: how many of its faults were caught, and what they are."""
    files = {}
    for outcome in found:
        files.setdefault(outcome.fault.file.removeprefix("minigpt/"), []).append(outcome)
    return [
        [
            f"`{file}`",
            f"{sum(o.verdict == mutation.CAUGHT for o in of)} of {len(of)}",
            "; ".join(o.fault.name for o in of),
        ]
        for file, of in files.items()
    ]


def described(outcome):
    """Return the test that caught a fault, without its parameters, or why none did."""
    caught = outcome.verdict == mutation.CAUGHT
    return f"`{outcome.fault.test.removeprefix('tests/')}`" if caught else outcome.by


def what_goes_wrong(options):
    """Faults around a run: how often each was tried, what must hold, and whether it did."""
    header, start = ["fault", "trials", "what must hold", "outcome"], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = list(faults_table.rows(options.quick, Path(folder), faults.SEED))
    rows = [[row.fault, f"{row.trials:,}", row.must, row.outcome] for row in found]
    notes = [f"{row.fault}: {failure}" for row in found for failure in row.failures]
    notes.append(f"seed {faults.SEED}; {time.monotonic() - start:.0f} s")
    return [Table("Faults", header, rows, notes, not any(row.failures for row in found))]


# Each takes the options and returns a list of Tables.
TABLES = [gradients, what_goes_wrong, seeded_faults]


def text_of(table):
    """Return a table as Markdown that is aligned, too."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells)
    return "\n".join([f"## {table.title}", "", *lines, "", *table.notes, ""])


def main(argv=None):
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.report", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="try less, in some minutes")
    parser.add_argument("--gradients", metavar="FILE", help="what pytest has found of gradients")
    options, right = parser.parse_args(argv), True
    for make in TABLES:
        for table in make(options):
            print(text_of(table), flush=True)
            right = right and table.right
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
