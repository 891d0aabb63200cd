"""A whole training step beside an equal torch model: python bench/step.py

A step is batch, forward, backward, clipping and AdamW, in float32. Both models start from the same
weights, and before anything is timed loss and gradients are compared; a difference ends with exit
code 1. Torch has as many threads and the faster of its AdamW implementations.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.lib import op_profile, report, timing
from minigpt import cli
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.params import leaves
from minigpt.train.config import TrainConfig, resolve
from minigpt.train.cost import flops_per_step
from minigpt.train.presets import PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

SIZES = {"nanogpt-cpu": (12, 64), "nanogpt-baby": (16, 256), "gpt2": (4, 64)}  # batch, context
CHARACTERS = 65  # vocabulary of the presets for tiny Shakespeare
TOLERANCE = 1e-4  # relative difference of the loss, and of each gradient by norm
NOTE = """
ms: median, +- half the distance of the quartiles. x: median over minigpt's, above 1 minigpt is
faster; in brackets the quartiles of the ratio within a round. peak: % of the rate of float32 matrix
products (SGEMM), measured before and after, for the FLOPs that a step needs: 6 per weight of a
matrix and token, and attention by its lower triangle (in brackets by the full square, as nanoGPT
counts). MB: peak resident memory of a process of its own; +MB: less what its imports take.
"""


class Problem(NamedTuple):
    """What is trained."""

    name: str
    config: GPTConfig
    train_config: TrainConfig

    @property
    def tokens(self):
        return self.train_config.batch_size * self.config.block_size

    def flops(self):
        """Return FLOPs of the matrix products of a step, by triangle and by full square."""
        c = self.config
        by_triangle = flops_per_step(c, self.train_config)
        hidden = c.n_layer * (c.block_size - 1) * c.n_embd
        return by_triangle, by_triangle + 6 * hidden * self.tokens


def problem(name, args):
    """Return a preset at the sizes that are timed here, or at those of the flags."""
    batch_size, block_size = SIZES[name]
    values = PRESETS[name] | {"gradient_accumulation_steps": 1}
    values["batch_size"] = args.batch_size or batch_size
    values["block_size"] = args.block_size or block_size
    if args.dropout is not None:
        values["dropout"] = args.dropout
    return Problem(name, *resolve(values, {"vocab_size": values.get("vocab_size", CHARACTERS)}))


def tokens_of(problem):
    """Return ids to train on: as many as tiny Shakespeare has, random."""
    rng = np.random.default_rng(1337)
    return rng.integers(0, problem.config.vocab_size, 1_000_000, dtype=np.int32)


def minigpt_trainer(problem, workers):
    """Return a minigpt Trainer with fresh weights."""
    params = init_params(problem.config, 1337, np)
    return Trainer(params, problem.config, problem.train_config, np, workers)


def minigpt_step(problem, workers):
    """Return a function that trains minigpt by a step."""
    worker, ids, steps = minigpt_trainer(problem, workers), tokens_of(problem), iter(range(2**62))
    return lambda: worker.step(ids, next(steps))


def check(problem, workers):
    """Compare loss and gradients of the two models on the same weights and batch, no dropout.

    Raises
    ------
    WrongResult
        If one differs by more than `TOLERANCE`.
    """
    import torch

    from bench.lib import torch_models

    problem = problem._replace(config=dataclasses.replace(problem.config, dropout=0.0))
    ours = minigpt_trainer(problem, workers)
    theirs = torch_models.GPT(problem.config)
    theirs.load(ours.params.tree)
    T = problem.config.block_size
    text = tokens_of(problem)[: problem.train_config.batch_size * (T + 1)].reshape(-1, T + 1)
    ids, targets = text[:, :-1], text[:, 1:]
    batch = np.ascontiguousarray(ids), np.ascontiguousarray(targets)
    loss = ours.gradients(*batch, Rng.of(0))
    want = theirs(*(torch.from_numpy(x).long() for x in (ids, targets)))
    want.backward()
    if not abs(loss - want.item()) <= TOLERANCE * want.item():
        raise report.WrongResult(f"{problem.name}: loss is {loss}, torch's is {want.item()}")
    right = theirs.tensors(lambda x: x.grad)
    for name, grad in leaves(ours.grads.tree):
        error = (torch_models.as_torch(name, grad) - right[name]).norm() / right[name].norm()
        if not error <= TOLERANCE:
            raise report.WrongResult(
                f"{problem.name}: gradient of {name} differs from torch's by {error:.1e} of its "
                f"norm; {TOLERANCE:.0e} is allowed"
            )


def torch_steps(problem, kind, names):
    """Return {name: function} of torch steps that start from the same weights."""
    from bench.lib import torch_models

    weights = init_params(problem.config, 1337, np).tree
    ids = tokens_of(problem)
    return torch_models.steps(problem.config, problem.train_config, weights, ids, kind, names)


def memory(name, args, candidate, kind):
    """Return {"libraries", "peak"}: resident bytes of a fresh process that takes three steps."""
    flags = ["--preset", name, "--threads", args.threads, "--memory-of", candidate]
    for flag in ("batch_size", "block_size", "dropout"):
        if getattr(args, flag) is not None:
            flags += ["--" + flag.replace("_", "-"), getattr(args, flag)]
    return timing.in_child(__file__, *flags, *(["--optimizer", kind] if kind else []))


def own_memory(args):
    """Return what `memory` asks the fresh process for."""
    this, name = problem(args.preset[0], args), args.memory_of
    if name != "minigpt":
        from bench.lib import torch_models  # noqa: F401, counted with the libraries

        timing.torch_on(args.threads)
    before = timing.resident_start()
    if name == "minigpt":
        step = minigpt_step(this, Workers(args.threads))
    else:
        step = torch_steps(this, args.optimizer, [name])[name]
    for _ in range(3):
        step()
    return {"libraries": before, "peak": timing.resident_peak()}


def compare(this, args, names, kind, busy):
    """Time the candidates in turns; return a record per candidate."""
    peak = timing.sgemm_peak(args.threads)
    with Workers(args.threads) as workers:
        steps = {"minigpt": minigpt_step(this, workers)}
        if names:
            steps |= torch_steps(this, kind, names)
        times = timing.measure(steps, args.seconds)
    peak = max(peak, timing.sgemm_peak(args.threads))
    records = []
    for name, taken in times.items():
        rate = [flops / taken.median for flops in this.flops()]
        record = {
            "preset": this.name,
            "candidate": name,
            "busy": busy,
            "dropout": this.config.dropout,
        }
        record |= {"batch_size": this.train_config.batch_size, "block_size": this.config.block_size}
        record |= {"time": taken.record(), "tokens_per_s": this.tokens / taken.median}
        record |= {"flops": this.flops(), "sgemm_peak_flops_per_s": peak}
        record |= {"share_of_peak": [r / peak for r in rate]}
        record |= {"ratio_to_minigpt": timing.ratio(taken, times["minigpt"])}
        if name.startswith("torch"):
            record["optimizer"] = kind
        records.append(record)
    return records


def bench(name, args, torch):
    """Check and time one preset, and measure its memory; return a record per candidate."""
    this = problem(name, args)
    print(f"{name} ...", file=sys.stderr, flush=True)
    names, kind = [], None
    if torch is not None:
        from bench.lib import torch_models

        with Workers(args.threads) as workers:
            check(this, workers)
        names = ["torch eager"] + ["torch compiled"] * args.compile + ["torch bf16"] * args.bf16
        kind = args.optimizer or torch_models.faster_optimizer(this.config, this.train_config)
    records = compare(this, args, names, kind, busy=False)
    if not args.no_memory:
        for record in records:
            record["resident_bytes"] = memory(name, args, record["candidate"], kind)
    if args.busy:
        with timing.busy_core():
            records += compare(this, args, names, kind, busy=True)
    return records


def table(records):
    """Print a row per preset and candidate."""
    headings = ["preset", "candidate", "rounds", "ms", "x", "tokens/s", "peak", "+MB", "MB"]
    rows = []
    for r in records:
        ratio, share = r["ratio_to_minigpt"], [f"{100 * s:.0f}" for s in r["share_of_peak"]]
        weight = r.get("resident_bytes")
        row = [f"{r['preset']} {r['batch_size']} x {r['block_size']}" + ", busy" * r["busy"]]
        row += [r["candidate"], str(r["time"]["rounds"]), report.milliseconds(r["time"])]
        row += [f"{ratio['of_medians']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})"]
        row += [f"{r['tokens_per_s']:,.0f}", f"{share[0]}% ({share[1]}%)"]
        row += [f"{(weight['peak'] - weight['libraries']) / 1e6:.0f}" if weight else ""]
        row += [f"{weight['peak'] / 1e6:.0f}" if weight else ""]
        rows.append(row)
    report.print_table(headings, rows)
    kinds = {r["preset"]: r["optimizer"] for r in records if "optimizer" in r}
    peak = max(r["sgemm_peak_flops_per_s"] for r in records)
    print(f"{NOTE}Measured rate of matrix products: {peak / 1e9:.0f} GFLOP/s.", end=" ")
    print("; ".join(f"torch's AdamW on {name}: {kind}" for name, kind in kinds.items()))


def draw(path, records, env):
    """Draw the time of a step of each candidate as a multiple of minigpt's."""
    records = [r for r in records if not r["busy"]]
    presets = list(dict.fromkeys(r["preset"] for r in records))
    names = list(dict.fromkeys(r["candidate"] for r in records))
    with report.figure(path) as [axes]:
        for i, name in enumerate(names):
            mine = [r for r in records if r["candidate"] == name]
            offset = 0.8 * (i + 0.5) / len(names) - 0.4
            positions = [presets.index(r["preset"]) + offset for r in mine]
            heights = [r["ratio_to_minigpt"]["of_medians"] for r in mine]
            bars = axes.bar(positions, heights, 0.75 / len(names), label=name)
            texts = [report.three_digits(1e3 * r["time"]["median_s"]) for r in mine]
            axes.bar_label(bars, texts, fontsize=8, padding=2)
        labels = [next(r for r in records if r["preset"] == name) for name in presets]
        labels = [f"{r['preset']}\n{r['batch_size']} x {r['block_size']} tokens" for r in labels]
        axes.set_xticks(range(len(presets)), labels)
        axes.margins(y=0.2)
        title = f"A training step (above the bars: ms), {env['threads']} threads, float32 but bf16"
        report.label(axes, "", "time of a step (minigpt = 1)", title)


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/step.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--preset", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    report.add_number(parser, "--batch-size", None, "instead of the preset's own here")
    report.add_number(parser, "--block-size", None, "instead of the preset's own here")
    add("--dropout", type=float, metavar="X", help="instead of the preset's own")
    add("--compile", action="store_true", help="torch.compile as well")
    add("--bf16", action="store_true", help="torch in bfloat16 autocast as well")
    add("--busy", action="store_true", help="all again while another process keeps a core busy")
    add("--profile", action="store_true", help="minigpt's time by op, on one thread")
    add("--no-memory", action="store_true", help="leave out the peak memory")
    add("--optimizer", choices=("foreach", "fused"), help="torch's AdamW (default: the faster)")
    add("--memory-of", help=argparse.SUPPRESS)
    report.add_flags(parser, seconds=20.0)
    return parser.parse_args(argv)


def main(argv=None):
    """Check and time every preset; print, write and draw what was found."""
    args = arguments(argv)
    if args.memory_of:
        print(json.dumps(own_memory(args)))
        return 0
    torch = timing.torch_on(args.threads)
    env = report.environment(args.threads)
    report.print_environment(env)
    records = [r for name in args.preset for r in bench(name, args, torch)]
    table(records)
    if args.profile:
        for name in args.preset:
            with Workers(1) as workers:
                this = problem(name, args)
                ops = op_profile.by_op(minigpt_step(this, workers), min(2.0, args.seconds))
            print(
                f"\n{name}: {this.train_config.batch_size} x {this.config.block_size}, one thread"
            )
            op_profile.table(ops)
            next(r for r in records if r["preset"] == name)["ops"] = ops
    report.finish(args, "step", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
