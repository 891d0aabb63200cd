"""What people reported of programs like this one, tried on it: `python -m tests.reports`.

Each of CASES is a kind of trouble that users of nanoGPT, llm.c, transformers, fairseq, tqdm,
safetensors and others met, and what holds here. A test with the marker `report(case)` tries it and
its siblings. The command runs them all and prints a line per test, or with --table the table of
tests/README.md. With --options SECONDS it tries combinations of the options of training instead.
"""

import argparse
import collections
import sys

import pytest

CASES = {
    "1": (
        "a learning rate below its floor",
        "it follows; options that contradict each other are one line",
    ),
    "2": (
        "a picture that cannot be drawn",
        "whatever matplotlib raises: no picture, its reason, all else as usual",
    ),
    "3": (
        "closed standard streams",
        "closed or full streams end no run before it is saved; exit codes are the ordinary ones",
    ),
    "4": (
        "no home folder",
        "no folder named ~ or beside the work; nothing is kept where there is no home",
    ),
    "5": (
        "one word of two million letters",
        "`minigpt data` prints a bounded page of any text",
    ),
    "6": (
        "byte order marks",
        "marks in front are dropped wherever text comes in, others are named; UTF-16 is named",
    ),
    "7": (
        "a pause in a run with a wall-clock budget",
        "it does not count, and is said; the decay is whole",
    ),
    "8": (
        "a signal during an evaluation",
        "the evaluation is cut, the run saved, and --resume makes up for it",
    ),
    "8b": (
        "evaluations too long for the budget",
        "evaluations take an even part that fits; the decay is whole, and the time holds",
    ),
    "9": (
        "resuming with a smaller batch",
        "the data go on where they were",
    ),
    "10": (
        "duplicates and periods in pairs",
        "equal sources are on one side; the split does not follow the file's order",
    ),
    "10b": (
        "exact match of a part of the pairs",
        "pairs are drawn evenly, and it is said of how many",
    ),
    "11": (
        "one bad line among many",
        "as many answers as lines, in order; bad ones are named, exit code 2",
    ),
    "12": (
        "answers that are cut off",
        "they are named on standard error; so is a stop string that never came",
    ),
    "13": (
        "a file that cannot be replaced once",
        "it is tried again; in mid-run a save that fails is a warning",
    ),
    "14": (
        "wide characters in attention maps",
        "names stand over their columns in any terminal",
    ),
    "15": (
        "limits on threads and processors",
        "affinity, quotas and the variables of others are limits; --threads wins",
    ),
    "16": (
        "threads that cannot be started",
        "one line that says how many to ask for; nothing is lost",
    ),
    "17": (
        "training in a thread",
        "it works, and an old run stays until the new one has a checkpoint",
    ),
    "18": (
        "many samples, large vocabularies",
        "memory is bounded; a beam that cannot fit is refused",
    ),
    "19": (
        "a warm-up longer than the run",
        "it follows, or is refused in one line",
    ),
    "20": (
        "a terminal that is closed",
        "the run is saved; what was set to be ignored stays ignored",
    ),
    "21": (
        "a locale that is not UTF-8",
        "output and arguments are UTF-8",
    ),
    "22": (
        "a cache that other users cannot read",
        "files have the permissions of the user's other files",
    ),
    "23": (
        "line ends of other systems",
        "they are handled, or named",
    ),
    "24": (
        "memory for many shapes",
        "the pool takes what the largest shape needs, and --dry-run counts it",
    ),
    "25": (
        "reference counts of other Pythons",
        "a buffer is free by what this Python counts",
    ),
    "26": (
        "control characters in a text",
        "a terminal is shown escapes, a pipe the text itself",
    ),
    "27": (
        "accents that stand alone",
        "they are shown as escapes, with the form that is known",
    ),
    "28": (
        "values that begin with a dash",
        "they are values; hints can be pasted",
    ),
    "29": (
        "a best checkpoint that is gone, or of another text",
        "the record is that of the file; the best of another text is not sampled",
    ),
    "30": (
        "links and read-only files",
        "links stay; what is marked read-only is found before any work",
    ),
    "31": (
        "a picture's file format",
        "by the ending of its name; what cannot be is said before the work",
    ),
    "32": (
        "locks that always or never succeed",
        "a second run is refused, a dead one blocks nothing",
    ),
    "33": (
        "characters in the validation part only",
        "they are named",
    ),
    "34": (
        "a log without a line",
        "a line at growing intervals",
    ),
    "35": (
        "memory of a large text",
        "at most 6 bytes a character, and advice that fits the cause",
    ),
    "36": (
        "a relative path, resumed from another folder",
        "it is found from there, or the folder that it was relative to is named",
    ),
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


def table():
    """Return the lines of the table in tests/README.md."""
    head = ["| case | what people met | what holds |", "| --- | --- | --- |"]
    return head + [f"| {case} | {title} | {held} |" for case, (title, held) in CASES.items()]


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
    if args.table:
        print("\n".join(table()))
        return 0
    if args.options:
        from tests.train.test_together import try_options

        trained, refused = try_options(args.options)
        print(f"{trained} runs did what was asked, {refused} were refused in one line")
        return 0
    wanted = {case: CASES[case] for case in args.cases or CASES}
    results = Results(wanted)
    quiet = ["--slow", "-m", "report", "-p", "no:terminal"]
    status = pytest.main(quiet, plugins=[results])
    for case, (title, held) in wanted.items():
        outcomes = results.outcomes.get(case, {})
        print(f"{case:>3}  {title}: {held if outcomes else 'NO TEST'}")
        for name, outcome in outcomes.items():
            print(f"       {outcome:<8} {sentence(name)}")
    missing = wanted.keys() - results.outcomes.keys()
    failed = [c for c, tests in results.outcomes.items() if "failed" in tests.values()]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} cases tried, {len(failed)} failed")
    return int(status) or bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
