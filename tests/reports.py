"""What people reported of programs like this one, tried on it: `python -m tests.reports`.

Each of CASES is a kind of trouble that users of nanoGPT, llm.c, transformers, fairseq, tqdm,
safetensors and others met. A test with the marker `report(case)` tries it; its name says what
holds. The command runs them all and prints a line per test, or with --table the table of
tests/README.md. With --options SECONDS it tries combinations of the options of training instead.
"""

import argparse
import collections
import sys

import pytest

CASES = {
    "1": "a learning rate below its floor",
    "2": "a picture that cannot be drawn",
    "3": "closed standard streams",
    "4": "no home folder",
    "5": "one word of two million letters",
    "6": "byte order marks",
    "7": "a pause in a run with a wall-clock budget",
    "8": "a signal during an evaluation",
    "8b": "evaluations too long for the budget",
    "9": "resuming with a smaller batch",
    "10": "duplicates and periods in pairs",
    "10b": "exact match of a part of the pairs",
    "11": "one bad line among many",
    "12": "answers that are cut off",
    "13": "a file that cannot be replaced once",
    "14": "wide characters in attention maps",
    "15": "limits on threads and processors",
    "16": "threads that cannot be started",
    "17": "training in a thread",
    "18": "many samples, large vocabularies",
    "19": "a warm-up longer than the run",
    "20": "a terminal that is closed",
    "21": "a locale that is not UTF-8",
    "22": "a cache that other users cannot read",
    "23": "line ends of other systems",
    "24": "memory for many shapes",
    "25": "reference counts of other Pythons",
    "26": "control characters in a text",
    "27": "accents that stand alone",
    "28": "values that begin with a dash",
    "29": "a best checkpoint that is gone, or of another text",
    "30": "links and read-only files",
    "31": "a picture's file format",
    "32": "locks that always or never succeed",
    "33": "characters in the validation part only",
    "34": "a log without a line",
    "35": "memory of a large text",
    "36": "a relative path, resumed from another folder",
}


class Results:
    """A plugin of pytest that runs the tests of some cases: the outcome of each, by case."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.outcomes = collections.defaultdict(dict)
        self.cases = {}

    def pytest_collection_modifyitems(self, items):
        """Note the cases of each test, and leave out those of other cases."""
        for item in items:
            cases = [case for mark in item.iter_markers("report") for case in mark.args]
            self.cases[item.nodeid] = [case for case in cases if case in self.wanted]
        items[:] = [item for item in items if self.cases[item.nodeid]]

    def pytest_runtest_logreport(self, report):
        """Note how a test, its set-up or its end came out; the worst counts."""
        name = report.nodeid.partition("[")[0]
        for case in self.cases[report.nodeid]:
            before = self.outcomes[case].get(name, "passed")
            worse = report.outcome if before != "failed" else before
            self.outcomes[case][name] = worse if report.outcome != "passed" else before


def sentence(nodeid):
    """Return what the name of a test says."""
    return nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")


def parse(argv):
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser("python -m tests.reports", description=__doc__)
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    parser.add_argument("--options", type=float, metavar="SECONDS", help="try options of training")
    parser.add_argument("cases", nargs="*", help="of CASES (default: all)", metavar="CASE")
    args = parser.parse_args(argv)
    for case in args.cases:
        if case not in CASES:
            parser.error(f"{case} is no case; choose from {', '.join(CASES)}")
    return args


def main(argv):
    """Run the tests of the cases; return the exit code."""
    args = parse(argv)
    if args.options:
        from tests.train.test_together import try_options

        trained, refused = try_options(args.options)
        print(f"{trained} runs did what was asked, {refused} were refused in one line")
        return 0
    wanted = {case: CASES[case] for case in args.cases or CASES}
    results = Results(wanted)
    quiet = ["--slow", "-m", "report", "-p", "no:terminal"]
    status = pytest.main(quiet, plugins=[results])
    for case, title in wanted.items():
        outcomes = results.outcomes.get(case, {})
        if args.table:
            held = "; ".join(map(sentence, outcomes))
            print(f"| {case} | {title} | {held} |")
            continue
        print(f"{case:>3}  {title}{'' if outcomes else ': NO TEST'}")
        for name, outcome in outcomes.items():
            print(f"       {outcome:<8} {sentence(name)}")
    missing = wanted.keys() - results.outcomes.keys()
    failed = [c for c, tests in results.outcomes.items() if "failed" in tests.values()]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} cases tried, {len(failed)} failed")
    return int(status) or bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
