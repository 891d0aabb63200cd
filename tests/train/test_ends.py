"""Whatever ends a run, what it has in memory is saved first; and what is in the way for a moment,
or cannot be written, ends no run."""

import contextlib
import itertools
import os
import re
import signal
import sys
import threading

import pytest

import minigpt
from minigpt import cli
from minigpt.files import BEST, LAST, METRICS
from minigpt.files import RUN_FILES as FILES
from minigpt.optim.adamw import AdamW
from minigpt.train import __main__ as train
from minigpt.train.progress import Lines
from minigpt.train.run import Run
from minigpt.train.run_dir import RunFiles
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.ending import at_call, check_same, contents, raising, sending, state_of
from tests.tools.training import EXACT, begin, metrics, resume

pytestmark = pytest.mark.usefixtures("no_picture")

FULL = OSError(28, "No space left on device")


@pytest.mark.report("13")
@pytest.mark.parametrize(
    "owner, name, call, step",
    [
        (Trainer, "gradients", 14, 6),  # amid a step: two batches each
        (Trainer, "evaluate", 2, 8),
        (Run, "save", 3, 8),
        (RunFiles, "log", 4, 8),
        (Lines, "step", 6, 6),
    ],
)
@pytest.mark.parametrize("error", [MemoryError("no more"), RuntimeError("odd"), OSError(5, "I/O")])
def test_an_error_is_reported_after_saving_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys, whole, owner, name, call, step, error
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises((RuntimeError, SystemExit)) as ended:
        at_call(patch, owner, name, [call], raising(error))
        cli.run(lambda: begin(folder, *EXACT))
    if ended.type is SystemExit:
        note, last = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and last.startswith("error: ")
        command = f"python -m minigpt.train --resume --out-dir {folder}"
        assert note.endswith(f" step {step} of 12, saved; resume with {command}")
    assert state_of(folder)["step"] == step
    assert resume(folder) == 0
    check_same(folder, whole)


def test_weights_amid_an_update_are_not_saved(tmp_path, monkeypatch, capsys):
    at_call(monkeypatch, AdamW, "update", [14], raising(FULL))
    with pytest.raises(OSError):
        begin(tmp_path / "run")
    assert state_of(tmp_path / "run")["step"] == 4
    told = "note: stopped at step 6 of 12, step 4 is saved; resume with python"
    assert told in capsys.readouterr().err


@pytest.mark.report("13")
@pytest.mark.parametrize("name", [LAST, BEST, METRICS])
def test_a_file_that_cannot_be_replaced_once_is_tried_again(tmp_path, monkeypatch, whole, name):
    failures = iter([PermissionError(13, "Access is denied")])
    replace = os.replace

    def once(source, target):
        if str(target).endswith(name):
            for failure in failures:
                raise failure
        replace(source, target)

    monkeypatch.setattr("minigpt.files.os.replace", once)
    if name == METRICS:  # it is replaced where a run is resumed
        begin(tmp_path / "run", *EXACT, "--max-iters=4")
        assert resume(tmp_path / "run", "--max-iters=12") == 0
    else:
        assert begin(tmp_path / "run", *EXACT) == 0
    assert list(failures) == []
    check_same(tmp_path / "run", whole)


def failing(monkeypatch, name, most):
    """Let the first writes of a file of a run fail, each try of them."""
    replace, append, count = os.replace, minigpt.files.append, itertools.count(1)

    def failing_replace(source, target):
        if str(target).endswith(name) and next(count) <= 4 * most:
            raise FULL
        replace(source, target)

    def failing_append(path, text):
        if name == METRICS and next(count) <= most:
            raise FULL
        append(path, text)

    monkeypatch.setattr("minigpt.files.os.replace", failing_replace)
    monkeypatch.setattr("minigpt.train.run_dir.append", failing_append)


@pytest.mark.report("13")
@pytest.mark.parametrize("name", [LAST, BEST, METRICS])
def test_what_cannot_be_written_amid_a_run_is_a_note(tmp_path, monkeypatch, capsys, whole, name):
    folder = tmp_path / "run"
    failing(monkeypatch, name, 2)
    assert begin(folder, *EXACT) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == (1 if name == METRICS else 2)  # of lines it is said once
    assert all(note.startswith(f"note: {folder / name}: cann") for note in notes)
    assert all("No space left on device; " in note for note in notes)
    check_same(folder, whole)


def test_a_best_checkpoint_that_is_not_there_is_not_claimed(tmp_path, monkeypatch, capsys):
    losses = iter([2.0, 1.0, 1.5, 1.2])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, *_: next(losses))
    failing(monkeypatch, BEST, 2)
    assert begin(tmp_path / "run", "--max-iters=8") == 0  # both are lost
    assert "(best" not in capsys.readouterr().out
    assert state_of(tmp_path / "run")["best_loss"] is None
    assert resume(tmp_path / "run", "--max-iters=16") == 0
    best, last = state_of(tmp_path / "run", BEST), state_of(tmp_path / "run")
    assert (last["best_step"], last["best_loss"]) == (best["step"], best["val_loss"]) == (16, 1.2)


@pytest.mark.report("13")
def test_a_disk_that_stays_full_is_an_error_at_the_end(folder, monkeypatch, capsys):
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr("minigpt.files.os.fsync", lambda _: raising(FULL)())
        with pytest.raises(SystemExit) as leaving:
            cli.run(lambda: resume(folder, "--max-iters=8"))
    *notes, last = capsys.readouterr().err.splitlines()
    assert leaving.value.code == 2 and all(note.startswith("note: ") for note in notes)
    assert re.fullmatch(
        rf"error: {folder / LAST}: cannot save the checkpoint \(\d+ kB\): No space left on device; "
        "what was there before is unchanged",
        last,
    )
    assert notes[-1].startswith("note: stopped at step 8 of 8, step 4 is saved; resume with python")
    assert contents(folder) == before
    assert resume(folder, "--max-iters=8") == 0
    assert [line["step"] for line in metrics(folder)] == [2, 4, 6, 8]


