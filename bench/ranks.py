"""Several processes: python bench/ranks.py

One process with as many threads as there are cores, beside as many processes of a thread each, in
turns: the same batch (strong scaling), and as many rows for each process as for the one (weak). The
time of a sum of the gradients, in float32 and in bfloat16, and what the latter is off by; and from
a model, what networks would make of more.
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

from minigpt.backend.blas import blas_threads
from minigpt.backend.cores import usable_cores
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS
from minigpt.train.ranks import join
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

VOCABULARY = 65
MPIRUN = ("mpirun", "--oversubscribe", "--bind-to", "none")
ROOT_USER = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")

# The model of a sum over g GPUs in each of n machines, of N bytes: each GPU sends and receives
# 2 (g - 1) / g N within its machine, and 2 (n - 1) / n N / g through its share of the network, one
# after the other, nothing of it behind the passes. Assumed, not measured: bytes per second.
NVLINK = 360e9  # of 450 GB/s each way of an H100
NETWORKS = {"400 Gb/s a GPU": 45e9, "100 Gb/s a machine of 8": 11e9 / 8}
GPT2_BYTES, GPT2_STEP_S = 4 * 124_439_808, 0.040  # float32; 16 x 1,024 tokens, assumed


def sum_seconds(nbytes, gpus, machines, network):
    """Return the modelled seconds of one sum."""
    inside = 2 * (gpus - 1) / gpus * nbytes / NVLINK
    return inside + 2 * (machines - 1) / machines * nbytes / gpus / NETWORKS[network]


def predict():
    """Print the model's efficiency, and what halves the bytes."""
    print("\nGPT-2 124M, 16 x 1,024 tokens a GPU, assumed 40 ms; a sum, and step / (step + sum)")
    for network in NETWORKS:
        for gpus, machines in ((8, 1), (8, 8), (8, 64)):
            parts = []
            for name, nbytes in (("float32", GPT2_BYTES), ("bfloat16", GPT2_BYTES / 2)):
                s = sum_seconds(nbytes, gpus, machines, network)
                parts.append(f"{name} {1e3 * s:6.1f} ms {GPT2_STEP_S / (GPT2_STEP_S + s):4.0%}")
            print(f"  {gpus * machines:>4} GPUs, {network:<24} {'   '.join(parts)}")


def child(args):
    """Time steps and sums in this process and those beside it; the first prints JSON."""
    with join() as ranks:
        own = {"threads": args.threads, "batch_size": args.batch_size}
        options = PRESETS[args.preset] | own
        config, train_config = resolve(options, {"vocab_size": VOCABULARY})
        ids = np.random.default_rng(1337).integers(0, VOCABULARY, 100_000, dtype=np.int32)
        with blas_threads(args.threads), Workers(args.threads) as workers:
            made = init_params(config, 1337, np), config, train_config, np, workers
            trainer = Trainer(*made, ranks=ranks)
            steps = repeat(lambda i: trainer.step(ids, i), args.seconds, ranks)
            found = {"step_s": steps, "bytes": trainer.grads.flat.nbytes}
            found |= time_sums(trainer, ids, args.seconds / 4, ranks)
        print(json.dumps(found))


def time_sums(trainer, ids, seconds, ranks):
    """Return the seconds of sums over the ranks, and how far off bfloat16 is: its relative norm."""
    if ranks.size == 1:
        return {"sum_s": [0.0], "narrow_s": [0.0], "narrow_error": 0.0}
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
    return {"sum_s": sums, "narrow_s": narrow, "narrow_error": error}


def repeat(fn, seconds, ranks):
    """Return the seconds of calls of fn(i), by the first rank's clock, without the first two."""
    took, start = [], ranks.first(time.perf_counter)
    while len(took) < 4 or sum(took) < seconds:
        fn(len(took))
        now = ranks.first(time.perf_counter)
        took.append(now - start)
        start = now
    return took[2:]


def start(args, ranks, threads, batch_size):
    """Return what `child` prints of so many ranks."""
    command = [sys.executable, __file__, "--child", "--preset", args.preset]
    command += ["--threads", str(threads), "--seconds", str(args.seconds)]
    command += ["--batch-size", str(batch_size)]
    if ranks > 1:
        command = [*MPIRUN, "-n", str(ranks), *command]
    variables = os.environ | dict.fromkeys(ROOT_USER, "1")
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=variables)
    return json.loads(done.stdout)


def compare(args, cores):
    """Time all kinds in turns; return a record of each."""
    rows = args.batch_size
    kinds = {
        f"1 process of {cores} threads": (1, cores, rows),
        f"{cores} processes of 1 thread, the same batch": (cores, 1, rows),
        "1 process of 1 thread": (1, 1, rows),
        f"{cores} processes of 1 thread, {rows} rows each": (cores, 1, cores * rows),
    }
    found = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for kind, how in kinds.items():
            found[kind].append(start(args, *how))
    records = []
    for kind, parts in found.items():
        ranks, nbytes = kinds[kind][0], parts[0]["bytes"]
        sent = 2 * (ranks - 1) * nbytes // ranks  # there and back; of bfloat16 half
        steps, sums, narrow = (
            [1e3 * median(part[name]) for part in parts] for name in ("step_s", "sum_s", "narrow_s")
        )
        records.append({"kind": kind, "step_ms": steps, "sum_ms": sums, "bytes": nbytes})
        records[-1] |= {"sent_bytes": sent, "narrow_ms": narrow, "narrow_sent_bytes": sent // 2}
        records[-1] |= {"narrow_error": parts[0]["narrow_error"]}
        line = f"  {kind:<44} step {median(steps):8.2f} ms ({min(steps):.2f}-{max(steps):.2f})"
        if ranks > 1:
            line += (
                f"   sum {median(sums):6.2f} ms, {sent / 1e6:.1f} MB sent; in bfloat16 "
                f"{median(narrow):6.2f} ms, {sent / 2e6:.1f} MB, off by "
                f"{parts[0]['narrow_error']:.1e} of the norm"
            )
        print(line)
    return records


def main():
    """Measure, and predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nanogpt-baby", choices=list(PRESETS))
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for the record")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    if shutil.which(MPIRUN[0]) is not None:
        print(f"{args.preset}, medians of {args.rounds} rounds:")
        records = compare(args, usable_cores())
        if args.json:
            Path(args.json).write_text(json.dumps({"records": records}, indent=1) + "\n")
    predict()


if __name__ == "__main__":
    main()
