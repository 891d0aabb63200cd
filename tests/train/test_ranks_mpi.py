"""Runs of several processes under mpirun: `pip install 'minigpt[mpi]'` and an MPI library."""

import os
import shutil
import signal
import time

import numpy as np
import pytest

from minigpt.model.checkpoint import load
from tests.tools.mpirun import COMMAND, NEEDS_MPI, end, pids, start
from tests.tools.training import TEXT, metrics, same

pytestmark = NEEDS_MPI
FLAGS = (
    *("--preset=nanogpt-cpu", "--n-layer=2", "--n-head=2", "--n-embd=16", "--block-size=16"),
    *("--batch-size=5", "--threads=1", "--dropout=0.2", "--max-iters=50", "--eval-interval=20"),
    *("--log-interval=1", "--warmup-iters=2", "--learning-rate=0.003"),
)
TOLERANCE = 1e-6  # of losses in float32


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file to train on."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run(text, tmp_path):
    """Start a run of so many ranks in the folder of a name."""

    def begin(ranks, name, *flags, code=COMMAND):
        flags = [f"--data={text}", *FLAGS, *flags]
        return start(ranks, f"--out-dir={tmp_path / name}", *flags, code=code)

    return begin


def losses(folder):
    """The losses of a run, those of training and of evaluations."""
    lines = metrics(folder)
    return np.array([[line["train_loss"], line.get("val_loss", 0.0)] for line in lines])


def wait_for_step(folder, step):
    """Wait until a run has come so far."""
    for _ in range(600):
        if (folder / "metrics.jsonl").exists() and len(metrics(folder)) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("no such step")


def test_losses_are_those_of_one_process_and_two_runs_are_equal_to_the_bit(run, tmp_path):
    for ranks, name in ((1, "1"), (2, "2"), (2, "2 again"), (3, "3")):
        code, out, said, err = end(run(ranks, name))
        assert (code, said) == (0, []), err
        assert out.count("step     20 ") == 1 and out.count("a sample") == 1
        processes = f"{ranks} processes of " if ranks > 1 else ""
        each = " each" if ranks > 1 else ""
        assert f", on {processes}1 thread{each}, into " in out
    for name in ("2", "3"):
        difference = losses(tmp_path / name) - losses(tmp_path / "1")
        assert difference.shape == (50, 2) and abs(difference).max() < TOLERANCE
    assert metrics(tmp_path / "2") == metrics(tmp_path / "2 again")
    same(tmp_path / "2", tmp_path / "2 again", "last.safetensors")


def test_sums_in_bfloat16_train_nearly_alike(run, tmp_path):
    for name, flags in (("float32", []), ("bfloat16", ["--sum-dtype=bfloat16"])):
        assert end(run(2, name, "--max-iters=20", *flags))[0] == 0
    difference = abs(losses(tmp_path / "bfloat16") - losses(tmp_path / "float32"))
    assert difference[0].max() < TOLERANCE < difference.max() < 0.01


def test_a_sharded_run_of_four_is_resumed_by_any_number(run, tmp_path):
    flags = ["--shard-optimizer", "--lr-decay-iters=50"]
    assert end(run(1, "whole", *flags))[0] == 0
    assert end(run(4, "4", *flags, "--max-iters=20"))[0] == 0
    for ranks in (1, 3):
        shutil.copytree(tmp_path / "4", tmp_path / str(ranks))
        folder = f"--out-dir={tmp_path / str(ranks)}"
        code, _, said, err = end(start(ranks, "--resume", folder, "--max-iters=50"))
        assert (code, said) == (0, []), err
        difference = losses(tmp_path / str(ranks)) - losses(tmp_path / "whole")
        assert difference.shape == (50, 2) and abs(difference).max() < TOLERANCE


def test_a_signal_at_another_rank_saves_once_and_ends_all(run, tmp_path):
    slow = ["--max-iters=2000", "--lr-decay-iters=50", "--eval-interval=1000"]
    process = run(2, "run", *slow)
    wait_for_step(tmp_path / "run", 5)
    os.kill(pids(process)[1], signal.SIGTERM)
    code, out, said, _ = end(process)
    assert code == 128 + signal.SIGTERM
    assert len(said) == 1 and said[0].startswith("SIGTERM: finishing this batch and saving")
    step = load(tmp_path / "run" / "last.safetensors").state["step"]
    assert f"stopped at step {step} of 2,000, saved" in out and step >= 5


