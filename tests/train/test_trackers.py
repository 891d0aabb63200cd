"""Trackers: what they get of a run, and that none of them ends it.

TensorBoard and Weights & Biases are read back by their own readers where they are installed.
"""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.errors import UserError
from minigpt.files import LAST
from minigpt.model.checkpoint import load
from minigpt.train import samples, trackers
from minigpt.train.resume import resume_run
from minigpt.train.state import RunState
from minigpt.train.trackers import FOLDER, TensorBoard, Trackers, sample_text
from tests.tools.training import FLAGS, TEXT, begin, metrics, refusal, resume

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("no_picture")
needs = {
    name: pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"needs {name}: pip install {name}"
    )
    for name in trackers.KINDS
}


class Stub:
    """A tracker that keeps what it gets; `fails` says at which line it fails."""

    name, fails, made = "tensorboard", None, []

    def __init__(self, run):
        self.cut, self.lines, self.closed = run.files.cut, [], None
        Stub.made.append(self)

    def log(self, line):
        if len(self.lines) == self.fails:
            raise OSError(28, "No space left on device")
        self.lines.append(line)

    def close(self, good=True):
        self.closed = good


@pytest.fixture
def stub(monkeypatch):
    """A stub in the place of TensorBoard."""
    monkeypatch.setattr(Stub, "made", [])
    monkeypatch.setitem(trackers.KINDS, "tensorboard", Stub)
    monkeypatch.setattr(trackers, "load_library", lambda name: [])
    return Stub


def test_a_tracker_gets_every_line_of_the_metrics_and_changes_no_bit(tmp_path, stub):
    assert begin(tmp_path / "run", "--tensorboard") == 0
    (one,) = stub.made
    raw = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert one.lines == [json.loads(line) for line in raw] and len(raw) == 6
    assert one.closed is True and one.cut is None
    assert begin(tmp_path / "plain") == 0 and len(stub.made) == 1
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "run")
    flat = [load(tmp_path / name / LAST).params.flat for name in ("run", "plain")]
    assert (flat[0] == flat[1]).all()


def test_a_resumed_run_goes_on_with_its_trackers(tmp_path, stub):
    assert begin(tmp_path / "run", "--tensorboard", "--max-iters=6", "--lr-decay-iters=12") == 0
    assert resume(tmp_path / "run", "--max-iters=12") == 0
    first, second = stub.made
    assert [line["step"] for line in first.lines] == [2, 4, 6]
    assert [line["step"] for line in second.lines] == [8, 10, 12] and second.cut == 6


def test_a_resumed_run_can_go_on_without_its_trackers(tmp_path, stub):
    more = "--tensorboard", "--max-iters=2", "--lr-decay-iters=12"
    assert begin(tmp_path / "run", *more) == 0
    off = ("--no-tensorboard", "--wandb=")
    assert resume(tmp_path / "run", "--max-iters=4", *off) == 0
    assert len(stub.made) == 1 and load(tmp_path / "run" / LAST).state["wandb_id"] is None


def test_a_tracker_that_fails_costs_one_note_and_not_the_run(tmp_path, stub, capsys, monkeypatch):
    monkeypatch.setattr(stub, "fails", 2)
    assert begin(tmp_path / "run", "--tensorboard") == 0
    error = capsys.readouterr().err
    assert error.count("note: --tensorboard: No space left on device; it gets no more") == 1
    assert len(stub.made[0].lines) == 2 and stub.made[0].closed is None
    assert len(metrics(tmp_path / "run")) == 6


def test_a_tracker_that_fails_at_the_end_is_noted(tmp_path, stub, capsys, monkeypatch):
    def close(self, good):
        raise ConnectionError("no route")

    monkeypatch.setattr(stub, "close", close)
    assert begin(tmp_path / "run", "--tensorboard", "--max-iters=2") == 0
    assert capsys.readouterr().err.count("note: --tensorboard: no route;") == 1


def test_trackers_fail_one_by_one():
    notes, seen = [], []

    class Bad(Stub):
        def __init__(self):
            pass

        def log(self, line):
            raise ValueError

    class Good(Bad):
        def log(self, line):
            seen.append(line)

    both = Trackers([Bad(), Good()], notes)
    both.log({"step": 1}), both.log({"step": 2})
    assert len(seen) == 2 and len(notes) == 1 and "ValueError" in notes[0]


def test_the_lines_of_a_new_run_wait_until_the_old_one_is_gone(tmp_path, stub):
    assert begin(tmp_path / "run", "--max-iters=4") == 0
    assert begin(tmp_path / "run", "--overwrite", "--tensorboard", "--max-iters=4") == 0
    assert [line["step"] for line in stub.made[0].lines] == [2, 4]


