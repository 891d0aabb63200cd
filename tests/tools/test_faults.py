"""Fault injection: a few trials of each kind, and whether a failure would be noticed."""

import os
import random
import subprocess
import sys
import time

import pytest

from minigpt.errors import UserError
from minigpt.files import BEST, LAST, METRICS
from minigpt.train import __main__ as train
from tests.tools.faults import SEED, Row, command, corruption, damage, interruptions, numbers
from tests.tools.faults.__main__ import main
from tests.tools.faults.judge import MEMORY, Judge

MOST = 10  # seconds that a command may take in these tests


@pytest.fixture(scope="session")
def expected(tmp_path_factory):
    """The run that nobody stops."""
    return interruptions.Uninterrupted(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def judge():
    return Judge()


@pytest.mark.slow
@pytest.mark.parametrize("row", [interruptions.kill, interruptions.two_runs])
def test_a_run_that_is_killed_or_not_alone_loses_nothing(tmp_path, expected, row):
    assert row(1, tmp_path, expected, SEED).failures == []


@pytest.mark.slow
def test_numbers_that_are_not_finite(tmp_path):
    assert numbers.not_finite(3, tmp_path, None, SEED).failures == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", corruption.KINDS)
def test_damaged_files_and_senseless_input(tmp_path, kind):
    row = corruption.row(kind, 10, tmp_path, None, SEED)
    assert row.failures == [] and not row.note.startswith("0 ")


@pytest.fixture
def runs(tmp_path):
    """Two files of a tiny GPT's run and of an encoder-decoder's, as bytes."""
    folders = corruption.good_runs(tmp_path)
    return [(folder / name).read_bytes() for folder in folders for name in (LAST, BEST)]


@pytest.mark.slow
@pytest.mark.parametrize("way", {*damage.CHECKPOINTS, *damage.TABLES}, ids=lambda way: way.__name__)
def test_a_way_to_damage_a_file_mostly_does(runs, way):
    rng = random.Random(0)
    made = [way(runs[0], runs[1:], rng) for _ in range(20)]
    assert sum(raw != runs[0] for raw in made) > 15
    assert made == [way(runs[0], runs[1:], rng) for rng in [random.Random(0)] for _ in range(20)]


@pytest.mark.slow
def test_a_run_that_ends_otherwise_is_noticed(tmp_path, expected):
    folder = tmp_path / "run"
    code, err = command.ended(command.begin(tmp_path, "run"))
    assert (code, err) == (0, "") and command.whole(folder) is None
    other = {**expected.contents, METRICS: []}
    assert "does not end as" in command.gone_on(tmp_path, "run", other)
    raw = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(raw[:-1])
    assert "damaged" in command.gone_on(tmp_path, "run", expected.contents)
    (folder / LAST).unlink()
    assert command.gone_on(tmp_path, "run", expected.contents) is None  # begun anew


def raising(error):
    def main(argv):
        raise error

    return main


def said(text, code):
    def main(argv):
        print(text, file=sys.stderr)
        return code

    return main


def executing(text):
    return lambda argv: exec(text)


@pytest.mark.parametrize(
    "main, reason",
    [
        (raising(UserError("text.txt: empty")), None),
        (said("", 0), None),
        (lambda argv: train.main(["--n-layers=3"]), None),
        (raising(TypeError("a fault")), "TypeError: a fault"),
        (raising(RecursionError()), "RecursionError"),
        (raising(MemoryError()), "out of memory"),
        (said("error: one\nerror: two", 2), "error: one\nerror: two"),
        (said("no reason", 2), "no reason"),
        (said("", 3), "exit code 3"),
        (executing("1 + 1"), "executed"),
        (lambda argv: os.system("true"), "executed"),
        (lambda argv: subprocess.run(["true"]) and None, "executed"),
    ],
)
def test_what_counts_as_clean(judge, main, reason):
    fault = judge(main, [])
    assert fault is None if reason is None else reason in fault


@pytest.mark.slow
def test_a_command_that_hangs_is_ended(judge, monkeypatch):
    monkeypatch.setattr("tests.tools.faults.judge.LIMIT_S", 0.1)
    start = time.monotonic()
    assert "no end within 0.1 s" in judge(lambda argv: time.sleep(MOST), [])
    assert time.monotonic() - start < MOST / 2


@pytest.mark.slow
def test_memory_is_limited():
    program = f"""if True:
        from tests.tools.faults.judge import Judge
        judge = Judge()
        judge.confine()
        assert judge(lambda argv: bytearray(2**20) and None, []) is None
        assert "out of memory" in judge(lambda argv: bytearray({2 * MEMORY}), [])
    """
    subprocess.run([sys.executable, "-c", program], cwd=command.ROOT, check=True)


def test_the_command_prints_rows_and_failures(monkeypatch, capsys):
    found = [
        Row("a", 3, "this", []),
        Row("b", 2, "that", ["trial 1: no", "trial 2: nor"], "note"),
        Row("c", 0, "that", [], "no disk"),
    ]
    monkeypatch.setattr("tests.tools.faults.__main__.rows", lambda *args: found)
    assert main(["--quick"]) == 1
    out = capsys.readouterr().out
    assert "seed 1337\na: 3 trials, 0 s: all held\n" in out
    assert "b: 2 trials, 0 s: 2 failed: trial 1: no; note\n    trial 1: no\n" in out
    assert "c: 0 trials, 0 s: not tried: no disk\n" in out
    found[1] = found[0]
    assert main([]) == 0
