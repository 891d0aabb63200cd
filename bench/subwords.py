"""Bits per byte after equal time, with characters and with subwords: python bench/subwords.py

Each run is a whole `python -m minigpt.train` with a wall-clock budget. Those of one seed begin at
the same moment, have a thread each and share the cores, so that other load on the machine meets all
alike; the seconds of a processor that each has had are in the record. All have the options of the
preset, the block size among them: with subwords a block reaches further back, and its head is
larger. Bits per byte are of the whole validation split of the text, which is the same for all.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.lib import report, timing

CHAR = "char"
RUNS = (CHAR, "512", "1024", "4096")
NOTE = """
Bits per byte at the end: median over the seeds, with the lowest and the highest. Tokens are those
that a run has seen, bytes what they stand for on average; processor: its seconds, user and system.
"""


def start(name, args, seed, folder):
    """Begin a run; return its process and the file of its output."""
    out = str(folder / name)
    tokenizer = ["--tokenizer", CHAR] if name == CHAR else ["--tokenizer", "bpe"]
    tokenizer += [] if name == CHAR else ["--vocab-size", name]
    data = ["--data", args.data] if args.data else []
    command = [sys.executable, "-m", "minigpt.train", "--preset", args.preset, "--threads", "1"]
    command += ["--max-seconds", str(args.seconds), "--seed", str(seed), "--out-dir", out]
    env = os.environ | {"PYTHONPATH": str(timing.ROOT)}
    log = open(folder / f"{name}.log", "w+", encoding="utf-8")  # noqa: SIM115
    command += [*tokenizer, *data, *args.flags.split()]
    return subprocess.Popen(command, stdout=log, stderr=log, env=env), log


def finish(process, log):
    """Wait for a run; return the seconds of a processor that it has had."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    log.seek(0)
    text = log.read().strip()
    log.close()
    if process.returncode:
        last = text.splitlines()[-1] if text else "no output"
        raise report.WrongResult(f"a run ended with exit code {process.returncode}: {last}")
    return usage.ru_utime + usage.ru_stime


def result(folder, cpu_s):
    """Return what a run has come to, by its metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [
        (line["seconds"], line["step"], line["val_loss"], line["val_bpb"])
        for line in lines
        if line.get("val_bpb") is not None
    ]
    end, whole = next(line for line in reversed(lines) if "tokens" in line), lines[-1]
    loss, bpb = (whole.get(f"whole_{key}", end[key]) for key in ("val_loss", "val_bpb"))
    return {
        "curve": curve,
        "val_loss": loss,
        "val_bpb": bpb,
        "best_bpb": min(bpb, *(point[-1] for point in curve)),
        "steps": end["step"],
        "tokens": end["tokens"],
        "seconds": end["seconds"],
        "cpu_s": cpu_s,
    }


def side_by_side(args, seed):
    """Train with every tokenizer at the same time; return {name: result}."""
    with tempfile.TemporaryDirectory(prefix="minigpt-") as folder:
        folder, begun = Path(folder), {}
        try:
            for name in args.runs:
                begun[name] = start(name, args, seed, folder)
            cpu_s = {name: finish(*run) for name, run in begun.items()}
        finally:
            for process, log in begun.values():
                if process.returncode is None:
                    process.kill()
                    process.wait()
                log.close()
        return {name: result(folder / name, cpu_s[name]) for name in args.runs}


def records_of(args):
    """Return a record per tokenizer, with a result per seed."""
    records = [
        {"tokenizer": name, "preset": args.preset, "budget_s": args.seconds, "results": []}
        for name in args.runs
    ]
    for seed in args.seeds:
        began, found = time.perf_counter(), side_by_side(args, seed)
        for record in records:
            record["results"].append({"seed": seed, **found[record["tokenizer"]]})
        ends = ", ".join(f"{called(name)} {found[name]['val_bpb']:.4f}" for name in args.runs)
        print(f"seed {seed}: {ends}; {time.perf_counter() - began:.0f} s", flush=True)
    return records


def called(name):
    """Return what a run is called."""
    return "characters" if name == CHAR else f"BPE {name}"


def bytes_per_token(found):
    """Return the bytes of a token of the validation split, by what a loss is in both units."""
    return found["val_loss"] / (found["val_bpb"] * math.log(2))


def spread(numbers, digits=4):
    """Return a median, with the lowest and the highest where there are several numbers."""
    text = f"{statistics.median(numbers):.{digits}f}"
    return text + f" ({min(numbers):.{digits}f} - {max(numbers):.{digits}f})" * (len(numbers) > 1)


def print_records(records):
    """Print a line per tokenizer."""
    rows = []
    for record in records:
        found = record["results"]
        median = {
            key: statistics.median(r[key] for r in found)
            for key in ("val_loss", "steps", "tokens", "cpu_s")
        }
        size = statistics.median(map(bytes_per_token, found))
        rows.append(
            [
                called(record["tokenizer"]),
                spread([r["val_bpb"] for r in found]),
                f"{median['val_loss']:.4f}",
                f"{size:.2f}",
                f"{median['steps']:,.0f}",
                f"{median['tokens'] / 1e6:.2f} M",
                f"{median['tokens'] * size / 1e6:.2f} MB",
                f"{median['cpu_s']:.0f} s",
            ]
        )
    headings = ["tokenizer", "bits per byte", "nats per token", "bytes per token", "steps"]
    print()
    report.print_table([*headings, "tokens seen", "text seen", "processor"], rows)
    print(NOTE)


def draw(path, records, _):
    """Draw bits per byte against seconds, a line per run."""
    with report.figure(path) as (axes,):
        for i, record in enumerate(records):
            for j, found in enumerate(record["results"]):
                seconds, _, _, bpb = zip(*found["curve"], strict=True)
                label = None if j else called(record["tokenizer"])
                axes.plot(seconds, bpb, color=f"C{i}", marker=".", linewidth=1, label=label)
        title = f"preset {records[0]['preset']}, one thread each, side by side"
        report.label(axes, "seconds of training", "bits per byte (validation)", title)


def parse(argv):
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python bench/subwords.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("preset", nargs="?", default="quick", help="of minigpt.train (quick)")
    parser.add_argument("--data", metavar="FILE", help="text (default: tiny Shakespeare)")
    parser.add_argument(
        "--runs",
        nargs="+",
        default=RUNS,
        metavar="RUN",
        help=f"char, or the size of a BPE vocabulary (default: {' '.join(RUNS)})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=(1, 2, 3), metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=240.0, metavar="X", help="of each run (default: 240)"
    )
    parser.add_argument("--flags", default="", help="more flags of minigpt.train, in one string")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", metavar="FILE", help="also draw a picture there (matplotlib)")
    return parser.parse_args(argv)


def main(argv=None):
    """Train with every tokenizer side by side, the seeds in turn."""
    args = parse(argv)
    env = report.environment(1)
    env["packages"] |= report.installed("tokenizers")
    report.print_environment(env)
    records = records_of(args)
    print_records(records)
    report.finish(args, "tokenizers", env, records, draw)


if __name__ == "__main__":
    report.run(main)
