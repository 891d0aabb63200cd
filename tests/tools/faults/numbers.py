"""Losses and gradients that are not finite, in steps that are chosen at random."""

import contextlib
import json
import math
import random
from unittest import mock

from minigpt.files import BEST, LAST, METRICS
from minigpt.model import checkpoint
from minigpt.optim import clipping
from minigpt.optim.gradients import sum_of_squares
from minigpt.train.step import Trainer
from tests.tools.faults import Row
from tests.tools.faults.command import FLAGS, STEPS, TEXT, quietly, whole

BAD = ((math.nan, math.nan), (math.inf, 1.0), (3.0, math.inf))  # loss, factor of the gradient


@contextlib.contextmanager
def spoilt(bad):
    """Let the steps in `bad` (0 is the first) have another loss, and gradients times a number."""
    gradients, batches, now = Trainer.gradients, Trainer.batches, [0]

    def note(self, split, step):
        now[0] = step
        return batches(self, split, step)

    def spoil_loss(self, *args, **kwargs):
        loss = gradients(self, *args, **kwargs)
        return bad[now[0]][0] if now[0] in bad else loss

    def spoil_norm(g):
        return sum_of_squares(g) * (bad[now[0]][1] if now[0] in bad else 1.0)

    with (
        mock.patch.multiple(Trainer, gradients=spoil_loss, batches=note),
        mock.patch("minigpt.optim.adamw.sum_of_squares", spoil_norm),
    ):
        yield


def not_json(folder):
    """Return what is in the files that is no number of JSON, or no whole checkpoint; or None."""

    def refuse(constant):
        raise ValueError(f"{constant} in {METRICS}")

    try:
        for line in (folder / METRICS).read_text("utf-8").splitlines():
            json.loads(line, parse_constant=refuse)
    except ValueError as error:
        return str(error)
    for name in (BEST, LAST):
        raw = (folder / name).read_bytes() if (folder / name).exists() else b""
        header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]  # JSON; arrays are after it
        if b"NaN" in header or b"Infinity" in header:
            return f"a number that is not finite in the state of {name}"
    return whole(folder)


def some_steps(base, i, rng):
    """Spoil some steps, at most 4 in a row; return what is wrong with what comes of it."""
    chosen = sorted(rng.sample(range(STEPS), 20))
    bad = {s: rng.choice(BAD) for s in chosen if not {s - 4, s - 3, s - 2, s - 1} <= {*chosen}}
    folder = base / f"bad-{i}"
    with spoilt(bad):
        code, err = quietly(f"--out-dir={folder}", f"--data={base / 'text.txt'}", *FLAGS)
    if code or err.count(" skipped: ") != len(bad):
        return f"exit code {code}: {err.strip()[-300:]}"
    state = checkpoint.load(folder / LAST).state["optimizer"]
    if (state[clipping.STEPS], state[clipping.SKIPPED]) != (STEPS - len(bad), len(bad)):
        return f"{state[clipping.SKIPPED]} steps were skipped, not {len(bad)}"
    return not_json(folder)


def all_steps(base, i, rng):
    """Spoil all steps from some on; return what is wrong with what comes of it."""
    first, kind, folder = rng.randrange(STEPS - 5), rng.choice(BAD), base / f"end-{i}"
    with spoilt(dict.fromkeys(range(first, STEPS), kind)):
        code, err = quietly(f"--out-dir={folder}", f"--data={base / 'text.txt'}", *FLAGS)
    last = err.strip().splitlines()[-1]
    told = f"at step {first + 5} the " in last and "first non-finite tensor: " in last
    if code != 2 or not told or "lower --learning-rate" not in last:
        return f"exit code {code}: {last}"
    return not_json(folder)


def diverging(base, i, rng):
    """Train at a learning rate that is far too high; return what is wrong with what comes of it."""
    rate, folder = 10 ** rng.uniform(1, 18), base / f"high-{i}"
    more = [f"--learning-rate={rate}", f"--min-lr={rate}", f"--grad-clip={rng.choice((0, 1))}"]
    more += [f"--activation={rng.choice(('gelu', 'relu'))}"]
    code, err = quietly(f"--out-dir={folder}", f"--data={base / 'text.txt'}", *FLAGS, *more)
    if code not in (0, 2) or code == 2 and "training has diverged: " not in err:
        return f"exit code {code}: {err.strip()[-300:]}"
    return not_json(folder)


def not_finite(trials, base, expected, seed):
    """A row: numbers that are not finite."""
    rng, failures = random.Random(f"not finite {seed}"), []
    (base / "text.txt").write_text(TEXT)
    for i in range(trials):
        way = (some_steps, all_steps, diverging)[i % 3]
        failure = way(base, i, rng)
        if failure:
            failures.append(f"trial {i}, {way.__name__}: {failure}")
    must = (
        "bad steps are skipped and reported; 5 in a row end the run in one line; no NaN in a file"
    )
    return Row("losses and gradients that are not finite", trials, must, failures)
