"""`python -m tests.tools.faults [--quick] [--seed N] [WORDS]`: the rows with a word, or all."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.tools.faults import SEED
from tests.tools.faults.table import rows


def main(argv=None):
    """Try the faults and print each row as it comes; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.faults", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer trials, in a minute or two")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("words", nargs="*", metavar="WORD", help="of the names of rows")
    options, right = parser.parse_args(argv), True
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        for row in rows(options.quick, Path(folder), options.seed, options.words):
            seconds, start = time.monotonic() - start, time.monotonic()
            print(f"{row.fault}: {row.trials} trials, {seconds:.0f} s: {row.outcome}", flush=True)
            for failure in row.failures:
                print(f"    {failure}")
            right = right and not row.failures
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
