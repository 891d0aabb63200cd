"""Signals that ask for an end: what they leave, and when they are obeyed."""

import signal

import pytest

from minigpt.model import checkpoint
from minigpt.optim.adamw import AdamW
from minigpt.train import __main__ as train
from minigpt.train import interrupt
from minigpt.train.run_dir import RunFiles
from minigpt.train.step import Trainer
from tests.tools.ending import at_call, check_same, contents, sending, state_of
from tests.tools.training import EXACT, begin, resume

pytestmark = pytest.mark.usefixtures("no_picture")


SIGNALS = [getattr(signal, name) for name in interrupt.ENDS if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def handlers():
    """A shell may have set signals to be ignored; and the tests' process must survive a failure."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.report("20")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("times", [1, 2])
def test_any_signal_that_asks_for_an_end_saves(tmp_path, monkeypatch, whole, number, times):
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "gradients", [12], sending(*[number] * times))
        assert begin(tmp_path / "run", *EXACT) == 128 + number
    # Once: the step is whole. Twice: it is left at once, and the one before is whole.
    assert state_of(tmp_path / "run")["step"] == (6 if times == 1 else 5)
    assert resume(tmp_path / "run") == 0
    check_same(tmp_path / "run", whole)


@pytest.mark.report("20")
@pytest.mark.parametrize("number", SIGNALS)
def test_what_the_parent_has_set_to_be_ignored_stays_ignored(tmp_path, monkeypatch, whole, number):
    signal.signal(number, signal.SIG_IGN)
    at_call(monkeypatch, Trainer, "gradients", [12, 13], sending(number))
    assert begin(tmp_path / "run", *EXACT) == 0
    assert signal.getsignal(number) == signal.SIG_IGN
    check_same(tmp_path / "run", whole)


@pytest.mark.report("8")
def test_a_step_is_left_between_two_batches(tmp_path, monkeypatch):
    at_call(monkeypatch, Trainer, "gradients", [11], sending(signal.SIGTERM))
    assert begin(tmp_path / "run", *EXACT) == 143
    assert state_of(tmp_path / "run")["step"] == 5


@pytest.mark.report("8")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("call, step", [(1, 4), (2, 8), (3, 12)])
def test_an_evaluation_is_left_between_two_batches_and_made_up_for(
    tmp_path, monkeypatch, capsys, whole, times, call, step
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signals = sending(*[signal.SIGTERM] * times)
        at_call(patch, Trainer, "evaluate", [call], signals)
        assert begin(folder, *EXACT) == 143
    state = state_of(folder)
    assert state["step"] == step and state["due"]
    told = f"stopped in the evaluation of step {step} of 12, saved; resume with\n"
    assert told in capsys.readouterr().out
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "evaluate", [1], signals)  # the one that is made up for, too
        before = contents(folder)
        assert resume(folder) == 143
        assert contents(folder) == before
    assert resume(folder) == 0
    check_same(folder, whole)


@pytest.mark.report("8")
def test_a_second_signal_does_not_cut_a_save_or_an_update(tmp_path, monkeypatch, whole):
    for owner, name, call in ((AdamW, "update", 6), (checkpoint, "header", 3)):
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            at_call(patch, owner, name, [call], sending(*[signal.SIGINT] * 3))
            if owner is checkpoint:
                at_call(patch, Trainer, "gradients", [12], sending(signal.SIGINT))
            assert begin(folder, *EXACT) == 130
        assert state_of(folder)["step"] == (3 if owner is AdamW else 6)
        assert resume(folder) == 0
        check_same(folder, whole)


@pytest.mark.report("8")
@pytest.mark.parametrize("when", ["before its picture", "as its last line is printed"])
def test_a_run_that_is_complete_is_no_failure(tmp_path, monkeypatch, capsys, whole, when):
    if when == "before its picture":
        at_call(monkeypatch, train, "draw_losses", [1], sending(signal.SIGTERM))
    else:
        at_call(monkeypatch, RunFiles, "log", [6], sending(signal.SIGTERM))
    assert begin(tmp_path / "run", *EXACT) == 0
    assert "stopped" not in capsys.readouterr().out
    check_same(tmp_path / "run", whole)


def test_what_is_told_fits_the_signal(tmp_path, monkeypatch, capfd):
    for number, told in (
        (signal.SIGINT, "finishing this batch and saving; press Ctrl-C again to quit now"),
        (signal.SIGTERM, "SIGTERM: finishing this batch and saving; a second signal quits now"),
    ):
        with monkeypatch.context() as patch:
            at_call(patch, Trainer, "gradients", [3], sending(number))
            begin(tmp_path / str(number), "--threads=1")
        assert capfd.readouterr().err == f"\n{told}\n"
