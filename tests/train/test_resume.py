"""A run that was stopped goes on as if it had not been, to the bit, or says why it cannot."""

import os
import shutil
import signal

import numpy as np
import pytest

from minigpt.files import BEST, LAST, METRICS
from minigpt.model import checkpoint
from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import LOSS_SCALE
from minigpt.train import __main__ as train
from minigpt.train.resume import resume_run
from minigpt.train.run_dir import RunFiles
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.training import EXACT, TEXT, begin, metrics, refusal, resume, same

pytestmark = pytest.mark.usefixtures("no_picture")


def interrupt(monkeypatch, step, times=1, owner=Trainer, number=signal.SIGINT):
    """Let a signal come when a step, or its update, begins; 0 being the first."""
    name = "prepare" if owner is AdamW else "step"
    original = getattr(owner, name)

    def interrupted(self, *args):
        done = self.step_count if owner is AdamW else args[1]
        for _ in range(times if done == step else 0):
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.cupy
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("owner", [Trainer, AdamW], ids=["amid a step", "amid an update"])
@pytest.mark.parametrize(
    "step", [7, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3, 10))]
)
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path, monkeypatch, backend, step, owner, times, optimizer
):
    flags = *EXACT, backend, f"--optimizer={optimizer}"
    assert begin(tmp_path / "whole", *flags) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, step, times, owner)
        assert begin(tmp_path / "parts", *flags) == 130
    done = step if owner is Trainer else step + 1
    assert checkpoint.load(tmp_path / "parts" / LAST).state["step"] == done
    assert resume(tmp_path / "parts") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    same(tmp_path / "parts", tmp_path / "whole", BEST)
    same(tmp_path / "parts", tmp_path / "whole", LAST)


def test_ended_early_and_resumed_is_uninterrupted(tmp_path):
    flags = (*EXACT, "--log-interval=3")
    assert begin(tmp_path / "whole", *flags) == 0
    assert begin(tmp_path / "parts", *flags, "--max-iters=5") == 0
    assert resume(tmp_path / "parts", "--max-iters=8") == 0
    assert resume(tmp_path / "parts", "--max-iters=12") == 0
    more = [line for line in metrics(tmp_path / "parts") if line["step"] != 5]
    assert more == metrics(tmp_path / "whole")
    one, other = (checkpoint.load(tmp_path / run / LAST) for run in ("whole", "parts"))
    np.testing.assert_array_equal(one.params.flat, other.params.flat)
    for moment in ("m", "v"):
        pair = (c.optimizer_arrays[moment].flat for c in (one, other))
        np.testing.assert_array_equal(*pair)
    assert one.state["tokens"] == other.state["tokens"] == 12 * 2 * 3 * 8


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    assert begin(tmp_path / "whole", *EXACT) == 0
    original = AdamW.step

    def killed(self, *args):
        if self.step_count == 7:
            self.step_count += 1  # the weights are those of no whole step: nothing is saved
            raise RuntimeError("killed")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "step", killed)
        with pytest.raises(RuntimeError):
            begin(tmp_path / "parts", *EXACT)
    assert [line["step"] for line in metrics(tmp_path / "parts")] == [2, 4, 6]
    with open(tmp_path / "parts" / METRICS, "a") as file:
        file.write('{"step": 8, "tok')  # as if amid a line
    assert resume(tmp_path / "parts") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    same(tmp_path / "parts", tmp_path / "whole", LAST)


@pytest.mark.parametrize("owner, name, call", [(Trainer, "evaluate", 2), (RunFiles, "log", 4)])
def test_an_evaluation_that_was_interrupted_is_made_up_for(
    tmp_path, monkeypatch, owner, name, call
):
    assert begin(tmp_path / "whole", *EXACT) == 0
    original, calls = getattr(owner, name), []

    def interrupted(self, *args):
        found = original(self, *args)
        calls.append(found)
        if len(calls) == call:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path / "parts", *EXACT)
    assert checkpoint.load(tmp_path / "parts" / LAST).state["step"] == 8
    assert resume(tmp_path / "parts") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for file in (LAST, BEST):
        same(tmp_path / "parts", tmp_path / "whole", file)


