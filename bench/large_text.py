"""Train on large texts for a wall-clock budget, in fresh processes: `python bench/large_text.py`.

The texts are the standard library's sources, over and over. Printed are the time to the first step
and of the whole command, and the peak of memory: all that is resident, what of it the process has
for itself, and what of it is mapped from files, which the system may take back. The first run makes
a file of tokens in a cache of its own; the second finds it there. Needs Linux.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # started as a file, Python looks in bench/ alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.lib import report, timing
from minigpt.backend.cores import usable_cores
from minigpt.errors import UserError

MB = 10**6
FIELDS = {"VmHWM": "resident", "RssAnon": "anonymous", "RssFile": "mapped"}
LOOK_S = 0.02  # seconds between two looks at a process


def library_text():
    """Return the sources of the standard library as bytes, UTF-8."""
    library, parts = Path(sysconfig.get_paths()["stdlib"]), []
    for path in sorted(library.rglob("*.py")):
        raw = path.read_bytes()
        if "site-packages" not in path.parts and raw.decode("utf-8", "ignore").encode() == raw:
            parts.append(raw)
    return b"\n".join(parts)


def write_text(path, size, raw):
    """Write `raw` over and over until there are `size` bytes of whole characters."""
    with open(path, "wb") as file:
        left = size
        while left > 0:
            part = raw[:left]
            file.write(part.decode("utf-8", "ignore").encode())
            left -= len(part)


def memory(pid):
    """Return {name: bytes} of a process at this moment; none once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = (line.split(":") for line in lines)
    return {FIELDS[key]: 1024 * int(value.split()[0]) for key, value in found if key in FIELDS}


def watch(checkout, data, folder, args):
    """Train in a process of its own; return its record.

    Raises
    ------
    UserError
        If the process fails.
    """
    command = [sys.executable, "-m", "minigpt.train", "--data", str(data), "--out-dir", folder]
    command += ["--max-seconds", f"{args.max_seconds:g}", "--log-interval", "1"]
    command += ["--threads", str(args.threads)]
    cache = str(data.parent / "cache")
    env = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": cache, "MPLBACKEND": "agg"}
    start, first, peak = time.perf_counter(), None, dict.fromkeys(FIELDS.values(), 0)
    metrics = Path(folder, "metrics.jsonl")
    with open(data.with_suffix(".log"), "w+") as log:
        run = subprocess.Popen(command, cwd=checkout, env=env, stdout=log, stderr=log)
        while run.poll() is None:
            time.sleep(LOOK_S)
            for name, size in memory(run.pid).items():
                peak[name] = max(peak[name], size)
            if first is None and metrics.exists() and metrics.stat().st_size:
                first = time.perf_counter() - start
        log.seek(0)
        said = log.read().strip().splitlines()
    if run.returncode or first is None:
        raise UserError(f"{checkout}: exit code {run.returncode}: {(said or [''])[-1]}")
    steps = len(metrics.read_bytes().splitlines())
    record = {"first_step_s": first, "wall_s": time.perf_counter() - start, "steps": steps}
    return record | {f"{name}_bytes": size for name, size in peak.items()}


def records_of(args):
    """Return a record per run: of each text two here, and one in another checkout."""
    checkouts = {"here": timing.ROOT, "before": args.before and args.before.resolve()}
    raw, found = library_text(), []
    for megabytes in args.sizes:
        with tempfile.TemporaryDirectory(prefix="minigpt-") as folder:
            data = Path(folder) / "text.txt"
            write_text(data, megabytes * MB, raw)
            for name, checkout in checkouts.items():
                turns = ("first", "second") if name == "here" else ("first",)
                for turn in turns if checkout else ():
                    run = watch(checkout, data, str(Path(folder) / f"{name}-{turn}"), args)
                    record = {"text_bytes": data.stat().st_size, "code": name, "run": turn}
                    found.append(record | run)
    return found


def draw(path, records, env):
    """Draw time to the first step and memory, a bar per run."""
    names = [f"{r['text_bytes'] / MB:.0f} MB\n{r['code']}\n{r['run']}" for r in records]
    with report.figure(path, panels=2) as panels:
        for axes, key, unit, title in (
            (panels[0], "first_step_s", 1, "seconds to the first step"),
            (panels[1], "resident_bytes", MB, "peak of memory, MB"),
        ):
            axes.bar(names, [r[key] / unit for r in records])
            report.label(axes, None, title, env["cpu"])


def arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python bench/large_text.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    report.add_number(parser, "--sizes", (30, 300), "of the texts, in MB")
    report.add_number(parser, "--max-seconds", 20, "wall-clock budget of a run")
    report.add_number(parser, "--threads", usable_cores(), "of a run")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="also run this checkout")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", metavar="FILE", help="also draw a picture there (matplotlib)")
    return parser.parse_args(argv)


def main(argv=None):
    """Run each text twice; print a row per run."""
    args = arguments(argv)
    if not Path("/proc/self/status").exists():
        raise UserError("bench/large_text.py reads memory from /proc, which only Linux has")
    if args.before and not (args.before / "minigpt" / "__init__.py").exists():
        raise UserError(f"--before {args.before} is no checkout of minigpt; name one")
    env = report.environment(args.threads)
    report.print_environment(env)
    records = records_of(args)
    headings = ["text", "first step", "whole command", "steps", "memory", "own", "mapped"]
    rows = []
    for r in records:
        name = f"{r['text_bytes'] / MB:.0f} MB, {r['code']}, {r['run']} run"
        times = [f"{r[key]:.1f} s" for key in ("first_step_s", "wall_s")]
        sizes = [f"{r[f'{key}_bytes'] / MB:,.0f} MB" for key in FIELDS.values()]
        rows.append([name, *times, str(r["steps"]), *sizes])
    report.print_table(headings, rows)
    report.finish(args, "large_text", env, records, draw)


if __name__ == "__main__":
    report.run(main)
