"""A training run of a fraction of a second, for tests."""

import json

import numpy as np
import pytest

from minigpt import cli
from minigpt.model import checkpoint
from minigpt.train import __main__ as train

TEXT = "".join(f"Line {i}: the square of {i} is {i * i}.\n" for i in range(70))[:2000]
FLAGS = (
    "--preset=nanogpt-cpu",
    *("--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8", "--batch-size=3"),
    *("--threads=2", "--max-iters=12", "--eval-interval=4", "--log-interval=2"),
    *("--warmup-iters=2", "--learning-rate=0.01", "--sample-tokens=0"),
)
# The options that make a bitwise resume hardest.
EXACT = ("--dropout=0.2", "--gradient-accumulation-steps=2", "--lr-decay-iters=12")
TIMES = ("seconds", "tokens_per_second", "sample")  # samples end by the clock


def begin(folder, *flags):
    """Train on TEXT into `folder`; return the exit code. Flags given come last, and win.

    A run of one step has no warm-up; one by passes is not given steps.
    """
    text = folder.parent / "text.txt"
    if not text.exists():
        text.write_text(TEXT, encoding="utf-8")
    one = ["--warmup-iters=0"] * ("--max-iters=1" in flags)
    by_passes = any(flag.startswith("--max-passes") for flag in flags)
    usual = [flag for flag in FLAGS if not (by_passes and flag.startswith("--max-iters"))]
    return train.main([f"--out-dir={folder}", f"--data={text}", *usual, *one, *flags])


def resume(folder, *flags):
    """Resume the run in `folder`; return the exit code."""
    return train.main(["--resume", f"--out-dir={folder}", *flags])


def metrics(folder):
    """Lines of metrics.jsonl, without the times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def refusal(capsys, call, *args):
    """The one line that a program says before it exits with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: call(*args))
    error = capsys.readouterr().err
    assert leaving.value.code == 2
    assert error.endswith("\n") and error.count("\n") == 1
    return error.rstrip("\n")


def same(one, other, name):
    """Assert that two runs have the same checkpoint, but for the times and names of files."""
    one, other = (checkpoint.load(folder / name) for folder in (one, other))
    assert one.config == other.config and one.tokenizer.to_json() == other.tokenizer.to_json()
    np.testing.assert_array_equal(one.params.flat, other.params.flat)
    for moment in ("m", "v") if name == "last.safetensors" else ():
        pair = (c.optimizer_arrays[moment].flat for c in (one, other))
        np.testing.assert_array_equal(*pair)
    for state in (one.state, other.state):
        assert state.pop("seconds") > 0
        del state["train"]["out_dir"], state["train"]["data"], state["data_name"]
    assert one.state == other.state