def test_an_interrupt_amid_the_update_keeps_the_old_checkpoint(folder, monkeypatch):
    before = (folder / LAST).read_bytes()

    def interrupted(optimizer, *_):
        optimizer.step_count += 1
        optimizer.params.flat[...] = 0
        raise KeyboardInterrupt

    monkeypatch.setattr("minigpt.optim.adamw.AdamW.step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resume(folder, "--max-iters=8")
    assert (folder / LAST).read_bytes() == before


def test_an_interrupt_in_the_last_step_leaves_the_evaluation_to_resume(
    tmp_path, monkeypatch, capsys
):
    assert begin(tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 11, owner=AdamW)
        assert begin(tmp_path / "run") == 130
    assert checkpoint.load(tmp_path / "run" / LAST).state["step"] == 12
    assert "--resume" in capsys.readouterr().out
    assert resume(tmp_path / "run") == 0
    assert "validation loss" in capsys.readouterr().out
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    same(tmp_path / "run", tmp_path / "whole", LAST)


def test_the_stored_options_hold_and_those_beside_resume_win(folder, monkeypatch):
    assert resume(folder, "--max-iters=6", "--batch-size=2", "--dropout=0.5") == 0
    state = checkpoint.load(folder / LAST)
    assert (state.config.dropout, state.state["train"]["batch_size"]) == (0.5, 2)
    assert state.state["train"]["learning_rate"] == 0.01
    assert state.state["tokens"] == 4 * 3 * 8 + 2 * 2 * 8
    monkeypatch.setattr("minigpt.train.config.usable_cores", lambda: 5)
    assert resume(folder, "--max-iters=7", "--n-layer=1") == 0  # its own value is no change
    state = checkpoint.load(folder / LAST).state["train"]
    assert (state["threads"], state["batch_size"], state["max_iters"]) == (2, 2, 7)


@pytest.mark.parametrize("before, scale", [("float32", 2.0**16), ("float16", 8.0)])
def test_a_loss_scale_is_found_anew_where_the_precision_is_another(
    folder, monkeypatch, before, scale
):
    monkeypatch.setattr("minigpt.train.run.check_precision", lambda *_: None)  # NumPy, too, can
    saved = checkpoint.load(folder / LAST)
    saved.state["train"]["dtype"] = before
    saved.state["optimizer"][LOSS_SCALE] = 8.0 if before == "float16" else 1.0
    monkeypatch.setattr("minigpt.train.resume.load", lambda path: saved)
    run = resume_run({"out_dir": str(folder), "dtype": "float16", "max_iters": 8})
    with Workers(1) as workers:
        run.start(workers)
    assert run.trainer.progress() == (4, 0, scale)
    assert run.state.train["dtype"] == "float16"


def test_the_number_of_threads_is_stored_even_if_not_given(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt.train.config.usable_cores", lambda: 3)
    (tmp_path / "text.txt").write_text(TEXT)
    flags = ["--n-layer=1", "--n-head=1", "--n-embd=4", "--block-size=8", "--max-iters=1"]
    train.main([f"--out-dir={tmp_path / 'run'}", f"--data={tmp_path / 'text.txt'}", *flags])
    assert checkpoint.load(tmp_path / "run" / LAST).state["train"]["threads"] == 3


OF_THE_MODEL = [
    ("--n-layer=2", "n_layer is 1"),
    ("--n-head=1", "n_head is 2"),
    ("--n-embd=16", "n_embd is 8"),
    ("--block-size=4", "block_size is 8"),
    ("--vocab-size=99", "vocab_size is "),
    ("--bias", "bias is False"),
    ("--no-tie-head", "tie_head is True"),
    ("--activation=relu", "activation is gelu"),
]


def test_a_flag_that_would_change_the_model_is_refused(folder, capsys):
    for flag, reason in OF_THE_MODEL:
        error = refusal(capsys, resume, folder, "--max-iters=8", flag)
        assert error.startswith(f"error: --resume: {reason}")
        assert "it is part of the model and cannot become" in error


def test_what_cannot_be_resumed(tmp_path, folder, capsys):
    error = refusal(capsys, resume, folder)
    assert error.endswith("complete: it is at step 4 of 4; give a larger --max-iters to train on")
    error = refusal(capsys, resume, tmp_path / "none")
    assert f"there is no {tmp_path / 'none' / LAST} to resume from; leave out --resume" in error
    assert not (tmp_path / "none").exists()
    for flag in ("--preset=lecture", "--overwrite"):
        assert "--resume keeps the run's settings: leave out" in refusal(
            capsys, resume, folder, flag
        )
    shutil.copy(folder / BEST, folder / LAST)
    error = refusal(capsys, resume, folder, "--max-iters=8")
    assert error.endswith("holds a model, but not the state of its training")
    (folder / LAST).unlink()
    error = refusal(capsys, resume, folder)
    assert error.endswith("to resume from; give --overwrite to begin")
    (folder / LAST).write_bytes((folder / BEST).read_bytes()[:-1])
    assert "damaged" in refusal(capsys, resume, folder)


def put_state(folder, state):
    """Replace the state in the last checkpoint of a run."""
    c = checkpoint.load(folder / LAST)
    optimizer = type("", (), c.optimizer_arrays)
    checkpoint.save(
        folder / LAST, c.params, c.config, tokenizer=c.tokenizer, state=state, optimizer=optimizer
    )


def test_a_checkpoint_whose_state_lacks_something_is_refused(folder, capsys):
    whole = checkpoint.load(folder / LAST).state
    for key in ("step", "loss_sum", "train", "data_sha256"):
        put_state(folder, {k: v for k, v in whole.items() if k != key})
        error = refusal(capsys, resume, folder, "--max-iters=8")
        assert error.endswith("holds a model, but not the state of its training"), key


IMPOSSIBLE = [
    ("step", "7"),
    ("step", -1),
    ("tokens", 2**63),
    ("seconds", 10**400),
    ("loss_sum", None),
    ("loss_count", True),
    ("val_loss", []),
    ("measures", {"exact_match": "x"}),
    ("best_loss", None),
    ("best_step", 1.5),
    ("text", 3),
    ("over", 0),
    ("bad", -1),
    ("optimizer", [1.0, 2.0]),
    ("optimizer", [0.5, 0, 4, 0]),
    ("optimizer", [1.0, "0", 4, 0]),
    ("train", []),
    ("train", {"max_seconds": "x"}),
    ("train", {"max_iter": 3}),
]


def test_a_checkpoint_whose_state_is_damaged_is_refused(folder, capsys):
    whole = checkpoint.load(folder / LAST).state
    for key, value in IMPOSSIBLE:
        put_state(folder, {**whole, key: value})
        error = refusal(capsys, resume, folder, "--max-iters=8")
        assert error.startswith(f"error: --resume: {folder / LAST} is damaged: "), (key, value)
        assert "take another checkpoint, or train one with" in error


def test_the_text_of_a_resumed_run(tmp_path, folder, capsys):
    text, more = tmp_path / "text.txt", "--max-iters=8"
    text.write_text(TEXT[::-1])
    error = refusal(capsys, resume, folder, more)
    assert f"was trained on {text}, but the text is now another" in error
    text.unlink()
    error = refusal(capsys, resume, folder, more)
    assert error == (
        f"error: --resume: the run was trained on {text}, but {text} is not to be found; give it "
        "by --data"
    )
    (tmp_path / "other.txt").write_text("é" + TEXT)
    error = refusal(capsys, resume, folder, more, f"--data={tmp_path / 'other.txt'}")
    assert error.startswith(f"error: --resume: the run was trained on {text}, but ")
    assert "'é'" in error and "position 0" in error


def test_another_text_has_a_best_loss_of_its_own(tmp_path, folder, monkeypatch):
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, *_: 9.0)
    assert resume(folder, "--max-iters=8", f"--data={tmp_path / 'other.txt'}") == 0
    state = checkpoint.load(folder / BEST).state
    assert (state["step"], state["best_loss"]) == (8, 9.0)
    assert state["data_name"] == str(tmp_path / "other.txt")
    assert resume(folder, "--max-iters=9") == 0  # now its own


@pytest.mark.cupy
def test_a_backend_trains_and_resumes_as_numpy_does(tmp_path, backend):
    flags = ("--dropout=0.2", "--lr-decay-iters=12", "--threads=1")
    assert begin(tmp_path / "numpy", *flags, "--max-iters=8") == 0
    assert begin(tmp_path / "other", *flags, "--max-iters=4", backend) == 0
    assert resume(tmp_path / "other", "--max-iters=8") == 0
    one, other = (metrics(tmp_path / name) for name in ("numpy", "other"))
    for expected, line in zip(one, other, strict=True):
        assert line == pytest.approx(expected, rel=1e-3)
