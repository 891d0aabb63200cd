"""The clock of a run: pauses do not count, and no evaluation eats up a budget."""

import itertools

import numpy as np
import pytest

from minigpt.files import LAST
from minigpt.model import checkpoint
from minigpt.optim.schedule import weight_decay
from minigpt.train.clock import LEAST, Clock
from minigpt.train.config import TrainConfig
from minigpt.train.run import Run
from minigpt.train.step import Trainer
from minigpt.train.validation import Validation
from tests.tools.training import begin, metrics, resume

pytestmark = pytest.mark.usefixtures("no_picture")


def slow(monkeypatch, clock, name, seconds):
    """Let the calls of a method of Trainer take the seconds of an iterator, of their number."""
    right, calls = getattr(Trainer, name), itertools.count()

    def called(self, *args, **kwargs):
        clock.now += seconds(next(calls))
        return right(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, name, called)


def rates(folder):
    """The learning rates of all steps."""
    return [line["learning_rate"] for line in metrics(folder) if "learning_rate" in line]


BY_CLOCK = ("--log-interval=1", "--eval-interval=1000000", "--min-lr=0", "--lr-schedule=wsd")


def test_a_lap_counts_as_long_as_it_is_usual(clock):
    clock.reading = 0.0
    this = Clock(5.0, -2.0)
    assert this.lap() == 0 and this.seconds == 7 and this.step_s is None
    for _ in range(LEAST):
        clock.now += 100
        assert this.steps(10) == 0
    assert this.step_s == 10 and this.seconds == 307
    clock.now += 50
    assert this.steps(1) == 0 and this.seconds == 357
    clock.now += 1000
    assert this.steps(1) == 990 and this.seconds == 367
    clock.now += 8
    assert this.peek() == 375 and this.lap(1.0) == 0 and this.seconds == 375
    clock.now += 12
    assert this.lap(1.0) == 11 and this.seconds == 376


def test_a_clock_gets_used_to_slow_steps(clock):
    clock.reading, this = 0.0, Clock(0.0, 0.0)
    for seconds in (*[0.1] * 20, *[5.0] * 30):
        clock.now += seconds
        this.steps(1)
    assert this.step_s == 5 and 100 < this.seconds < 152  # at most ten of them were left out


@pytest.mark.report("7")
@pytest.mark.parametrize("pause", [30, 60])
def test_a_pause_takes_no_part_of_the_decay(tmp_path, monkeypatch, clock, capsys, pause):
    slow(monkeypatch, clock, "step", lambda i: 0.1 + 8.0 * (i == pause))
    assert begin(tmp_path / "run", *BY_CLOCK, "--max-seconds=9") == 0
    found = rates(tmp_path / "run")
    assert len(found) > 60 and found[-1] < 0.05 * max(found) and max(found) == 0.01
    assert np.abs(np.diff(found[10:])).max() < 0.0006
    assert (
        "note: a pause of 8.0 s, which does not count as training time" in capsys.readouterr().err
    )
    assert 6.5 < clock.now - 8 < 9


@pytest.mark.report("8b")
@pytest.mark.parametrize("step_s, part", [(0.05, False), (0.5, True)])
def test_evaluations_fit_the_budget(tmp_path, monkeypatch, clock, capsys, step_s, part):
    """A step is of 24 tokens, the validation split has 199; evaluation is twice as fast."""
    slow(monkeypatch, clock, "step", lambda i: step_s)
    right = Trainer.evaluate

    def evaluate(self, split, which=None, *args):
        found = right(self, split, which, *args)
        clock.now += self.evaluated * step_s / 48
        return found

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    flags = (*BY_CLOCK, "--max-seconds=20", f"--eval-interval={5 / step_s:.0f}")
    assert begin(tmp_path / "run", *flags) == 0
    lines, err = metrics(tmp_path / "run"), capsys.readouterr().err
    found = rates(tmp_path / "run")
    assert len(found) > 13 / step_s and found[-1] < 0.15 * max(found)
    assert np.abs(np.diff(found[5:])).max() < 0.3 * max(found)
    assert 17 < clock.now < 20.5
    assert ("evaluations take about" in err and "5% of --max-seconds" in err) == part
    assert ["whole_val_loss" in line for line in lines[-2:]] == [False, part]
    assert sum("val_loss" in line for line in lines) >= 3


@pytest.mark.report("8b")
def test_no_evaluation_is_followed_by_that_at_the_end_at_once(tmp_path, monkeypatch, clock):
    slow(monkeypatch, clock, "step", lambda i: 1.0)
    slow(monkeypatch, clock, "evaluate", lambda i: 2.0)
    assert begin(tmp_path / "run", *BY_CLOCK, "--max-seconds=30", "--eval-interval=1") == 0
    steps = [line["step"] for line in metrics(tmp_path / "run") if "val_loss" in line]
    assert steps[:3] == [1, 2, 3] and steps[-1] - steps[-2] == 2


@pytest.mark.report("8b")
def test_a_budget_for_a_few_steps_says_that_the_decay_is_missing(
    tmp_path, monkeypatch, clock, capsys
):
    slow(monkeypatch, clock, "step", lambda i: 2.0)
    assert begin(tmp_path / "run", *BY_CLOCK, "--max-seconds=7") == 0
    assert "note: the time was enough for 2 steps only" in capsys.readouterr().err


