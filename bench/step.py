"""A whole training step beside an equal torch model: python bench/step.py

A step is batch, forward, backward, clipping and AdamW, in float32. Both models start from the same
weights, and before anything is timed loss and gradients are compared; a difference ends with exit
code 1. Torch has as many threads and the faster of its AdamW implementations.

With --backend cupy both run on the GPU, in every precision of --dtype that it has, and times are
those of events on it. Torch has no step in float16 here, which would need a loss scale: bfloat16 is
what its users take.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.lib import memory_rate, rates, report, timing
from minigpt import cli
from minigpt.backend import to_device, to_host
from minigpt.backend.devices import PRECISIONS, check_precision, load_backend, tf32_products
from minigpt.errors import UserError
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.optim import adamw
from minigpt.params import Params, leaves
from minigpt.report.op_times import by_op
from minigpt.train import step as train_step
from minigpt.train.config import TrainConfig, resolve
from minigpt.train.cost import flops_per_step
from minigpt.train.presets import PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

SIZES = {"nanogpt-cpu": (12, 64), "nanogpt-baby": (16, 256), "gpt2": (4, 64)}  # batch, context
ON_GPU = {"nanogpt-cpu": (12, 64), "nanogpt-baby": (64, 256), "gpt2": (16, 1024)}
CHARACTERS = 65  # vocabulary of the presets for tiny Shakespeare
TOLERANCE = 1e-4  # relative difference of the loss, and of each gradient by norm, in float32
# Of the loss, and of all gradients together by norm: 16 times the unit round-off.
COARSER = {"tf32": 16 * 2**-11, "float16": 16 * 2**-11, "bfloat16": 16 * 2**-8}
OF_A_STEP = (  # what is timed beside the ops of the passes
    (train_step, "sum_gradients"),
    (adamw, "sum_of_squares"),
    (adamw, "adamw_step"),
)
NOTE = """
ms: median, +- half the distance of the quartiles. x: median over minigpt's, above 1 minigpt is
faster; in brackets the quartiles of the ratio within a round. peak: % of the rate of float32 matrix
products (SGEMM), measured before and after, for the FLOPs that a step needs: 6 per weight of a
matrix and token, and attention by its lower triangle (in brackets by the full square, as nanoGPT
counts). MB: peak resident memory of a process of its own; +MB: less what its imports take.
"""
NOTE_ON_GPU = """
ms: median, +- half the distance of the quartiles. x: median over that of minigpt in the same
precision, above 1 minigpt is faster; in brackets the quartiles of the ratio within a round. peak:
% of the rate of large matrix products in that precision, for the FLOPs that a step needs: 6 per
weight of a matrix and token, and attention by its lower triangle (in brackets by the full square).
MB: the most that the pool of CuPy or torch takes of the GPU for three steps.
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


def problem(name, args, dtype="float32"):
    """Return a preset at the sizes that are timed here, or at those of the flags."""
    batch_size, block_size = (SIZES if args.backend == "numpy" else ON_GPU)[name]
    values = PRESETS[name] | {"gradient_accumulation_steps": 1}
    values |= {"backend": args.backend, "dtype": dtype}
    values["batch_size"] = args.batch_size or batch_size
    values["block_size"] = args.block_size or block_size
    if args.dropout is not None:
        values["dropout"] = args.dropout
    return Problem(name, *resolve(values, {"vocab_size": values.get("vocab_size", CHARACTERS)}))


def tokens_of(problem):
    """Return ids to train on: as many as tiny Shakespeare has, random."""
    rng = np.random.default_rng(1337)
    return rng.integers(0, problem.config.vocab_size, 1_000_000, dtype=np.int32)


@functools.lru_cache(maxsize=1)
def weights(config):
    """Return the weights that all candidates start from, as Params on the host."""
    return init_params(config, 1337, np)


def minigpt_trainer(problem, workers, xp):
    """Return a minigpt Trainer with fresh weights."""
    fresh = weights(dataclasses.replace(problem.config, dropout=0.0))
    params = Params(fresh.shapes, xp, fresh.flat.dtype, to_device(fresh.flat.copy(), xp))
    return Trainer(params, problem.config, problem.train_config, xp, workers)


