"""The folder of a run: what is in it, and what becomes of it when something fails."""

import errno
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minigpt import cli
from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.files import BEST, LAST, METRICS, PAGE, PICTURE, writing
from minigpt.files import RUN_FILES as FILES
from minigpt.locks import born, me
from minigpt.model import checkpoint
from minigpt.train.run import Run
from minigpt.train.run_dir import LOCK, cut_metrics, locked
from minigpt.train.step import Trainer
from tests.tools.training import EXACT, TEXT, begin, metrics, refusal, resume, same

pytestmark = pytest.mark.usefixtures("no_picture")


def test_what_a_run_leaves_behind(tmp_path):
    assert begin(tmp_path / "run") == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted({METRICS, BEST, LAST})
    raw = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    common = ["step", "tokens", "seconds", "train_loss"]
    rest = ["learning_rate", "grad_norm", "tokens_per_second"]
    for line, step in zip(raw, range(2, 13, 2), strict=True):
        evaluated = ["val_loss", "val_bpb"] if step % 4 == 0 else []
        assert list(line) == common + evaluated + rest
        assert (line["step"], line["tokens"]) == (step, step * 3 * 8)
        assert line["grad_norm"] > 0 and line["tokens_per_second"] > 0
    assert [line["seconds"] for line in raw] == sorted(line["seconds"] for line in raw)
    assert raw[0]["train_loss"] > raw[-1]["train_loss"]
    best, last = (checkpoint.load(tmp_path / "run" / name) for name in (BEST, LAST))
    losses = {line["step"]: line["val_loss"] for line in raw if "val_loss" in line}
    for state in (best.state, last.state):
        assert state["best_loss"] == min(losses.values()) == losses[state["best_step"]]
    assert best.state["step"] == best.state["best_step"] and best.optimizer_arrays is None
    assert last.state["step"] == 12 and last.optimizer_arrays is not None
    assert last.tokenizer.chars == CharTokenizer.from_text(TEXT).chars


