"""A training run of a second or two that saves at every step, in its own process."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from minigpt import cli
from minigpt.files import BEST, LAST, METRICS
from minigpt.files import RUN_FILES as FILES
from minigpt.model import checkpoint
from minigpt.train import __main__ as train

ROOT = Path(__file__).parents[3]
STEPS = 60
TEXT = "".join(f"Line {i}: the square of {i} is {i * i}.\n" for i in range(70))[:2000]
FLAGS = (
    *("--preset=nanogpt-cpu", "--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8"),
    *("--batch-size=3", "--threads=1", "--dropout=0.2", "--gradient-accumulation-steps=2"),
    *(f"--max-iters={STEPS}", "--eval-interval=1", "--log-interval=1", "--warmup-iters=2"),
)
TIMES = ("seconds", "tokens_per_second", "sample")  # samples end by the clock
LIMIT_S = 120  # for a process
# `python -m minigpt.train`, with shorter pauses between tries to write: it saves at every step.
PROGRAM = """
from minigpt import cli, files
from minigpt.train.__main__ import main
files.PAUSES_S = (0.001,) * 3
cli.run(main)
"""


def environment(folder):
    """Return the environment of a process without matplotlib, which is slow to import."""
    stub = folder / "stub" / "matplotlib"
    stub.mkdir(parents=True, exist_ok=True)
    (stub / "__init__.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join((str(stub.parent), str(ROOT))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def start(base, out, *flags, **more):
    """Start the command into base / out; `more` goes to Popen."""
    (base / "text.txt").write_text(TEXT)
    # What a shell in the background ignores, its children would ignore too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"--out-dir={base / out}", *flags],
        env=environment(base),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def begin(base, out, *flags, **more):
    """Start the run, a new one."""
    return start(base, out, f"--data={base / 'text.txt'}", *FLAGS, *flags, **more)


def ended(process):
    """Return (exit code, standard error) of a process that ends by itself."""
    try:
        _, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, f"no end within {LIMIT_S} s"
    return process.returncode, err


def quietly(*argv):
    """Run `minigpt.train` in this process; return (exit code, standard error)."""
    sys.modules["matplotlib.figure"] = None
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.run(lambda: train.main(list(map(str, argv))))
        except SystemExit as leaving:
            return leaving.code or 0, err.getvalue()
    raise AssertionError("cli.run always leaves by SystemExit")


def lines_of(folder):
    """Return the number of whole lines of a run's metrics."""
    try:
        return (folder / METRICS).read_bytes().count(b"\n")
    except OSError:
        return 0


def wait_for(process, folder, lines):
    """Wait until a run has so many lines of metrics, or ends."""
    deadline = time.monotonic() + LIMIT_S
    while lines_of(folder) < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def contents(folder):
    """Return the results of a run without its times, for comparison by ==."""
    lines = (folder / METRICS).read_text("utf-8").splitlines()
    found = {METRICS: [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines]}
    for name in (BEST, LAST):
        loaded = checkpoint.load(folder / name)
        arrays = [loaded.params, *(loaded.optimizer_arrays or {}).values()]
        options = {**loaded.state["train"], "out_dir": None, "data": None}
        state = {**loaded.state, "train": options, "data_name": None, "seconds": None}
        found[name] = [*(x.flat.tobytes() for x in arrays), state, loaded.config]
    return found


def whole(folder):
    """Load the checkpoints that are there; return what is wrong, or None."""
    for name in (BEST, LAST):
        if (folder / name).exists():
            try:
                loaded = checkpoint.load(folder / name)
            except Exception as error:
                return f"{name}: {cli.one_line(error)}"
            if not np.isfinite(loaded.params.flat).all():
                return f"{name} is not finite"
    return None


def gone_on(base, out, expected):
    """Resume a run that was stopped, or begin it anew if nothing was saved; compare its end.

    Returns
    -------
    failure : str or None
    """
    folder = base / out
    fault = whole(folder)
    if fault:
        return fault
    if not (folder / LAST).exists():
        again = ["--overwrite"] if any((folder / name).exists() for name in FILES) else []
        flags = [f"--data={base / 'text.txt'}", *FLAGS, *again]
    else:
        flags = ["--resume"]
    complete = False
    if (folder / LAST).exists():
        state = checkpoint.load(folder / LAST).state
        complete = state["step"] == STEPS and not state["due"]
    code, err = (0, "") if complete else quietly(f"--out-dir={folder}", *flags)
    if code:
        return f"exit code {code}: {err.strip()}"
    if contents(folder) != expected:
        return "it does not end as the uninterrupted run does"
    left = {path.name for path in folder.iterdir()} - {*FILES}
    return f"left behind: {left}" if left and not complete else None