FAIL = """
from minigpt.train import step
from minigpt.train.ranks import find_place
before, calls = step.Trainer.gradients, []
def gradients(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == 13 and find_place().rank == 1:
        raise {error}
    return before(self, *args, **kwargs)
step.Trainer.gradients = gradients
"""


@pytest.mark.parametrize("error, said", [
    ("MemoryError('too much')", "out of memory in a training step (too much)"),
    ("ZeroDivisionError('a bug')", "ZeroDivisionError: a bug"),
])  # fmt: skip
def test_an_exception_at_one_rank_ends_all_and_is_saved_before(run, tmp_path, error, said):
    code, _, ours, err = end(run(2, "run", code=FAIL.format(error=error) + COMMAND))
    errors = [line for line in ours if line.startswith("error: ")]
    assert code in (1, 2) and len(errors) == 1, err
    assert errors[0].startswith(f"error: rank 1 of 2 has failed: {said}")
    assert load(tmp_path / "run" / "last.safetensors").state["step"] == 12


def kill(run, folder, rank):
    """Kill a rank of a run of two; return what was said, and after how many seconds."""
    process = run(2, folder.name, "--max-iters=5000", "--lr-decay-iters=50", "--eval-interval=5")
    wait_for_step(folder, 6)
    os.kill(pids(process)[rank], signal.SIGKILL)
    start_s = time.monotonic()
    code, _, said, err = end(process)
    assert code != 0
    return [line for line in said if line.startswith("error: ")], time.monotonic() - start_s


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(run, tmp_path, rank):
    said, seconds = kill(run, tmp_path / "run", rank)
    assert seconds < 10
    assert len(said) <= 1 and all(f"rank {rank} of 2 is gone" in line for line in said)
    step = load(tmp_path / "run" / "last.safetensors").state["step"]
    if rank == 0:
        return
    end_at = f"--max-iters={step + 10}"
    assert end(start(2, "--resume", f"--out-dir={tmp_path / 'run'}", end_at))[0] == 0
    assert end(run(2, "whole", end_at, "--lr-decay-iters=50", "--eval-interval=5"))[0] == 0
    same(tmp_path / "run", tmp_path / "whole", "last.safetensors")


@pytest.mark.parametrize("flags, said", [
    (["--batch-size=1"], "batch_size is 1, but there are 2 processes"),
    (["--data=nowhere.txt"], "nowhere.txt"),
])  # fmt: skip
def test_bad_use_is_one_line_and_exit_code_2(run, flags, said):
    code, out, ours, err = end(run(2, "run", *flags))
    assert code == 2 and out == ""
    assert sum(said in line for line in err.splitlines()) == 1


DRIFT = """
from minigpt.train import step
from minigpt.train.ranks import find_place
before = step.Trainer.step
def drift(self, split, n, *args):
    self.params.flat[5] += n == 30 and find_place().rank
    return before(self, split, n, *args)
step.Trainer.step = drift
"""


def test_weights_that_differ_are_not_saved(run, tmp_path):
    code, _, ours, err = end(run(2, "run", code=DRIFT + COMMAND))
    errors = [line for line in ours if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1, err
    assert "the weights after step 40 are not the same at ranks 0 and 1" in errors[0]
    assert load(tmp_path / "run" / "last.safetensors").state["step"] == 20


DIFFER = """
import sys
from minigpt.train.ranks import find_place
if find_place().rank == 1:
    sys.argv.append("{flag}")
"""


@pytest.mark.parametrize("flag, said", [
    ("--seed=3", "seed is 1337 at rank 0, but 3 at rank 1"),
    ("--data=setup.cfg", "the data (SHA-256) is"),
    ("--dry-run", "dry_run is False at rank 0, but True at rank 1"),
])  # fmt: skip
def test_ranks_that_disagree_end_with_one_line(run, flag, said):
    code, _, ours, err = end(run(2, "run", code=DIFFER.format(flag=flag) + COMMAND))
    errors = [line for line in ours if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and said in errors[0], err
