"""The report: its tables, from outcomes that are given here."""

import re

import pytest

from tests.tools import report
from tests.tools.faults import Row
from tests.tools.mutation import CAUGHT, NOT_TRIED, SURVIVED, Mutant, Outcome

MUTANT = Mutant("a sign", "minigpt/a::f", "+", "-", "tests/test_a.py::test_b", False)
OUTCOMES = [
    Outcome(MUTANT, CAUGHT, "test_a.py::test_b[1] - assert 0", 1.0),
    Outcome(MUTANT._replace(name="a | b"), SURVIVED, "exit code 0", 1.0),
    Outcome(MUTANT._replace(place="minigpt/c/d.cu::g"), NOT_TRIED, "needs CuPy", 0.0),
]


@pytest.fixture
def given(monkeypatch):
    """Let these be the outcomes, and the only table."""

    def given(outcomes):
        monkeypatch.setattr(report.mutation, "run_mutants", lambda mutants: outcomes)
        monkeypatch.setattr(report, "TABLES", [report.mutants])

    return given


def test_the_tables_of_mutants(given, capsys):
    given(OUTCOMES)
    assert report.main([]) == 1
    out = capsys.readouterr().out
    rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in out.splitlines()]
    assert ["`minigpt/a`", "1 of 2"] in rows and ["`minigpt/c`", "0 of 1"] in rows
    assert ["minigpt/a::f", "a sign", "caught", "`test_a.py::test_b`"] in rows
    assert ["minigpt/a::f", "a \\| b", "survived", "exit code 0"] in rows
    assert ["minigpt/c/d.cu::g", "a sign", "not tried", "needs CuPy"] in rows
    assert "3 mutants: 1 caught, 1 survived, 1 not tried; " in out


def test_what_is_not_tried_is_no_failure(given, capsys):
    given(OUTCOMES[::2])
    assert report.main(["--quick"]) == 0


@pytest.mark.parametrize("failures", [[], ["trial 1: no end"]])
def test_the_fault_table(monkeypatch, capsys, failures):
    rows = [
        Row("kill -9", 1200, "all is whole", failures),
        Row("disk", 0, "one line", [], "no mount"),
    ]
    monkeypatch.setattr(report.faults_table, "rows", lambda *args: rows)
    monkeypatch.setattr(report, "TABLES", [report.injected_faults])
    assert report.main([]) == len(failures)
    out = capsys.readouterr().out
    outcome = "1 failed: trial 1: no end" if failures else "all held"
    cells = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in out.splitlines()]
    assert ["kill -9", "1,200", "all is whole", outcome] in cells
    assert ["disk", "0", "one line", "not tried: no mount"] in cells
    assert "seed 1337; " in out and ("kill -9: trial 1: no end" in out) == bool(failures)


def test_a_table_is_aligned():
    lines = report.text_of(report.Table("T", ["a", "b"], [["1", "22222"]], ["note"], True))
    assert lines.splitlines() == [
        *("## T", "", "| a   | b     |", "| --- | ----- |", "| 1   | 22222 |", "", "note"),
    ]
