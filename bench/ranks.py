"""Several processes, or ranks, that train one model: python bench/ranks.py

One process with a thread for each core, beside as many processes of a thread each under mpirun, in
turns: the same batch (strong scaling), and as many rows for each process as for the one (weak). The
time of a sum of the gradients, in float32 and in bfloat16, and what the latter is off by. What each
of two processes holds of GPT-2, with and without --shard-optimizer. Before that, from a model with
its assumptions, what networks would make of more GPUs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.lib import report
from minigpt import cli
from minigpt.backend.cores import usable_cores
from minigpt.errors import UserError
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.train.config import resolve
from minigpt.train.memory import resident
from minigpt.train.presets import PRESETS
from minigpt.train.ranks import join
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

VOCABULARY = 65
MPIRUN = ("mpirun", "--oversubscribe", "--bind-to", "none")
ROOT_USER = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
FEW = {"batch_size": 2, "block_size": 64}  # weights and moments are most of memory

# The model of a sum over g GPUs in each of n machines, of N bytes: each GPU sends and receives
# 2 (g - 1) / g N within its machine, and 2 (n - 1) / n N / g through its share of the network, one
# after the other. Assumed, not measured: bytes per second, and the time of a step.
NVLINK = 360e9  # of 450 GB/s each way of an H100
NETWORKS = {"400 Gb/s a GPU": 45e9, "100 Gb/s a machine of 8": 11e9 / 8}
GPT2_BYTES, GPT2_STEP_S = 4 * 124_439_808, 0.040  # float32; 16 x 1,024 tokens a GPU
BACKWARD = 2 / 3  # of a step: as long can a sum hide
GPUS = ((8, 1), (8, 8), (8, 64))  # in a machine, machines


def sum_seconds(nbytes, gpus, machines, network):
    """Return the modelled seconds of one sum."""
    inside = 2 * (gpus - 1) / gpus * nbytes / NVLINK
    return inside + 2 * (machines - 1) / machines * nbytes / gpus / NETWORKS[network]


def predict():
    """Print the model's times of a sum, and step / (step + what of the sum is waited for)."""
    print(
        f"predicted: GPT-2 124M, 16 x 1,024 tokens a GPU in {1e3 * GPT2_STEP_S:.0f} ms (assumed), "
        f"{NVLINK / 1e9:.0f} GB/s in a machine\n"
    )
    rows = []
    for network in NETWORKS:
        for gpus, machines in GPUS:
            whole = sum_seconds(GPT2_BYTES, gpus, machines, network)
            half = whole / 2
            waits = whole, half, max(0.0, half - BACKWARD * GPT2_STEP_S)
            shares = [f"{GPT2_STEP_S / (GPT2_STEP_S + wait):.0%}" for wait in waits]
            times = [f"{1e3 * s:.1f} ms" for s in (whole, half)]
            rows.append([network, str(gpus * machines), *times, *shares])
    sums, shares = ["sum, float32", "bfloat16"], ["efficiency, float32", "bfloat16", "hidden"]
    report.print_table(["network", "GPUs", *sums, *shares], rows)
    print("\nhidden: if sums in bfloat16 ran behind the backward pass, which they do not.\n")


def child(args):
    """Time steps and sums in this process and those beside it; the first prints JSON."""
    with join() as ranks:
        own = {"threads": args.threads, "batch_size": args.batch_size}
        own |= {"shard_optimizer": args.shard_optimizer, "gradient_accumulation_steps": 1}
        own |= {"block_size": args.block_size} if args.block_size else {}
        config, train_config = resolve(PRESETS[args.preset] | own, {"vocab_size": VOCABULARY})
        ids = np.random.default_rng(1337).integers(0, VOCABULARY, 100_000, dtype=np.int32)
        with Workers(args.threads) as workers:
            made = init_params(config, 1337, np), config, train_config, np, workers
            trainer = Trainer(*made, ranks=ranks)
            found = {"step_s": repeat(lambda i: trainer.step(ids, i), args.seconds, ranks)}
            moments = sum(getattr(trainer.optimizer, name).flat.nbytes for name in ("m", "v"))
            found |= {"moments": ranks.gather(moments), "resident": ranks.gather(resident()[0])}
            found |= {"gradients": trainer.grads.flat.nbytes}
            if args.sums:
                found |= time_sums(trainer, ids, args.seconds / 4, ranks)
        print(json.dumps(found))


def time_sums(trainer, ids, seconds, ranks):
    """Return the seconds of sums over the ranks, and how far off bfloat16 is: its relative norm."""
    x, y = trainer.batches(ids, 0)[0]
    trainer.gradients(x, y, Rng.of(1337, 0, 0))
    flat = trainer.grads.flat
    exact, close = flat.copy(), flat.copy()
    ranks.sum(exact)
    ranks.sum_gradients(close, narrow=True)
    error = float(np.linalg.norm(close - exact) / np.linalg.norm(exact))
    flat[...] = 0  # or it grows from sum to sum
    sums = repeat(lambda _: ranks.sum(flat), seconds, ranks)
    narrow = repeat(lambda _: ranks.sum_gradients(flat, narrow=True), seconds, ranks)
    return {"sum_s": median(sums), "narrow_s": median(narrow), "narrow_error": error}


def repeat(fn, seconds, ranks):
    """Return the seconds of calls of fn(i), by the first rank's clock, without the first."""
    took, start = [], ranks.first(time.perf_counter)
    while len(took) < 3 or sum(took) < seconds:
        fn(len(took))
        now = ranks.first(time.perf_counter)
        took.append(now - start)
        start = now
    return took[1:]


