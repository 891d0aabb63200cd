"""A long run, and many processes that want the corpus at once."""

import hashlib
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from minigpt.files import LAST
from minigpt.model.checkpoint import load
from tests.tools.faults import Row
from tests.tools.faults.command import begin, ended, lines_of, wait_for
from tests.tools.serving import served, side_by_side

LEAST = 2**21  # bytes of growth that are no leak: of the allocator, of caches that fill up
RAW = b"First Citizen:\n" * 1000


def used(process):
    """Return (resident bytes, open files) of a process, or None after its end."""
    try:
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{process.pid}/fd"))
    except (OSError, IndexError):
        return None


def soak(seconds, base, expected, seed):
    """A row: one run, for so many seconds, that evaluates and saves every 20 steps.

    Of memory, the second quarter of the time is compared with the last: what is taken at the
    beginning, once and for all, is no leak.
    """
    must = "second half as the first: no more memory, no more open files"
    if not os.path.isdir("/proc/self/fd"):
        return Row("a long run", 0, must, [], "no /proc on this system")
    more = ("--max-iters=1000000000", "--eval-interval=20", "--log-interval=10")
    process = begin(base, "long", *more)
    wait_for(process, base / "long", 1)
    start, found = time.monotonic(), []
    while time.monotonic() < start + seconds and (now := used(process)):
        found.append(now)
        time.sleep(seconds / 400)
    process.send_signal(signal.SIGTERM)
    code, err = ended(process)
    quarter = len(found) // 4
    memory, files = zip(*found, strict=True)
    before, after = (statistics.median(memory[i * quarter :][:quarter]) for i in (1, 3))
    failures = [] if code == 143 else [f"exit code {code}: {err}"]
    if after - before > LEAST:
        failures.append(f"memory grew by {(after - before) / 1e6:.1f} MB")
    if max(files[2 * quarter :]) > max(files[: 2 * quarter]):
        failures.append(f"open files grew to {max(files)}")
    note = f"{seconds:,} s, {10 * lines_of(base / 'long'):,} steps, {after / 1e6:.0f} MB, "
    note += f"{(after - before) / 1e6:+.2f} MB, at most {max(files)} files"
    return Row("a long run", 1, must, failures, note)


PROGRAM = """
import sys
sys.modules["matplotlib.figure"] = None
from minigpt import cli
from minigpt.data import corpus
from minigpt.train import __main__ as train
corpus.URL, corpus.SHA256, corpus.CONTACT = {url!r}, {sha256!r}, 60.0
model = ["--n-layer=1", "--n-head=1", "--n-embd=4", "--block-size=8", "--batch-size=2"]
model += ["--max-iters=2", "--threads=1", "--out-dir={folder}/" + sys.argv[1]]
cli.run(lambda: train.main(model))
"""


def trained(folder, n=8):
    """Train by n processes that share an empty cache folder; return what is wrong, or None.

    The corpus is a text of this test, from a server on this machine.
    """
    sha256, cache = hashlib.sha256(RAW).hexdigest(), folder / "cache"
    with served(RAW) as (url, came):
        program = PROGRAM.format(url=url, sha256=sha256, folder=folder)
        said = side_by_side(program, cache, n)
    kept = cache / "minigpt" / "tinyshakespeare.txt"
    if came != ["/input.txt"]:
        return f"{len(came)} requests came: {came}"
    if sorted(said) != [""] * (n - 1) + [f"note: downloaded tiny Shakespeare to {kept}\n"]:
        return f"they said {said}"
    if list(kept.parent.iterdir()) != [kept] or kept.read_bytes() != RAW:
        return f"the cache holds {sorted(kept.parent.iterdir())}"
    states = [load(folder / str(i) / LAST).state for i in range(n)]
    if any((s["step"], s["data_sha256"]) != (2, sha256) for s in states):
        return "one has not trained on the corpus"
    return None


def one_cache(trials, base, expected, seed):
    """A row: 8 processes on one cache folder."""
    failures = []
    for i in range(trials):
        with tempfile.TemporaryDirectory(dir=base) as folder:
            failure = trained(Path(folder))
        failures += [f"trial {i}: {failure}"] if failure else []
    must = "one request in all; each trains on the right text, of which one copy is kept"
    return Row("8 processes, one cache folder", trials, must, failures)