def test_bits_per_byte_are_of_the_very_targets_of_an_evaluation(tmp_path, capsys):
    text = "".join(np.random.default_rng(0).choice([*"abcdeäö€漢字😀"], 1400))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    flags = f"--data={tmp_path / 'text.txt'}", "--eval-tokens=40", "--max-iters=4"
    assert begin(tmp_path / "run", *flags) == 0
    line, whole = metrics(tmp_path / "run")[-2:]
    val = text[int(0.9 * len(text)) :]
    windows = [val[1:][i : i + 8] for i in range(0, len(val) - 1, 8)]
    n, k = len(windows), len(windows) * 40 // (len(val) - 1)
    part = [windows[i * n // k] for i in range(k)]
    for loss, bpb, texts in (
        (line["val_loss"], line["val_bpb"], part),
        (whole["whole_val_loss"], whole["whole_val_bpb"], [val[1:]]),
    ):
        found = "".join(texts)
        bits = loss * len(found) / math.log(2)
        assert bpb == pytest.approx(bits / len(found.encode()), rel=1e-12)
    out = capsys.readouterr().out
    assert f"validation {line['val_loss']:.4f}, {line['val_bpb']:.4f} bits/byte  " in out
    assert f", {whole['whole_val_bpb']:.4f} bits/byte, " in out.split("\nvalidation loss")[1]


def test_a_train_loss_is_the_mean_since_the_last_multiple_of_log_interval(tmp_path):
    assert begin(tmp_path / "each", "--log-interval=1") == 0
    assert begin(tmp_path / "run", "--log-interval=5", "--eval-interval=4") == 0
    each = [line["train_loss"] for line in metrics(tmp_path / "each")]
    came = {line["step"]: line["train_loss"] for line in metrics(tmp_path / "run")}
    means = {4: each[:4], 5: each[:5], 8: each[5:8], 10: each[5:10], 12: each[10:]}
    assert came == pytest.approx({step: np.mean(losses) for step, losses in means.items()})


def test_the_best_checkpoint_is_not_the_last_where_the_loss_has_risen(tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, *_: next(losses))
    assert begin(tmp_path / "run") == 0
    best, last = (checkpoint.load(tmp_path / "run" / name).state for name in (BEST, LAST))
    assert (best["step"], best["val_loss"]) == (8, 2.0)
    assert (last["step"], last["val_loss"], last["best_loss"], last["best_step"]) == (12, 2.5, 2, 8)


@pytest.mark.cupy
def test_two_runs_are_equal(tmp_path, backend):
    for name in ("one", "two"):
        assert begin(tmp_path / name, *EXACT, backend) == 0
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    same(tmp_path / "one", tmp_path / "two", BEST)
    same(tmp_path / "one", tmp_path / "two", LAST)


def test_the_handlers_of_signals_are_given_back(folder):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_for_metrics():
    with (
        pytest.raises(UserError, match="/dev/full: cannot be written: No space left on device"),
        writing("/dev/full") as path,
        open(path, "a") as file,
    ):
        file.write("line\n")


def test_cut_metrics_keeps_whole_lines_up_to_the_step(tmp_path):
    path = tmp_path / METRICS
    cut_metrics(path, 0)
    assert path.read_text() == ""
    path.write_text('{"step": 1}\n[]\n{"a": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2}\n{"step": 1}')
    cut_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2}\n'
    path.write_bytes(b'\xff\xfe\n{"step": 1}\n{"st')
    cut_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_use_is_refused_and_overwritten_on_demand(folder, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    error = refusal(capsys, begin, folder)
    assert error == (
        f"error: --out-dir {folder} holds another run: resume it with --resume, replace it with "
        "--overwrite, or name another folder"
    )
    for flags in (["--data=gone.txt"], ["--batch-size=0"], ["--block-size=1500"]):
        refusal(capsys, begin, folder, "--overwrite", *flags)  # a failure loses nothing
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "notes.txt").write_text("mine")
    assert begin(folder, "--overwrite", "--max-iters=3") == 0
    assert [line["step"] for line in metrics(folder)] == [2, 3]
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_any_file_of_a_run_is_a_run(tmp_path, capsys, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    error = refusal(capsys, begin, tmp_path / "run")
    assert "replace it with --overwrite" in error
    assert ("--resume" in error) == (name == LAST)


def test_a_folder_that_holds_something_else_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "text.txt").write_text("mine")
    assert begin(tmp_path / "run", "--max-iters=2") == 0


def test_a_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").touch()
    error = refusal(capsys, begin, tmp_path / "file")
    assert error == f"error: --out-dir {tmp_path / 'file'} is a file; name a folder"
    error = refusal(capsys, begin, tmp_path / "run", f"--out-dir={tmp_path / 'file' / 'run'}")
    assert error == f"error: {tmp_path / 'file' / 'run'}: cannot be written: Not a directory"


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by 1/64 s whenever it is read: no machine is too slow or too busy."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 64)
    monkeypatch.setattr("minigpt.train.run.OVERHEAD_S", 0.2)


@pytest.mark.parametrize(
    "seconds",
    [5.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (5.0156, 5.0313, 5.0469, 5.0625))],
)
def test_a_run_by_the_clock_ends_on_time_with_its_learning_rate_down(tmp_path, ticking, seconds):
    flags = f"--max-seconds={seconds}", "--min-lr=0", "--lr-schedule=wsd", "--log-interval=1"
    begin(tmp_path / "run", *flags, "--eval-interval=1000000")
    *lines, whole = metrics(tmp_path / "run")
    assert list(whole) == ["step", "whole_val_loss", "whole_val_bpb"]
    rates = [line["learning_rate"] for line in lines]
    state = checkpoint.load(tmp_path / "run" / LAST).state
    assert seconds - 0.5 < state["seconds"] < seconds and state["over"]
    assert len(lines) == state["step"] > 30  # far more than --max-iters
    assert max(rates) == 0.01 and rates[-1] < 0.002
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert "val_loss" in lines[-1]


