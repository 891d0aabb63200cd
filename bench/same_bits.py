"""Do two checkouts train alike, to the last bit? python bench/same_bits.py OLD [NEW]

The same short runs are trained in both, each by `python -m minigpt.train` in a process of its own.
Compared are the losses, gradient norms and learning rates of every step in metrics.jsonl, and every
tensor of last.safetensors. Times are not. A difference ends with exit code 1.

How much of a difference is rounding? --noise trains in OLD alone, with a clipping threshold of 1
and of 1 + 2e-7: summing the gradient's norm in another order may lead as far apart as these two.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

NUMBERS = ("train_loss", "val_loss", "grad_norm", "learning_rate")
CHARACTERS = 100_000  # of the text, so that evaluations are short
SMALL = ("--n-layer", "2", "--n-embd", "192", "--batch-size", "4", "--block-size", "64")
# Options whose names differ between versions are left to the presets.
RUNS = {
    "quick": ("--preset", "quick"),
    "quick, dropout, 2 x 5": (
        *("--preset", "quick", "--dropout", "0.1", "--batch-size", "5"),
        *("--gradient-accumulation-steps", "2"),
    ),
    "nanogpt-baby": ("--preset", "nanogpt-baby", *SMALL),
    "lecture, 2 x 4": (*("--preset", "lecture", *SMALL, "--gradient-accumulation-steps", "2"),),
    "dates, dropout, 4 x 8": (*("--preset", "dates", "--dropout", "0.1", "--batch-size", "8"),),
}
CLIPPING = {"": ("--grad-clip", "1"), ", no clip": ("--grad-clip", "0")}
NEARLY = "1.0000002"  # in float32 the second number above 1
WORDS = (
    "the of and to in that is was he for it with as his on be at by had not are but from or have"
)
NOTE = """
equal: to the last bit. Else the largest relative difference, and the first step that differs; of
the weights, the largest difference within a tensor over its largest element. 2 x 5: a step is two
batches of 5 sequences."""


def text(path):
    """Return the text to train on: of a file, or where there is none of random words."""
    if path:
        return Path(path).read_text(encoding="utf-8")[:CHARACTERS]
    rng, words = random.Random(1337), []
    while len(words) < CHARACTERS // 5:
        word = rng.choice(WORDS.split())
        words.append(word + rng.choice("    .,\n"))
    return " ".join(words)[:CHARACTERS]


def check_checkout(checkout):
    """Raise a ValueError if Python, started in this folder, would import another minigpt."""
    command = [sys.executable, "-c", "import minigpt; print(minigpt.__file__)"]
    found = subprocess.run(command, **place(checkout), capture_output=True, text=True)
    if found.returncode or Path(found.stdout.strip()).parents[1] != checkout:
        raise ValueError(f"{checkout} is not a checkout of minigpt")


def place(checkout):
    """Return what makes a child process run the code of a checkout."""
    env = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    return {"cwd": checkout, "env": env}


def train(checkout, flags, folder):
    """Train a run in a checkout; return ({step: its metrics}, {name: tensor})."""
    command = [sys.executable, "-m", "minigpt.train", *flags, "--out-dir", str(folder)]
    done = subprocess.run(command, **place(checkout), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"{checkout}: exit code {done.returncode}: {last}")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = {line["step"]: line for line in map(json.loads, lines)}
    return metrics, load_file(folder / "last.safetensors")


def relative(a, b):
    """Return |a - b| over the larger of the two; infinite where only one of them is there."""
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))


def compare_metric(name, old, new):
    """Return (largest relative difference, first step that differs or None) of a number."""
    steps = sorted(old.keys() | new.keys())
    apart = {n: relative(old.get(n, {}).get(name), new.get(n, {}).get(name)) for n in steps}
    return max(apart.values()), next((n for n in steps if apart[n]), None)


def compare_weights(old, new):
    """Return the largest difference of a tensor, relative to its largest element."""
    if any(shapes(old)[name] != shapes(new).get(name) for name in old) or len(old) < len(new):
        return float("inf")
    apart = 0.0
    for name, x in old.items():
        if x.tobytes() != new[name].tobytes():
            apart = max(apart, float(abs(x - new[name]).max() / abs(x).max()))
    return apart


def shapes(tensors):
    """Return {name: (shape, dtype)}."""
    return {name: (x.shape, x.dtype) for name, x in tensors.items()}


def compare(old, new):
    """Return {what: (largest relative difference, first step or None)} of two runs."""
    found = {name: compare_metric(name, old[0], new[0]) for name in NUMBERS}
    return found | {"weights": (compare_weights(old[1], new[1]), None)}


def cell(difference, step):
    """Return a difference as text."""
    if not difference and step is None:
        return "equal"
    return f"{difference:.0e}" + (f" from {step}" if step else "")


def runs(args, data):
    """Return {name: flags} of the runs that are asked for."""
    common = ["--max-iters", str(args.steps), "--eval-interval", str(args.steps)]
    common += [
        "--log-interval",
        "1",
        "--warmup-iters",
        str(min(10, args.steps)),
        "--threads",
        str(args.threads),
    ]
    found = {
        run + clipping: [*own, *flags, *common]
        for run, own in RUNS.items()
        for clipping, flags in CLIPPING.items()
        if (run + clipping).startswith(args.only) and not (clipping and args.noise)
    }
    for run, flags in found.items():
        flags += [] if run.startswith("dates") else ["--data", str(data)]
    if not found:
        raise ValueError(f"no run begins with {args.only!r}; there are {', '.join(RUNS)}")
    return found


def arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python bench/same_bits.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    here, corpus = Path(__file__).resolve().parents[1], os.environ.get("MINIGPT_CORPUS")
    add = parser.add_argument
    add("old", type=Path, metavar="OLD", help="folder of a checkout")
    add("new", type=Path, metavar="NEW", nargs="?", default=here, help="default: this one")
    text = "text to train on (default: that of MINIGPT_CORPUS, else random words)"
    add("--data", metavar="FILE", default=corpus, help=text)
    add("--steps", type=int, default=50, metavar="N", help="default: 50")
    add("--threads", type=int, default=2, metavar="N", help="default: 2")
    add("--only", metavar="NAME", default="", help="runs whose name begins so, as dates")
    add("--noise", action="store_true", help="OLD with itself, clipped at 1 and at 1 + 2e-7")
    add("--tolerance", type=float, default=0.0, metavar="X", help="allowed difference (default: 0)")
    return parser.parse_args(argv)


def main(argv=None):
    """Train every run in both checkouts; print a row per run; return the exit code."""
    args, start, largest = arguments(argv), time.perf_counter(), 0.0
    checkouts = [path.resolve() for path in (args.old, args.new)]
    for checkout in checkouts:
        check_checkout(checkout)
    width = max(len(run + clipping) for run in RUNS for clipping in CLIPPING)
    print(f"{args.steps} steps, {args.threads} threads, NumPy {np.__version__}, {sys.version[:6]}")
    names = (*NUMBERS, "weights")
    print("run".ljust(width), *(f"{name:14}" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "text"
        data.write_text(text(args.data), encoding="utf-8")
        for i, (run, flags) in enumerate(runs(args, data).items()):
            folders = Path(folder) / f"{i}-old", Path(folder) / f"{i}-new"
            old = train(checkouts[0], flags, folders[0])
            if args.noise:
                flags[flags.index("--grad-clip") + 1] = NEARLY
            new = train(checkouts[0 if args.noise else 1], flags, folders[1])
            found = compare(old, new)
            largest = max(largest, *(difference for difference, _ in found.values()))
            print(run.ljust(width), *(f"{cell(*d):14}" for d in found.values()), flush=True)
    print(NOTE)
    same = largest <= args.tolerance
    print(f"\n{'the same' if same else 'NOT the same'}, {time.perf_counter() - start:.0f} s")
    return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"same_bits.py: {error}")