def test_a_run_that_ends_with_an_error_says_so_to_its_trackers(tmp_path, stub, monkeypatch):
    monkeypatch.setattr("minigpt.train.loop.train_steps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        begin(tmp_path / "run", "--tensorboard")
    assert stub.made[0].closed is False


@pytest.mark.parametrize("flags", [["--tensorboard"], ["--wandb=project"]])
def test_without_the_library_nothing_begins(tmp_path, capsys, monkeypatch, flags):
    name = flags[0].strip("-").partition("=")[0]
    for module in (name, *(m for m in sys.modules if m.startswith(f"{name}."))):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(
        "minigpt.train.begin.open_data", lambda *_: pytest.fail("the data were opened")
    )
    error = refusal(capsys, begin, tmp_path / "run", *flags)
    start = f"error: --{name}: {name} is not installed: pip install 'minigpt[{name}]', or go on "
    assert error == f"{start}without it: {trackers.WITHOUT[name]}"
    assert not (tmp_path / "run").exists()


def test_a_library_that_cannot_be_loaded_is_one_line(monkeypatch):
    def broken(part):
        raise RuntimeError("of\nanother Python")

    monkeypatch.setattr(trackers.importlib, "import_module", broken)
    with pytest.raises(UserError, match="^--wandb: wandb cannot be loaded: RuntimeError: of anot"):
        trackers.load_library("wandb")


def test_answers_are_tracked_as_text():
    answer = {"source": "a", "expected": "b", "answer": "c"}
    assert sample_text([answer, answer]) == "\n".join(["a -> c (expected: b)"] * 2)
    assert sample_text("a\nb") == "a\nb"


def scalars(folder):
    """{tag: [(step, value)]} of event files, and the texts, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    everything = {"tensors": 0, "scalars": 0}
    found = EventAccumulator(str(folder / FOLDER), size_guidance=everything).Reload()
    tags = found.Tags()
    values = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    texts = {
        tag: [(e.step, make_ndarray(e.tensor_proto).item()) for e in found.Tensors(tag)]
        for tag in tags["tensors"]
    }
    return values, texts


@needs["tensorboard"]
def test_tensorboard_reads_what_was_written_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "FRACTION", 1e6)
    more = "--tensorboard", "--sample-tokens=9", "--lr-decay-iters=12"
    assert begin(tmp_path / "run", *more, "--max-iters=10") == 0
    values, texts = scalars(tmp_path / "run")
    assert [step for step, _ in values["train_loss"]] == [2, 4, 6, 8, 10]
    assert b"n_embd = 8" in texts["options"][0][1]
    # As a run that was killed after its last checkpoint leaves it: lines beyond that are dropped.
    line = {"step": 12, "train_loss": 77.0}
    TensorBoard(resume_run({"out_dir": str(tmp_path / "run"), "max_iters": 12})).log(line)
    assert scalars(tmp_path / "run")[0]["train_loss"][-1] == (12, 77.0)
    assert resume(tmp_path / "run", "--max-iters=12") == 0
    values, texts = scalars(tmp_path / "run")
    lines = metrics(tmp_path / "run")
    for name in ("train_loss", "val_loss", "learning_rate", "grad_norm"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        found = values[name]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [x for _, x in found] == pytest.approx([x for _, x in expected], rel=1e-6)
    assert {"tokens_per_second", "tokens", "seconds", "val_bpb"} <= values.keys()
    assert [step for step, _ in texts["sample"]] == [4, 8, 10, 12]
    assert begin(tmp_path / "run", "--overwrite", "--tensorboard", "--max-iters=2") == 0
    assert [step for step, _ in scalars(tmp_path / "run")[0]["train_loss"]] == [2]


@needs["tensorboard"]
def test_a_disk_that_is_full_leaves_whole_records(tmp_path, capsys, monkeypatch):
    append, calls = trackers.append, []

    def full(path, raw):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        append(path, raw)

    monkeypatch.setattr(trackers, "append", full)
    assert begin(tmp_path / "run", "--tensorboard") == 0
    assert "note: --tensorboard: No space left on device" in capsys.readouterr().err
    assert [step for step, _ in scalars(tmp_path / "run")[0]["train_loss"]] == [2, 4]


def records(path):
    """The records of an offline file of Weights & Biases, whose pieces are LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    raw, at, whole = path.read_bytes(), 7, b""  # behind the file's mark
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # what is left of a block is empty
            continue
        size, kind = struct.unpack_from("<HB", raw, at + 4)
        whole += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def history(folder):
    """[(id, values)] of the lines in the offline files of Weights & Biases, the oldest first."""
    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                items = {i.key or ".".join(i.nested_key): i for i in record.history.item}
                values = {key: json.loads(item.value_json) for key, item in items.items()}
                found.append((path.stem.removeprefix("run-"), values))
    return found


@needs["wandb"]
@pytest.mark.slow
def test_weights_and_biases_keeps_the_run_offline_under_one_id(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "FRACTION", 1e6)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    flags = "--wandb=demo", "--sample-tokens=9", "--max-iters=8", "--lr-decay-iters=12"
    assert begin(tmp_path / "run", *flags) == 0
    known = load(tmp_path / "run" / LAST).state["wandb_id"]
    assert resume(tmp_path / "run", "--max-iters=12") == 0
    found = history(tmp_path / "run")
    assert {name for name, _ in found} == {known}
    lines = metrics(tmp_path / "run")
    assert [values["step"] for _, values in found] == [line["step"] for line in lines]
    assert [values["train_loss"] for _, values in found] == [line["train_loss"] for line in lines]
    assert sum("sample" in "".join(values) for _, values in found) == 3


@needs["wandb"]
@pytest.mark.slow
def test_without_a_login_nothing_begins(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    own = {name: x for name, x in os.environ.items() if not name.startswith("WANDB_")}
    found = subprocess.run(
        [sys.executable, "-m", "minigpt.train", "--data=text.txt", "--wandb=demo", *FLAGS],
        cwd=tmp_path,
        env={**own, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 2
    error = found.stderr.splitlines()[-1]
    assert error.startswith("error: --wandb demo: ") and error.endswith("set WANDB_MODE=offline")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_the_id_of_a_run_is_part_of_its_state(tmp_path):
    assert begin(tmp_path / "run", "--max-iters=1") == 0
    state = load(tmp_path / "run" / LAST).state
    assert state["wandb_id"] is None
    assert RunState.build({**state, "wandb_id": "ab12"}).wandb_id == "ab12"
    with pytest.raises(UserError, match="wandb_id"):
        RunState.build({**state, "wandb_id": 3})
