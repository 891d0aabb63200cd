"""A run that is stopped by a signal at a random moment, and two runs in one folder."""

import random
import signal
import time

from minigpt.files import RUN_FILES as FILES
from tests.tools.faults import Row
from tests.tools.faults.command import STEPS, begin, contents, ended, gone_on, start, wait_for

RESUMED = (
    "every checkpoint that is there is whole; resumed, it ends bitwise as the uninterrupted run"
)
BEFORE = 0.15  # share of the trials that stop the process before its first step


class Uninterrupted:
    """What the run comes to if nobody stops it, and how long it takes."""

    def __init__(self, base):
        began = time.monotonic()
        process = begin(base, "whole")
        wait_for(process, base / "whole", 1)
        first = time.monotonic()
        code, err = ended(process)
        if code:
            raise RuntimeError(f"the run does not end: {err}")
        self.contents = contents(base / "whole")
        self.start_s, self.step_s = first - began, (time.monotonic() - first) / STEPS


def stopped(base, out, number, expected, rng):
    """Begin a run and send it a signal at a random moment; return (moment, exit code)."""
    process = begin(base, out)
    if rng.random() < BEFORE:
        step, delay_s = 0, rng.uniform(0, expected.start_s)
    else:
        step, delay_s = rng.randint(1, STEPS), rng.uniform(0, 2 * expected.step_s)
        wait_for(process, base / out, step)
    time.sleep(delay_s)
    process.send_signal(number)
    code, err = ended(process)
    return f"{delay_s * 1e3:.1f} ms after step {step}", code, err


def signals(number, name, trials, base, expected, seed):
    """A row: the run is stopped by a signal, `trials` times."""
    rng, failures, codes = random.Random(f"{name} {seed}"), [], {}
    for i in range(trials):
        out = f"{name}-{i}"
        moment, code, err = stopped(base, out, number, expected, rng)
        codes[code] = codes.get(code, 0) + 1
        failure = gone_on(base, out, expected.contents)
        if code not in (0, -number, 128 + number) and not (code == 1 and "KeyboardInt" in err):
            failure = f"exit code {code}: {err.strip()}"
        if failure:
            failures.append(f"trial {i}, {moment}: {failure}")
    note = ", ".join(f"{n} with exit code {code}" for code, n in sorted(codes.items()))
    return Row(name, trials, RESUMED, failures, note)


def kill(trials, base, expected, seed):
    """A row: kill -9."""
    return signals(signal.SIGKILL, "kill -9", trials, base, expected, seed)


def terminate(trials, base, expected, seed):
    """A row: SIGTERM."""
    return signals(signal.SIGTERM, "SIGTERM", trials, base, expected, seed)


def interrupt(trials, base, expected, seed):
    """A row: Ctrl-C."""
    return signals(signal.SIGINT, "SIGINT", trials, base, expected, seed)


def two_runs(trials, base, expected, seed):
    """A row: runs that want a folder in which one is at work, or which they get to together."""
    failures, refused = [], 0
    for i in range(trials):
        out = f"two-{i}"
        pair = [begin(base, out) for _ in range(2)]
        wait_for(pair[0], base / out, 3)
        late = [begin(base, out, "--overwrite"), start(base, out, "--resume")]
        results = [ended(process) for process in (*pair, *late)]
        codes = sorted(code for code, _ in results)
        if codes != [0, 2, 2, 2] or any(err.count("\n") != 1 for code, err in results if code):
            failures.append(f"trial {i}: {results}")
        elif contents(base / out) != expected.contents:
            failures.append(f"trial {i}: it does not end as a run alone does")
        elif {path.name for path in (base / out).iterdir()} - {*FILES}:
            failures.append(f"trial {i}: something is left behind")
        refused += sum("another running" in err for _, err in results)
    must = "one continues and ends as if alone, the others are refused in one line"
    return Row("two runs in one folder", trials, must, failures, f"{refused} refused")