def test_reading_the_data_is_part_of_the_budget(tmp_path, monkeypatch, clock):
    start = Run.start

    def late(self, workers):
        clock.now += 6.0
        start(self, workers)

    monkeypatch.setattr(Run, "start", late)
    slow(monkeypatch, clock, "step", lambda i: 0.1)
    assert begin(tmp_path / "run", *BY_CLOCK, "--max-seconds=10") == 0
    assert 15 < len(rates(tmp_path / "run")) < 30 and rates(tmp_path / "run")[-1] < 0.001


def test_an_even_part_is_evaluated_on_the_way_and_the_whole_split_at_the_end(tmp_path, capsys):
    assert begin(tmp_path / "whole", "--eval-tokens=0") == 0
    assert begin(tmp_path / "part", "--eval-tokens=100") == 0
    (*_, whole), (*_, part, rest) = metrics(tmp_path / "whole"), metrics(tmp_path / "part")
    assert whole["train_loss"] == part["train_loss"] and whole["val_loss"] != part["val_loss"]
    assert rest["whole_val_loss"] == pytest.approx(whole["val_loss"], rel=1e-6)
    out, err = capsys.readouterr()
    assert "note: evaluations take about 100 of 199 tokens" in err and "--eval-tokens" in err
    assert f"{whole['val_loss']:.4f} (last, whole split)" in out
    state = checkpoint.load(tmp_path / "part" / LAST).state
    assert (state["eval_targets"], state["val_loss"]) == (100, part["val_loss"])


def test_a_part_is_chosen_once():
    this = Validation(1000, 64_000, TrainConfig(eval_tokens=6400))
    assert this.which is None and "6,400 of 64,000 tokens" in this.choose(100.0)
    assert this.which.tolist() == list(range(0, 1000, 10)) and this.choose(1.0) is None
    assert sorted([*this.which, *this.rest]) == list(range(1000))
    whole = Validation(1000, 64_000, TrainConfig(eval_tokens=0))
    assert whole.choose(1.0) is None and whole.which is None
    timed = Validation(1000, 64_000, TrainConfig(max_seconds=100.0))
    assert "320 of 64,000 tokens" in timed.choose(32.0)
    assert timed.seconds(32.0) == (5.0, 0.0)  # the rest would take 995 s
    again = Validation(1000, 64_000, TrainConfig(max_seconds=100.0), 320)
    assert again.which.tolist() == timed.which.tolist() and again.choose(1e9) is None


def test_a_run_whose_evaluations_took_the_whole_split_takes_it_whole_when_resumed(
    tmp_path, monkeypatch, clock, capsys
):
    """On a machine that has become slow: a part would be all that there is time for."""
    with monkeypatch.context() as patch:
        slow(patch, clock, "step", lambda i: 0.05)
        assert begin(tmp_path / "run", *BY_CLOCK, "--max-seconds=20") == 0
    assert checkpoint.load(tmp_path / "run" / LAST).state["eval_targets"] == 199
    slow(monkeypatch, clock, "step", lambda i: 2.0)
    assert resume(tmp_path / "run", "--max-seconds=40") == 0
    assert checkpoint.load(tmp_path / "run" / LAST).state["eval_targets"] == 199
    assert "evaluations take about" not in capsys.readouterr().err


def test_weight_decay_follows_the_passes_that_the_time_allows(tmp_path, monkeypatch, clock):
    """A step is of 3 windows of 225; halfway the machine becomes half as fast."""
    slow(monkeypatch, clock, "step", lambda i: 0.1 if i < 80 else 0.2)
    flags = *BY_CLOCK, "--weight-decay=auto", "--max-seconds=20"
    assert begin(tmp_path / "run", *flags) == 0
    lines = [line for line in metrics(tmp_path / "run") if "weight_decay" in line]
    found = np.array([line["weight_decay"] for line in lines])
    made = weight_decay(len(found) * 3 / 225, 3 / 225, 0.01)
    steady = weight_decay(180 * 3 / 225, 3 / 225, 0.01)
    assert found[0] == 0 and 120 < len(found) < 145
    np.testing.assert_allclose(found[20:80], steady, rtol=0.1)
    assert np.all(np.diff(found[80:]) < 0) and found[-1] == pytest.approx(made, rel=0.02)


def test_a_resumed_run_by_the_clock_knows_how_far_it_is(tmp_path, monkeypatch, clock):
    slow(monkeypatch, clock, "step", lambda i: 0.1)
    flags = *BY_CLOCK, "--weight-decay=auto", "--max-seconds=10"
    assert begin(tmp_path / "run", *flags) == 0
    clock.now += 1000.0
    assert resume(tmp_path / "run", "--max-seconds=20") == 0
    found = [line["weight_decay"] for line in metrics(tmp_path / "run") if "weight_decay" in line]
    first, second = found[60], found[-60]
    assert 1.3 < second / first < 1.6 and max(found) < 1.2 * second  # twice as long: sqrt(2)
