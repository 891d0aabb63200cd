"""Damaged files and senseless input, through the commands that users type.

As a process of its own, `python -m tests.tools.faults.corruption KIND TRIALS SEED`, whose memory is
limited; it prints a line of JSON: {"refused": ..., "failures": [...]}.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minigpt.files import BEST, LAST
from minigpt.sample import __main__ as sample
from minigpt.train import __main__ as train
from tests.tools.faults import Row, damage, inputs
from tests.tools.faults.command import FLAGS, ROOT, TEXT, environment
from tests.tools.faults.judge import Judge

MUST = "exit code 0, or 2 and one line; no traceback, hang, large memory; nothing executed"
PAIRS = "".join(f"{i} and {i % 7}\t{i + i % 7}\n" for i in range(99))
KINDS = {  # share of the trials
    "checkpoints": (0.6, "corrupted checkpoints"),
    "tables": (0.15, "corrupted tables of tokenizers"),
    "texts": (0.1, "texts and pairs (there are no other token files)"),
    "configs": (0.075, "configs in TOML"),
    "flags": (0.075, "flags"),
}


def good_runs(base):
    """Train a GPT and an encoder-decoder for 2 steps; return their folders."""
    (base / "text.txt").write_text(TEXT)
    (base / "pairs.tsv").write_text(PAIRS)
    judge, folders = Judge(), []
    for name, data in (("text", "text.txt"), ("seq2seq", "pairs.tsv")):
        folder, flags = base / name, [*FLAGS[1:], "--max-iters=2", "--block-size=12"]
        data = f"--data={base / data}"
        code, err = judge.ended(train.main, [f"--task={name}", data, f"--out-dir={folder}", *flags])
        if code:
            raise RuntimeError(err)
        folders.append(folder)
    return folders


def command(kind, path, folder):
    """Return (main, argv) of a command that reads a checkpoint, one of three."""
    if kind < 0.2:
        few = ("--max-iters=3", "--batch-size=2", "--gradient-accumulation-steps=1", "--threads=1")
        return train.main, ["--resume", f"--out-dir={folder}", "--dropout=0", *few]
    if kind < 0.5:
        return train.main, ["--resume", "--dry-run", f"--out-dir={folder}"]
    flags = ["--prompt=2"] if folder.name == "seq2seq" else ["--max-new-tokens=2", "--prompt=L"]
    return sample.main, [f"--checkpoint={path}", *flags]


def checkpoints(trials, seed, base, ways=damage.CHECKPOINTS):
    """Damage checkpoints; return what went wrong, and how many were refused."""
    folders, judge, failures = good_runs(base), Judge(), []
    files = [(folder, (folder / name).read_bytes()) for folder in folders for name in (LAST, BEST)]
    rng = random.Random(f"checkpoints {seed}")
    judge.confine()
    for i in range(trials):
        folder, raw = rng.choice(files)
        way = rng.choice(ways)
        damaged = way(raw, [other for _, other in files if other != raw], rng)
        (folder / LAST).write_bytes(damaged)
        fault = judge(*command(rng.random(), folder / LAST, folder))
        if fault:
            failures.append(f"trial {i}, {way.__name__}: {fault}")
    return failures, judge.refused


def tables(trials, seed, base):
    """Damage the tables of tokenizers."""
    return checkpoints(trials, seed, base, damage.TABLES)


def generated(trials, seed, base, kind):
    """Try what hypothesis comes up with."""
    good_runs(base)
    judge = Judge()
    judge.confine()
    return inputs.search(kind, trials, seed, base, judge), judge.refused


def run(kind, trials, seed):
    """Try a kind of damage in this process; return what `row` reads."""
    os.environ["MINIGPT_CORPUS"] = os.devnull  # without --data, no network
    base = Path(tempfile.mkdtemp())
    try:
        if kind in ("checkpoints", "tables"):
            failures, refused = {"checkpoints": checkpoints, "tables": tables}[kind](
                trials, seed, base
            )
        else:
            failures, refused = generated(trials, seed, base, kind)
    finally:
        shutil.rmtree(base)
    return {"refused": refused, "failures": failures}


def row(kind, trials, base, expected, seed):
    """A row: a kind of damage, tried in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.faults.corruption", kind, str(trials), str(seed)],
        cwd=ROOT,
        env=environment(base),
        capture_output=True,
        text=True,
    )
    _, name = KINDS[kind]
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        failure = f"exit code {done.returncode}: {done.stderr.strip()[-1000:]}"
        return Row(name, trials, MUST, [failure])
    return Row(name, trials, MUST, found["failures"], f"{found['refused']:,} refused")


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
