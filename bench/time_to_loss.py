"""Wall time from a command's start to a validation loss: python bench/time_to_loss.py

Each entry of PLAN is a whole `python -m minigpt.train`, start-up and evaluations included: the time
of a loss is when its line is printed. Beside them runs nanoGPT's recipe for a CPU, in torch, which
evaluates as rarely. Losses are over the whole validation split, in nats per token.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.lib import report, timing
from minigpt.backend.cores import usable_cores

THRESHOLDS = (1.898, 1.70, 1.60, 1.55, 1.50, 1.4697)
SEEDS = (1, 2, 3)
# Names, and preset and --max-seconds of each run.
PLAN = {
    **{
        name: ("quick", s)
        for name, s in {"8 s": 8, "13 s": 13, "1 min": 60, "2.5 min": 150}.items()
    },
    **{name: ("quality", s) for name, s in {"8 min": 480, "12 min": 720, "30 min": 1800}.items()},
}
LINE = re.compile(r"^step +([\d,]+) .*validation (\d+\.\d+)")
NOTE = """
s: median over the seeds, with the lowest and the highest; - where not all of them came so low. The
seeds are not chosen, and the validation split takes no part in training."""


def curve(command):
    """Run a command; return [(seconds since its start, step, validation loss)]."""
    start, found = time.perf_counter(), []
    env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(timing.ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stdout:
            match = LINE.match(line)
            if match:
                step, loss = int(match[1].replace(",", "")), float(match[2])
                found.append((time.perf_counter() - start, step, loss))
    if process.returncode:
        raise report.WrongResult(f"{' '.join(command)} ended with exit code {process.returncode}")
    return found


def minigpt_run(preset, seconds, seed, flags):
    """Return the curve of a run with a wall-clock budget, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out-dir", str(Path(folder) / "run"), "--seed", str(seed)]
        budget = ["--preset", preset, "--max-seconds", str(seconds)]
        return curve([sys.executable, "-m", "minigpt.train", *budget, *out, *flags])


def torch_run(seed, flags):
    """Return the curve of nanoGPT's recipe in torch."""
    return curve([sys.executable, "-m", "bench.lib.nanogpt_torch", "--seed", str(seed), *flags])


def seconds_to(threshold, points):
    """Return when a curve first was at or below a loss, or None."""
    return next((seconds for seconds, _, loss in points if loss <= threshold), None)


def summary(curves):
    """Return {threshold: [seconds of each seed]} of those that all seeds came to."""
    times = {t: [seconds_to(t, points) for points in curves] for t in THRESHOLDS}
    return {t: found for t, found in times.items() if None not in found}


def median_text(times):
    """Return the median of some seconds, with the lowest and the highest."""
    return f"{statistics.median(times):.1f} ({min(times):.1f} - {max(times):.1f})"


def print_records(records):
    """Print a line per run: the loss at its end, and when it came below each threshold."""
    rows = []
    for record in records:
        last = [points[-1][2] for points in record["curves"]]
        reached = summary(record["curves"])
        cells = [median_text(reached[t]) if t in reached else "-" for t in THRESHOLDS]
        end = f"{statistics.median(last):.4f} ({min(last):.4f} - {max(last):.4f})"
        rows.append([record["name"], end, *cells])
    report.print_table(["run", "loss at its end", *(f"to {t:g}, s" for t in THRESHOLDS)], rows)
    print(NOTE)


def draw(path, records, _):
    """Draw loss against seconds, a line per seed."""
    with report.figure(path) as (axes,):
        for i, record in enumerate(records):
            for j, points in enumerate(record["curves"]):
                axes.plot(
                    [seconds for seconds, _, _ in points],
                    [loss for *_, loss in points],
                    color=f"C{i}",
                    marker=".",
                    linewidth=1,
                    label=None if j else named(record["name"]),
                )
        axes.set_xscale("log")
        axes.xaxis.get_minor_locator().set_params(subs=(2, 3, 5))  # more labels would touch
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter("{x:,g}")
        report.label(
            axes,
            "seconds from the command's start",
            "validation loss (nats per character)",
            "tiny Shakespeare",
        )


def named(run):
    """Return a run's name in the picture."""
    return "nanoGPT's recipe in torch" if run == "torch" else f"minigpt, {run}"


def parse(argv):
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs = ", ".join((*PLAN, "torch"))
    default = ["13 s", "1 min", "torch"]
    parser.add_argument(
        "--runs",
        nargs="+",
        choices=(*PLAN, "torch"),
        default=default,
        metavar="RUN",
        help=f"which of: {runs} (default: {', '.join(default)})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--flags", default="", help="more flags of minigpt.train, in one string")
    parser.add_argument("--torch-flags", default="", help="of bench/lib/nanogpt_torch.py")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", metavar="FILE", help="also draw a picture there (matplotlib)")
    return parser.parse_args(argv)


def main(argv=None):
    """Time every run with every seed, the seeds in turn."""
    args = parse(argv)
    env = report.environment(usable_cores())
    report.print_environment(env)
    records = [{"name": name, "curves": []} for name in args.runs]
    for seed in args.seeds:
        for record in records:
            if record["name"] == "torch":
                points = torch_run(seed, args.torch_flags.split())
            else:
                points = minigpt_run(*PLAN[record["name"]], seed, args.flags.split())
            record["curves"].append(points)
            seconds, step, loss = points[-1]
            print(f"{record['name']}, seed {seed}: {loss:.4f} after {seconds:.1f} s, {step} steps")
    print()
    print_records(records)
    report.finish(args, "time_to_loss", env, records, draw)


if __name__ == "__main__":
    report.run(main)