@pytest.mark.report("13")
def test_an_evaluation_that_was_made_up_for_is_saved_at_the_second_try(
    tmp_path, monkeypatch, capsys, whole
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_call(patch, Trainer, "evaluate", [3], raising(KeyboardInterrupt))
        begin(folder, *EXACT)
    failing(monkeypatch, LAST, 1)
    assert resume(folder) == 0
    assert "training goes on" in capsys.readouterr().err
    check_same(folder, whole)


@pytest.mark.report("13")
def test_lines_that_were_never_written_are_told(folder, monkeypatch, capsys):
    failing(monkeypatch, METRICS, 100)
    assert resume(folder, "--max-iters=8") == 0
    assert "lacks" in capsys.readouterr().err
    assert state_of(folder)["step"] == 8


class Broken:
    """Standard output that fails from some line on."""

    def __init__(self, error, lines):
        self.error, self.lines = error, lines

    def write(self, text):
        """Count lines."""
        self.lines -= text.count("\n")
        if self.lines < 0:
            raise self.error

    def flush(self):
        """Fail as well."""
        if self.lines < 0:
            raise self.error

    def isatty(self):
        """Tell that it is none."""
        return False


@pytest.mark.report("3")
@pytest.mark.parametrize("error, code", [(FULL, 2), (BrokenPipeError(32, "Broken pipe"), 141)])
@pytest.mark.parametrize("lines", [5, 6, 7, 9])
def test_output_that_breaks_ends_a_run_that_is_saved(
    tmp_path, monkeypatch, capsys, whole, error, code, lines
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.setattr(sys, "stdout", Broken(error, lines))
        cli.run(lambda: begin(folder, *EXACT))
    assert leaving.value.code == code
    told = capsys.readouterr().err.splitlines()[-1:]
    assert code == 141 or told == ["error: standard output: No space left on device"]
    step = state_of(folder)["step"]
    assert step == {5: 4, 6: 8, 7: 12, 9: 12}[lines]
    if step < 12:
        assert resume(folder) == 0
    check_same(folder, whole)


@pytest.mark.report("16", "17")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "owner, name, act",
    [
        (Trainer, "gradients", raising(MemoryError("no more"))),
        (Trainer, "gradients", sending(signal.SIGTERM, signal.SIGTERM)),
        (Workers, "__init__", raising(minigpt.UserError("2 threads cannot be started"))),
        (train, "introduce", raising(FULL)),
        (train, "introduce", sending(signal.SIGHUP)),
        (train, "new_run", sending(signal.SIGTERM)),
    ],
    ids=["memory", "a signal", "threads", "output", "an early signal", "a signal at the data"],
)
def test_what_ends_before_its_first_step_leaves_the_folder_as_it_was(
    tmp_path, monkeypatch, owner, name, act, old
):
    folder, flags = tmp_path / "run", ["--overwrite"] * old
    if old:
        begin(folder, "--max-iters=4")
        before = contents(folder)
    with monkeypatch.context() as patch, contextlib.suppress(minigpt.UserError, OSError):
        at_call(patch, owner, name, [1], act)
        assert begin(folder, *flags) > 128
    if old:
        assert contents(folder) == before
    else:
        assert not folder.exists()
        assert begin(folder, "--max-iters=1") == 0  # without --overwrite


def in_thread(call):
    """Return what a function returns in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.report("17")
def test_a_run_in_a_thread_is_a_run(tmp_path, whole):
    folder = tmp_path / "run"
    assert in_thread(lambda: begin(folder, *EXACT, "--max-iters=5")) == 0
    assert in_thread(lambda: resume(folder, "--max-iters=12")) == 0
    assert in_thread(lambda: begin(folder, *EXACT, "--overwrite")) == 0
    check_same(folder, whole)


@pytest.mark.report("3")
def test_a_run_without_standard_streams_is_a_run(tmp_path, monkeypatch, whole):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert begin(tmp_path / "run", *EXACT) == 0
    minigpt.fit(tmp_path / "text.txt", max_iters=2, n_layer=1, n_embd=8, n_head=2, block_size=8)
    assert (sys.stdout, sys.stderr) == (None, None)
    check_same(tmp_path / "run", whole)


@pytest.mark.report("13")
def test_what_a_killed_run_left_half_written_is_removed(folder):
    for name in (f"{LAST}.0a1b2c3d.tmp", f"{METRICS}.tmp"):
        (folder / name).write_bytes(b"half")
    assert resume(folder, "--max-iters=6") == 0
    assert {path.name for path in folder.iterdir()} <= {*FILES}


@pytest.mark.report("2")
@pytest.mark.parametrize("error", [AttributeError("no _ARRAY_API"), ValueError(), KeyError(1)])
def test_whatever_the_last_sample_raises_the_run_is_done(tmp_path, capsys, monkeypatch, error):
    monkeypatch.setattr(train, "sample", lambda _: raising(error)())
    assert begin(tmp_path / "run", "--max-iters=2") == 0
    out = capsys.readouterr().out
    assert re.search(rf"^none: .*{re.escape(str(error) or 'ValueError')}", out, re.MULTILINE)
    assert "more: python" in out