def minigpt_step(problem, workers, xp):
    """Return a function that trains minigpt by a step."""
    worker, steps = minigpt_trainer(problem, workers, xp), iter(range(2**62))
    ids, precision = to_device(tokens_of(problem), xp), PRECISIONS[problem.train_config.dtype]

    def step():
        with tf32_products(precision.tf32):
            worker.step(ids, next(steps))

    return step


def check(problem, workers, xp, device):
    """Compare loss and gradients of the two models on the same weights and batch, no dropout.

    Torch's are in float32.

    Raises
    ------
    WrongResult
        If one differs by more than `TOLERANCE` or, in lower precisions, `COARSER`.
    """
    import torch

    from bench.lib import torch_models

    problem = problem._replace(config=dataclasses.replace(problem.config, dropout=0.0))
    dtype = problem.train_config.dtype
    ours, theirs = minigpt_trainer(problem, workers, xp), torch_models.GPT(problem.config)
    theirs.load(weights(problem.config).tree)
    theirs.to(device)
    T = problem.config.block_size
    text = tokens_of(problem)[: problem.train_config.batch_size * (T + 1)].reshape(-1, T + 1)
    batch = [np.ascontiguousarray(ids) for ids in (text[:, :-1], text[:, 1:])]
    with tf32_products(PRECISIONS[dtype].tf32):
        loss = float(ours.gradients(*batch, Rng.of(0)))
    torch.set_float32_matmul_precision("highest")
    want = theirs(*(torch.from_numpy(x).long().to(device) for x in batch))
    want.backward()
    allowed = COARSER.get(dtype, TOLERANCE)
    if not abs(loss - want.item()) <= allowed * want.item():
        raise report.WrongResult(
            f"{problem.name}: loss in {dtype} is {loss}, torch's is {want.item()}"
        )
    right = theirs.tensors(lambda x: x.grad.cpu())
    scale = float(ours.optimizer.loss_scale)
    found = {
        name: torch_models.as_torch(name, to_host(grad)) / scale
        for name, grad in leaves(ours.grads.tree)
    }
    apart = {name: ((found[name] - right[name]).norm(), right[name].norm()) for name in found}
    if dtype in COARSER:
        pairs = zip(*apart.values(), strict=True)
        apart = {"all": [sum(x**2 for x in norms) ** 0.5 for norms in pairs]}
    for name, (difference, norm) in apart.items():
        if not difference <= allowed * norm:
            raise report.WrongResult(
                f"{problem.name}: gradient of {name} differs from torch's by "
                f"{difference / norm:.1e} of its norm; {allowed:.0e} is allowed in {dtype}"
            )


def torch_steps(problem, kind, names, device="cpu"):
    """Return {name: function} of torch steps that start from the same weights."""
    from bench.lib import torch_models

    config, train_config = problem.config, problem.train_config
    tree, ids = weights(dataclasses.replace(config, dropout=0.0)).tree, tokens_of(problem)
    return torch_models.steps(config, train_config, tree, ids, kind, names, device)


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
        step = minigpt_step(this, Workers(args.threads), np)
    else:
        step = torch_steps(this, args.optimizer, [name])[name]
    weights.cache_clear()  # no run keeps those that it began from
    for _ in range(3):
        step()
    return {"libraries": before, "peak": timing.resident_peak()}


def memory_on_gpu(problem, name, kind, xp, torch, device):
    """Return {"peak": bytes} that a pool of its own takes for three steps of a candidate."""
    gc.collect()
    if not name.startswith("torch"):
        pool = xp.cuda.MemoryPool()
        with xp.cuda.using_allocator(pool.malloc), Workers(1) as workers:
            step = minigpt_step(problem, workers, xp)
            for _ in range(3):
                step()
            del step
            return {"peak": pool.total_bytes()}
    if device == "cpu":
        return None  # torch counts no memory there
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    step = torch_steps(problem, kind, [name], device)[name]
    for _ in range(3):
        step()
    return {"peak": torch.cuda.max_memory_reserved() - before}


def peak_rate(args, xp, precisions):
    """Return {precision: FLOP/s of large matrix products}."""
    if xp is np:
        return {"float32": timing.sgemm_peak(args.threads)}
    return {name: rates.square_rate(xp, name, args.square) for name in precisions}


def precision_of(name, first):
    """Return the precision of a candidate; `first` is that of one whose name has none."""
    if name.startswith("torch"):
        from bench.lib import torch_models

        return torch_models.way_of(name)[1]
    return next((word for word in name.split() if word in PRECISIONS), first)