def test_a_run_by_the_clock_goes_on_for_longer_only(folder, capsys, ticking):
    begin(folder, "--overwrite", "--max-seconds=3")
    error = refusal(capsys, resume, folder)
    assert re.search(
        r"complete: it has used 2\.\d s of its 3 s; give a larger --max-seconds to", error
    )
    before = checkpoint.load(folder / LAST).state
    assert resume(folder, "--max-seconds=6") == 0
    after = checkpoint.load(folder / LAST).state
    assert after["step"] > before["step"] and 2 < before["seconds"] < 3 < 5 < after["seconds"] < 6


def test_a_run_by_steps_goes_on_by_the_clock(folder, ticking):
    before = checkpoint.load(folder / LAST).state
    assert resume(folder, "--max-seconds=6") == 0
    after = checkpoint.load(folder / LAST).state
    assert after["step"] > before["step"] and 5 < after["seconds"] < 6


def test_a_run_by_the_clock_goes_on_by_steps_where_steps_are_asked_for(folder, ticking):
    begin(folder, "--overwrite", "--max-seconds=3")
    steps = checkpoint.load(folder / LAST).state["step"] + 5
    assert resume(folder, f"--max-iters={steps}") == 0
    assert checkpoint.load(folder / LAST).state["step"] == steps


def test_an_optimizer_goes_on_with_its_own_state_only(folder, capsys):
    begin(folder, "--overwrite", "--optimizer=muon")
    error = refusal(capsys, resume, folder, "--optimizer=adamw", "--max-iters=20")
    assert "optimizer is muon" in error
    assert resume(folder, "--max-iters=14") == 0


def test_a_folder_is_for_one_run_at_a_time(tmp_path, capsys):
    folder = tmp_path / "run"
    with locked(folder, make=True):
        for call, *flags in ((begin,), (begin, "--overwrite"), (resume,)):
            error = refusal(capsys, call, folder, *flags)
            who, _, advice = error.partition("; ")
            told = rf"error: --out-dir {folder}: locked by another running process \({{}}\)"
            assert re.fullmatch(told.format(rf"number {os.getpid()} on .*, since .*"), who)
            assert advice == (
                "name another folder, wait for that run to end or stop it, or if it is dead, "
                f"remove {folder / LOCK}"
            )
    assert not (tmp_path / "run").exists()  # it was empty
    assert begin(tmp_path / "run", "--max-iters=2") == 0
    assert not (tmp_path / "run" / LOCK).exists()
    (tmp_path / "run" / LOCK).touch()  # as of one that was killed
    assert resume(tmp_path / "run", "--max-iters=3") == 0


def test_the_lock_is_held_while_a_run_is_at_work(tmp_path, capsys, monkeypatch):
    step, told = Trainer.step, []

    def other(self, *args):
        with pytest.raises(UserError) as error, locked(tmp_path / "run", make=True):
            pass
        told.append(str(error.value))
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", other)
    assert begin(tmp_path / "run", "--max-iters=2") == 0
    assert len(told) == 2 and all("locked by another running process" in line for line in told)


DISKS = {
    "grants every lock": "lambda *_: None",
    "knows no locks": "lambda *_: (_ for _ in ()).throw(OSError(38, 'Function not implemented'))",
}


@pytest.mark.report("32")
@pytest.mark.parametrize("flock", DISKS.values(), ids=DISKS)
def test_a_disk_without_locks_stops_nobody_but_a_second_run(tmp_path, capsys, monkeypatch, flock):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", eval(flock))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text("999999\nothernode\n")
    assert begin(tmp_path / "run", "--max-iters=2") == 0
    assert capsys.readouterr().err == ""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        holder = {**me(), "pid": other.pid, "born": born(other.pid)}
        (tmp_path / "run" / LOCK).write_text(json.dumps(holder))
        error = refusal(capsys, resume, tmp_path / "run", "--max-iters=4")
        assert f"number {other.pid} on" in error
        assert error.endswith(f"if it is dead, remove {tmp_path / 'run' / LOCK}")
        other.communicate(b"\n")
    assert resume(tmp_path / "run", "--max-iters=4") == 0  # the one that was killed blocks nothing
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {*FILES}


