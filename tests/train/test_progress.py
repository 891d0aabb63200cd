"""What a run shows while it is at work."""

import re
import sys
import threading

import pytest

from minigpt.train.step import Trainer
from tests.tools.ending import at_call
from tests.tools.training import begin

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.mark.report("34")
def test_without_a_terminal_a_line_tells_how_far_it_is_at_growing_intervals(
    tmp_path, capsys, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("minigpt.train.progress.time.monotonic", lambda: now[0])
    step = Trainer.step

    def slow(self, *args):
        now[0] += 1.0
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", slow)
    assert begin(tmp_path / "run", "--max-iters=100", "--eval-interval=1000") == 0
    lines = capsys.readouterr().err.splitlines()
    pattern = r"step (\d+) of 100, loss \d\.\d{4}, [\d,]+ tokens/s, (\d:\d\d) left"
    found = [re.fullmatch(pattern, line).groups() for line in lines]
    assert found == [("10", "1:30"), ("30", "1:10"), ("70", "0:30")]


@pytest.mark.report("34")
def test_an_evaluation_and_a_run_by_the_clock_tell_how_far_they_are(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("minigpt.train.progress.time.monotonic", lambda: now[0])
    at_call(monkeypatch, Trainer, "evaluate", [1], lambda: now.__setitem__(0, 11.0))
    assert begin(tmp_path / "run", "--max-seconds=4", "--eval-interval=3", "--threads=1") == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(r"step 3, 0 of 4 s, evaluating: \d+%", first)


@pytest.mark.report("16")
def test_no_thread_of_the_bar_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    at_call(monkeypatch, Trainer, "evaluate", [1], lambda: names.extend(threading.enumerate()))
    names = []
    assert begin(tmp_path / "run", "--threads=1") == 0
    assert {thread.name for thread in names} <= {"MainThread", "lock"}