def compare(these, args, xp, names, kind, device, busy):
    """Time the candidates in turns; return a record per candidate.

    Parameters
    ----------
    these : {precision: Problem}
        minigpt's.
    names : list of str
        Torch's candidates.
    """
    first, this = next(iter(these.items()))
    peaks = peak_rate(args, xp, these)
    with contextlib.ExitStack() as stack:
        steps = {}
        for dtype, problem in these.items():
            workers = stack.enter_context(Workers(args.threads if xp is np else 1))
            name = "minigpt" if xp is np else f"minigpt {dtype}"
            steps[name] = minigpt_step(problem, workers, xp)
        if names:
            steps |= torch_steps(this, kind, names, device)
        times = timing.measure(steps, args.seconds, xp=xp)
    ours = {precision_of(name, first): name for name in times if not name.startswith("torch")}
    if xp is np:
        peaks["float32"] = max(peaks["float32"], timing.sgemm_peak(args.threads))
    records = []
    for name, taken in times.items():
        precision = precision_of(name, first)
        peak, rate = peaks.get(precision, peaks[first]), [f / taken.median for f in this.flops()]
        record = {"preset": this.name, "candidate": name, "precision": precision, "busy": busy}
        record |= {"dropout": this.config.dropout, "time": taken.record()}
        record |= {"batch_size": this.train_config.batch_size, "block_size": this.config.block_size}
        record |= {"tokens_per_s": this.tokens / taken.median, "flops": this.flops()}
        record |= {"peak_flops_per_s": peak, "share_of_peak": [r / peak for r in rate]}
        mine = times[ours.get(precision, ours[first])]
        record |= {"ratio_to_minigpt": timing.ratio(taken, mine)}
        if name.startswith("torch"):
            record["optimizer"] = kind
        records.append(record)
    return records


def torch_names(args, precisions, xp):
    """Return the names of torch's candidates, as torch_models.steps takes them."""
    if xp is np:
        compiled = ["torch compiled"] * (args.compile is not None)
        return ["torch eager", *compiled] + ["torch bf16"] * args.bf16
    from bench.lib import torch_models

    also = [name for name in torch_models.PRECISIONS if name in precisions] or ["float32"]
    chosen = also if args.compile == [] else args.compile or []
    return [f"torch eager {name}" for name in also] + [f"torch compiled {n}" for n in chosen]


def bench(name, args, torch, xp):
    """Check and time one preset, and measure its memory; return a record per candidate."""
    these = {dtype: problem(name, args, dtype) for dtype in args.dtype}
    print(f"{name} ...", file=sys.stderr, flush=True)
    names, kind, device = [], None, timing.torch_device(torch, xp)
    this = next(iter(these.values()))
    if device is not None:
        from bench.lib import torch_models

        with Workers(args.threads if xp is np else 1) as workers:
            for one in these.values():
                check(one, workers, xp, device)
        names, config = torch_names(args, these, xp), this.config
        kind = args.optimizer
        kind = kind or torch_models.faster_optimizer(config, this.train_config, device)
    records = compare(these, args, xp, names, kind, device, busy=False)
    for record in records if not args.no_memory else []:
        candidate = record["candidate"]
        if xp is np:
            record["resident_bytes"] = memory(name, args, candidate, kind)
        else:
            one = these.get(record["precision"], this)
            record["device_bytes"] = memory_on_gpu(one, candidate, kind, xp, torch, device)
    if args.busy:
        with timing.busy_core():
            records += compare(these, args, xp, names, kind, device, busy=True)
    return records


