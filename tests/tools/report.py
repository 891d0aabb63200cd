"""What is checked, with results: `python -m tests.tools.report [--quick] [--gradients FILES]`.

Tables in Markdown: the worst errors of the gradient checks, what becomes of a run when things go
wrong around it (fault injection), and mutation testing. --quick injects fewer faults, and tries a
ninth of the mutants, none of them in GPU kernels. With --gradients the errors are those that a run
of pytest has written (tests/tools/registry.py). The exit code is 1 if a table says that something
is wrong.
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


def check_gradients():
    """Run the gradient checks; return their records, and lines on what failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gradients.json")
        flags = ["-q", "--slow", "-p", "tests.tools.registry", f"--gradients={path}"]
        flags += ["-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *flags, *GRADIENTS]
        done = subprocess.run(command, cwd=mutation.ROOT, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return registry.load(path), failed + lines[-1:] if done.returncode else []


def gradients(options):
    """Gradient checks: the worst relative error of each op and model by each check."""
    records, failed = [r for path in options.gradients for r in registry.load(path)], []
    if not options.gradients:
        records, failed = check_gradients()
    found = registry.table(records)
    checks = list(dict.fromkeys(itertools.chain(*found.values())))
    rows = [
        [name, *(f"{of[c][0]:.0e} < {of[c][1]:.0e}" if c in of else "" for c in checks)]
        for name, of in found.items()
    ]
    notes = [f"no check: {line}" for line in inventory.gaps(records)] + failed
    n = len({tuple(r[key] for key in registry.KEYS) for r in records})
    of_all = f"{n} gradients, {sum(r['times'] for r in records):,} checks"
    return [Table("Gradients", ["", *checks], rows, [*notes, of_all], not notes)]


def mutants(options):
    """Mutation testing: how many mutants were caught in each folder, then one by one."""
    start, mutants = time.monotonic(), mutation.all_mutants()
    if options.quick:
        mutants = [mutant for mutant in mutants if not mutant.gpu][::9]
    found = mutation.run_mutants(mutants)
    rows = [[o.mutant.place, o.mutant.name, o.verdict, describe(o)] for o in found]
    verdicts = [outcome.verdict for outcome in found]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    notes = [f"{len(found)} mutants: {counts}; {time.monotonic() - start:.0f} s"]
    right = mutation.SURVIVED not in verdicts
    return [
        Table("Mutants by folder", ["folder", "caught"], by_folder(found), notes, right),
        Table("Mutants", ["place", "bug", "", "by the test"], rows, notes, right),
    ]


def by_folder(found):
    """Return a row per folder: how many of its mutants were caught."""
    folders = {}
    for outcome in found:
        folders.setdefault(outcome.mutant.folder, []).append(outcome.verdict)
    return [
        [f"`{folder}`", f"{verdicts.count(mutation.CAUGHT)} of {len(verdicts)}"]
        for folder, verdicts in folders.items()
    ]


def describe(outcome):
    """Return the test that caught a mutant, without its parameters, or why none did."""
    caught = outcome.verdict == mutation.CAUGHT
    return f"`{outcome.mutant.test.removeprefix('tests/')}`" if caught else outcome.by


def injected_faults(options):
    """Fault injection: how often each fault was tried, what must hold, and whether it did."""
    header, start = ["fault", "trials", "what must hold", "outcome"], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = list(faults_table.rows(options.quick, Path(folder), faults.SEED))
    rows = [[row.fault, f"{row.trials:,}", row.must, row.outcome] for row in found]
    notes = [f"{row.fault}: {failure}" for row in found for failure in row.failures]
    notes.append(f"seed {faults.SEED}; {time.monotonic() - start:.0f} s")
    return [Table("Fault injection", header, rows, notes, not any(row.failures for row in found))]


# Each takes the options and returns a list of Tables.
TABLES = [gradients, injected_faults, mutants]


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
    parser.add_argument(
        "--gradients", metavar="FILE", nargs="+", default=[], help="records of gradient checks"
    )
    options, right = parser.parse_args(argv), True
    for make in TABLES:
        for table in make(options):
            print(text_of(table), flush=True)
            right = right and table.right
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