def start(ranks, threads, **options):
    """Return what `child` prints of so many ranks; options that are True are flags."""
    command = [sys.executable, __file__, "--child", "--threads", str(threads)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] * bool(value) if isinstance(value, bool) else [flag, str(value)]
    if ranks > 1:
        command = [*MPIRUN, "-n", str(ranks), *command]
    variables = os.environ | dict.fromkeys(ROOT_USER, "1")
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=variables)
    return json.loads(done.stdout)


def compare(args, cores):
    """Time all kinds in turns; print and return a record of each."""
    rows = args.batch_size
    kinds = {  # processes, threads, rows
        f"1 process of {cores} threads": (1, cores, rows),
        f"{cores} processes of 1 thread, the same batch": (cores, 1, rows),
        "1 process of 1 thread": (1, 1, rows),
        f"{cores} processes of 1 thread, {rows} rows each": (cores, 1, cores * rows),
    }
    found = {kind: [] for kind in kinds}
    for i in range(args.rounds):
        for kind, (ranks, threads, batch_size) in kinds.items():
            print(f"round {i + 1} of {args.rounds}: {kind} ...", file=sys.stderr, flush=True)
            options = {"preset": args.preset, "batch_size": batch_size, "seconds": args.seconds}
            sums = ranks > 1 and batch_size == rows
            found[kind].append(start(ranks, threads, sums=sums, **options))
    records = []
    for kind, parts in found.items():
        ranks, threads, batch_size = kinds[kind]
        steps = [median(part["step_s"]) for part in parts]
        record = {"preset": args.preset, "processes": ranks, "threads": threads}
        records.append(record | {"batch_size": batch_size, "rounds_s": steps})
        if "sum_s" in parts[0]:
            records[-1] |= sums_of(parts, ranks)
    print_steps(kinds, records)
    return records


def sums_of(parts, ranks):
    """Return what belongs to a record of sums."""
    sent = 2 * (ranks - 1) * parts[0]["gradients"] // ranks  # there and back; of bfloat16 half
    medians = {name: median(part[name] for part in parts) for name in ("sum_s", "narrow_s")}
    return {"sent": sent, **medians, "narrow_error": parts[0]["narrow_error"]}


def print_steps(kinds, records):
    """Print a row for each kind, and what is known of the sums."""
    rows, first = [], median(records[0]["rounds_s"])
    for kind, record in zip(kinds, records, strict=True):
        times = record["rounds_s"]
        spread = f"{1e3 * min(times):.0f}-{1e3 * max(times):.0f}"
        rows.append([kind, f"{1e3 * median(times):.1f} ms", spread, f"{median(times) / first:.3f}"])
    report.print_table([records[0]["preset"], "step", "rounds", "over the first"], rows)
    for record in records:
        if "sum_s" in record:
            sent, share = record["sent"] / 1e6, record["sum_s"] / median(record["rounds_s"])
            print(
                f"\na sum: {1e3 * record['sum_s']:.1f} ms ({share:.1%} of a step), each sends "
                f"{sent:.1f} MB; in bfloat16 {1e3 * record['narrow_s']:.1f} ms, {sent / 2:.1f} MB, "
                f"off by {record['narrow_error']:.1e} of the norm"
            )


def memory_of_moments(preset):
    """Print and return what each of two processes holds, without and with --shard-optimizer."""
    records, rows = [], []
    for sharded in (False, True):
        print(f"memory{', sharded' * sharded} ...", file=sys.stderr, flush=True)
        found = start(2, 1, preset=preset, shard_optimizer=sharded, seconds=0, **FEW)
        record = {"preset": preset, "processes": 2, "shard_optimizer": sharded}
        records.append(record | {name: found[name] for name in ("moments", "resident")})
        figures = zip(found["moments"], found["resident"], strict=True)
        each = [f"{x / 1e6:,.0f}" for pair in figures for x in pair]
        rows.append(["sharded" if sharded else "whole", *each])
    print()
    headings = [f"rank {rank} {what} MB" for rank in (0, 1) for what in ("moments", "resident")]
    report.print_table([preset, *headings], rows)
    return records


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/ranks.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    presets = {"choices": list(PRESETS), "metavar": "NAME"}
    add("--preset", default="nanogpt-baby", help="whose steps are timed", **presets)
    add("--large", default="gpt2", help="whose memory is shown", **presets)
    report.add_number(parser, "--batch-size", 16, "sequences of a batch")
    report.add_number(parser, "--rounds", 3, "times that each is measured")
    report.add_number(parser, "--threads", usable_cores(), "threads, or processes instead")
    add("--seconds", type=float, default=5.0, help="of each measurement (default: 5)")
    add("--json", metavar="FILE", help="also write the figures there")
    for flag in ("--child", "--sums", "--shard-optimizer"):
        add(flag, action="store_true", help=argparse.SUPPRESS)
    add("--block-size", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv, argparse.Namespace(plot=None))


def main(argv=None):
    """Predict, then measure."""
    args = arguments(argv)
    if args.child:
        child(args)
        return 0
    env = report.environment(args.threads)
    report.print_environment(env)
    predict()
    if shutil.which(MPIRUN[0]) is None:
        raise UserError("there is no mpirun; install an MPI library, such as Debian's openmpi-bin")
    records = compare(args, args.threads) + memory_of_moments(args.large)
    report.finish(args, "ranks", env, records, None)
    return 0


if __name__ == "__main__":
    report.run(main)