def table(records, xp):
    """Print a row per preset and candidate."""
    headings = ["preset", "candidate", "rounds", "ms", "x", "tokens/s", "peak", "+MB", "MB"]
    rows = []
    for r in records:
        ratio, share = r["ratio_to_minigpt"], [f"{100 * s:.0f}" for s in r["share_of_peak"]]
        weight = r.get("resident_bytes") or r.get("device_bytes")
        row = [f"{r['preset']} {r['batch_size']} x {r['block_size']}" + ", busy" * r["busy"]]
        row += [r["candidate"], str(r["time"]["rounds"]), report.milliseconds(r["time"])]
        row += [f"{ratio['of_medians']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})"]
        row += [f"{r['tokens_per_s']:,.0f}", f"{share[0]}% ({share[1]}%)"]
        row += [f"{(weight['peak'] - weight.get('libraries', 0)) / 1e6:.0f}" if weight else ""]
        row += [f"{weight['peak'] / 1e6:.0f}" if weight else ""]
        rows.append(row)
    report.print_table(headings, rows)
    kinds = {r["preset"]: r["optimizer"] for r in records if "optimizer" in r}
    peaks = {r["precision"]: r["peak_flops_per_s"] for r in records if r["precision"] in PRECISIONS}
    peaks = ", ".join(f"{peak / 1e9:,.0f} ({name})" for name, peak in peaks.items())
    print(f"{NOTE if xp is np else NOTE_ON_GPU}Matrix products, GFLOP/s: {peaks}.", end=" ")
    print("; ".join(f"torch's AdamW on {name}: {kind}" for name, kind in kinds.items()))


def profile(args, records):
    """Print minigpt's time by op, and how fast the optimizer goes through memory; note both."""
    seconds = min(2.0, args.seconds)
    for name in args.preset:
        this, record = problem(name, args), next(r for r in records if r["preset"] == name)
        with Workers(1) as workers:
            record["ops"] = by_op(minigpt_step(this, workers, np), seconds, OF_A_STEP)
        print(f"\n{name}: {this.train_config.batch_size} x {this.config.block_size}, one thread")
        table_of_ops(record["ops"])
        n, threads = weights(dataclasses.replace(this.config, dropout=0.0)).size, {1, args.threads}
        record["passes"] = memory_rate.by_way(n, sorted(threads), seconds)
        print(f"\n{name}: {n:,} parameters through memory")
        memory_rate.table(record["passes"])


def table_of_ops(records):
    """Print a row per op."""
    rows = [
        [r["op"], f"{1e3 * r['seconds']:.3g}", f"{100 * r['share']:.1f}%", f"{r['calls']:.0f}"]
        for r in records
    ]
    report.print_table(["op", "ms per step", "share", "calls"], rows)


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
        where = env.get("device", f"{env['threads']} threads, float32 but bf16")
        title = f"A training step (above the bars: ms), {where}"
        report.label(axes, "", "time of a step (minigpt = 1)", title)


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/step.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--preset", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    report.add_number(parser, "--batch-size", None, "instead of the preset's own here")
    report.add_number(parser, "--block-size", None, "instead of the preset's own here")
    add("--dropout", type=float, metavar="X", help="instead of the preset's own")
    help = "torch.compile as well; on a GPU in all precisions of --dtype, or in these"
    add("--compile", nargs="*", choices=("float32", "tf32", "bfloat16"), help=help)
    add("--bf16", action="store_true", help="torch in bfloat16 autocast as well")
    add("--busy", action="store_true", help="all again while another process keeps a core busy")
    precisions = tuple(PRECISIONS)
    add("--dtype", nargs="+", choices=precisions, help="minigpt's precisions (default: float32)")
    report.add_number(parser, "--square", 8192, "rows of the product whose rate is the GPU's peak")
    add("--profile", action="store_true", help="minigpt's time by op, and its rate of memory")
    add("--no-memory", action="store_true", help="leave out the peak memory")
    add("--optimizer", choices=("foreach", "fused"), help="torch's AdamW (default: the faster)")
    add("--memory-of", help=argparse.SUPPRESS)
    report.add_flags(parser, backend=True, seconds=20.0)
    args = parser.parse_args(argv)
    args.dtype = args.dtype or ["float32"]
    if args.backend == "cupy" and (args.profile or args.bf16):
        raise UserError(
            "--profile and --bf16 are for --backend numpy: on a GPU, bench/device.py --ceilings "
            "times kernels, and --dtype says what torch runs in, too"
        )
    return args


def main(argv=None):
    """Check and time every preset; print, write and draw what was found."""
    args = arguments(argv)
    if args.memory_of:
        print(json.dumps(own_memory(args)))
        return 0
    xp = load_backend(args.backend)
    for dtype in args.dtype:
        check_precision(dtype, xp)
    torch = timing.torch_on(args.threads)
    env = report.environment(args.threads, xp)
    report.print_environment(env)
    records = [r for name in args.preset for r in bench(name, args, torch, xp)]
    table(records, xp)
    if args.profile:
        profile(args, records)
    report.finish(args, "step", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
