"""A disk that is full, and a folder that cannot be written."""

import contextlib
import os
import random
import resource
import subprocess

from minigpt.files import LAST, METRICS
from minigpt.files import RUN_FILES as FILES
from tests.tools.faults import Row
from tests.tools.faults.command import begin, contents, ended, gone_on, start

PAGES = (1, 17)  # of 4 KiB, that a disk may have; all files together take some 20


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a disk in memory; yields remount(options), or None where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        yield None
        return

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def wrong(code, err):
    """Say what is wrong with how a command ended that could not write; None if nothing is."""
    signs = "note: ", "step "  # of what failed before, and of life
    lines = [line for line in err.splitlines() if not line.startswith(signs)]
    told = "cannot be written" in err or "cannot save" in err or "No space" in err
    if code == 2 and len(lines) == 1 and told:
        return None
    return f"exit code {code}: {err.strip()[-300:]}"


def full_disk(trials, base, expected, seed):
    """A row: the disk has room for a part only, and later for all."""
    rng, failures, filled, kind = random.Random(f"full {seed}"), [], 0, "a small tmpfs"
    for i in range(trials):
        size = rng.randint(*PAGES) * 4096
        disk = base / f"disk-{i}"
        with small_disk(disk, size) as remount:
            limits = {}
            if remount is None:
                kind = "a limit on the size of files"
                limit = rng.randint(0, 16) * 1024
                limits["preexec_fn"] = lambda limit=limit: resource.setrlimit(
                    resource.RLIMIT_FSIZE, (limit, limit)
                )
            out = f"disk-{i}/run"
            code, err = ended(begin(base, out, **limits))
            filled += code != 0
            failure = wrong(code, err) if code else None
            if remount is not None:
                remount("size=10m")
            failure = failure or gone_on(base, out, expected.contents)
        if failure:
            failures.append(f"trial {i}, {size} bytes: {failure}")
    must = "one line, exit code 2, what was saved is whole; with room, it ends bitwise the same"
    return Row("full disk", trials, must, failures, f"{kind}; full in {filled}")


def attempts(base, out):
    """Try all that writes into a folder that cannot be written; return what is wrong."""
    failures = []
    for process in (
        start(base, out, "--resume", "--max-iters=30"),
        begin(base, out, "--overwrite"),
        begin(base, f"{out}/new"),
    ):
        fault = wrong(*ended(process))
        failures += [fault] if fault else []
    return failures


def read_only(trials, base, expected, seed):
    """A row: the folder becomes one that cannot be written, and later one that can again."""
    must, failures = "one line, exit code 2, nothing changes; writable again, it continues", []
    for i in range(trials):
        disk = base / f"read-only-{i}"
        with small_disk(disk, "10m") as remount:
            folder = disk / "run"
            if remount is None and os.geteuid() == 0:
                return Row("read-only folder", 0, must, [], "no mount, and root may write anywhere")
            code, err = ended(begin(base, f"read-only-{i}/run", "--max-iters=20"))
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            if remount is not None:
                remount("ro")
            else:
                folder.chmod(0o555)
            failures += [f"trial {i}: {line}" for line in attempts(base, f"read-only-{i}/run")]
            after = {path.name: path.read_bytes() for path in folder.iterdir()}
            if code or before != after or not {METRICS, LAST} <= after.keys() <= {*FILES}:
                failures.append(f"trial {i}: exit code {code}, {sorted(after)} {err}")
            if remount is not None:
                remount("rw")
            else:
                folder.chmod(0o755)
            code, err = ended(start(base, f"read-only-{i}/run", "--resume", "--max-iters=30"))
            if code or contents(folder)[METRICS][-1]["step"] != 30:
                failures.append(f"trial {i}: exit code {code}: {err.strip()}")
    return Row("read-only folder", trials, must, failures)