@pytest.mark.report("30")
@pytest.mark.parametrize("name", [*FILES, "."])
def test_what_is_marked_read_only_is_found_before_any_work(folder, capsys, monkeypatch, name):
    for optional in (PICTURE, PAGE):  # what extras draw
        (folder / optional).touch()
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("too late"))
    mode = (folder / name).stat().st_mode
    (folder / name).chmod(mode & 0o555)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        for call, flag in ((begin, "--overwrite"), (resume, "--max-iters=8")):
            error = refusal(capsys, call, folder, flag)
            assert error == (
                f"error: --out-dir {folder}: {folder / name}: it is marked read-only; allow "
                "writing by `chmod u+w`, or name another folder"
            )
    finally:
        (folder / name).chmod(mode)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.report("30")
def test_the_files_of_a_run_may_be_links(tmp_path, folder):
    (tmp_path / "disk").mkdir()
    for name in (LAST, BEST, METRICS):
        (folder / name).rename(tmp_path / "disk" / name)
        (folder / name).symlink_to(tmp_path / "disk" / name)
    for call, flag in ((resume, "--max-iters=8"), (begin, "--overwrite")):
        assert call(folder, flag) == 0
        assert all((folder / name).is_symlink() for name in (LAST, BEST, METRICS))
        steps = checkpoint.load(tmp_path / "disk" / LAST).state["step"]
        assert steps == metrics(tmp_path / "disk")[-1]["step"] == (8 if call is resume else 12)
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {LAST, BEST, METRICS}


@pytest.mark.report("30")
def test_a_folder_that_is_a_link_to_nothing_is_named_so(tmp_path, capsys):
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    link, there = tmp_path / "run", tmp_path / "disk" / "run"
    for path in (link, link / "below"):
        error = refusal(capsys, begin, tmp_path / "none", f"--out-dir={path}")
        assert error == (
            f"error: --out-dir {path}: {link} is a link to {there}, which is not there; make that "
            "folder, attach its disk, or name another folder"
        )
    there.mkdir(parents=True)
    assert begin(tmp_path / "run", "--max-iters=1") == 0


def test_an_old_run_stays_until_the_new_one_has_a_checkpoint(folder, capsys, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    seen, step = [], Trainer.step

    def watched(self, *args):
        seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        assert begin(folder, "--overwrite", "--log-interval=1", "--n-embd=16") == 0
    for files in seen[:4]:  # the first evaluation is after four steps
        assert {name: files[name] for name in before} == before
    assert seen[4].keys() >= {LAST, BEST, METRICS} and seen[4][LAST] != before[LAST]
    assert [line["step"] for line in metrics(folder)] == list(range(1, 13))
    now = (folder / LAST).read_bytes()

    def full(path, parts):
        raise OSError(errno.EFBIG, "File too large", str(path))

    monkeypatch.setattr("minigpt.files.replace", full)
    refusal_of_full = refusal_at_end(capsys, begin, folder, "--overwrite", "--max-iters=6")
    assert "cannot save the checkpoint" in refusal_of_full
    assert (folder / LAST).read_bytes() == now
    assert {path.name for path in folder.iterdir()} == {LAST, BEST, METRICS}


def refusal_at_end(capsys, call, *args):
    """The last line on standard error of a call that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: call(*args))
    assert leaving.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_saved_between_rare_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt.train.loop.SAVE_S", 0.0)
    saves, save = [], Run.save_last

    def watched(self):
        saves.append(self.state.step)
        save(self)

    monkeypatch.setattr(Run, "save_last", watched)
    assert begin(tmp_path / "run", "--eval-interval=100") == 0
    assert saves == [2, 4, 6, 8, 10, 12]  # each line of the metrics
    monkeypatch.setattr("minigpt.train.loop.SAVE_S", 300.0)
    saves.clear()
    assert begin(tmp_path / "rare", "--eval-interval=100") == 0
    assert saves == [12]
    same(tmp_path / "run", tmp_path / "rare", LAST)


def test_an_empty_name_is_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, begin, tmp_path / "run", "--out-dir=")
    assert error == "error: out_dir is empty; name a folder, such as '.' for this one"
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}
