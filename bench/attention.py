"""Attention forward, backward and both, beside torch's: python bench/attention.py

Before anything is timed, outputs and all three gradients are checked against the reference op in
float64; a wrong result ends with exit code 1.

FLOPs are those of the products that the mathematics needs: 2 in the forward pass and 4 in the
backward, 2 D for each query and key that may see each other. So a causal pass counts the lower
triangle alone, and scores made a second time are not counted.

On threads, minigpt takes shards of the batch, and the threads share the heads and queries of one
that has a single row; results stay an array per shard: all as in a training step. On a GPU both may
also be timed in 16 bit (--dtype), where torch has its flash attention.
"""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import threadpoolctl

from bench.lib import report, timing
from bench.lib.attention_check import TOLERANCE, Shape, checked_rows, compare, expected, inputs
from bench.lib.rates import dtype_of
from minigpt import cli
from minigpt.backend import to_device, to_host
from minigpt.backend.cpu.crew import shard_slices
from minigpt.backend.devices import check_precision, load_backend
from minigpt.ops.attention import attention_backward, attention_forward
from minigpt.train.threads import Workers

NAIVE_BYTES = 2**30  # torch's naive attention is left out where one array of scores takes more
NOTE = """
ms: median, +- half the distance of the quartiles. x: torch's median over minigpt's; above 1
minigpt is faster. GFLOP/s of minigpt: products of visible queries and keys, 2 forward, 4 backward.
+MB: what forward + backward add at their peak to the resident memory of a fresh process (cupy: to
the memory pool). sdpa: torch's scaled_dot_product_attention; naive: unfused, in torch."""
LABELS = {"minigpt": "minigpt", "sdpa": "torch SDPA", "naive": "torch, naive"}
PASSES = ("forward", "backward", "both")


SHAPES = "12,4,64,32 16,6,256,64 4,12,1024,64 1,6,4096,64 16,6,64,256,64 4,12,256,1024,64"
LONG = "1,1,16384,64"


def minigpt_passes(shape, arrays, workers):
    """Return {"forward", "backward", "both": function}; both returns [(y, dq, dk, dv)]."""
    parts = [[x[rows] for x in arrays] for rows in shard_slices(shape.B, workers.n)]

    def forward(part):
        return attention_forward(*part[:3], causal=shape.causal)

    def both(part):
        y, cache = forward(part)
        return y, *attention_backward(part[3], cache)

    jobs = []  # the forward passes that `backward` goes on from

    def backward():
        if not jobs:
            jobs.extend((p[3], cache) for p, (_, cache) in zip(parts, run_forward(), strict=True))
        return workers.map(lambda job: attention_backward(*job), jobs)

    def run_forward():
        return workers.map(forward, parts)

    return {"forward": run_forward, "backward": backward, "both": lambda: workers.map(both, parts)}


def torch_passes(torch, shape, host, naive, device="cpu", dtype="float32"):
    """Return the same for torch, as autograd runs them: built-in or naive attention."""
    q, k, v, dy = (torch.from_numpy(x).to(device, getattr(torch, dtype)) for x in host)
    xs = [x.requires_grad_() for x in (q, k, v)]
    hidden = torch.ones(shape.Tq, shape.Tk, dtype=torch.bool, device=device).triu(1)

    def forward():
        if not naive:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=shape.causal)
        s = q @ k.transpose(-1, -2) / math.sqrt(shape.D)
        if shape.causal:
            s = s.masked_fill(hidden, -math.inf)
        return torch.softmax(s, dim=-1) @ v

    graph = []  # the output that `backward` goes back from

    def backward():
        if not graph:
            graph.append(forward())
        return torch.autograd.grad(graph[0], xs, dy, retain_graph=True)

    def both():
        y = forward()
        return [(y, *torch.autograd.grad(y, xs, dy))]

    return {"forward": forward, "backward": backward, "both": both}


def candidates(shape, host, workers, torch, xp=np, dtype="float32"):
    """Return {name: passes} of all that run this problem, whose arrays are given in float32."""
    arrays = [to_device(x.astype(dtype_of(dtype), copy=False), xp) for x in host]
    found, device = {"minigpt": minigpt_passes(shape, arrays, workers)}, None
    if torch is not None:
        device = timing.torch_device(torch, xp)
    if device is not None:
        torch.set_float32_matmul_precision("highest")
        found["sdpa"] = torch_passes(torch, shape, host, False, device, dtype)
        if 4 * shape.B * shape.H * shape.Tq * shape.Tk < NAIVE_BYTES:
            found["naive"] = torch_passes(torch, shape, host, True, device, dtype)
    return found


def check(shape, workers, torch, xp, dtype):
    """Compare outputs and gradients of every candidate with the reference; raise if they differ."""
    rows = checked_rows(shape)
    host = inputs(shape, rows, dtype)
    right = expected(shape, host, rows)
    for name, passes in candidates(shape, host, workers, torch, xp, dtype).items():
        parts = shard_slices(shape.B, workers.n) if name == "minigpt" else [...]
        results = [np.empty_like(x) for x in (host[0], *host[:3])]
        for part, got in zip(parts, passes["both"](), strict=True):
            for whole, x in zip(results, got, strict=True):
                whole[part] = to_host(x) if name == "minigpt" else x.detach().float().cpu().numpy()
        compare(name, shape, results, right, rows, dtype)


def extra_memory(shape, name, threads):
    """Return the resident bytes that forward + backward add to this process at their peak."""
    torch = None if name == "minigpt" else timing.torch_on(threads)
    with Workers(threads) as workers:
        small = Shape(threads, threads, 8, 8, shape.D)
        candidates(small, inputs(small), workers, torch)[name]["both"]()
        both = candidates(shape, inputs(shape), workers, torch)[name]["both"]
        before = timing.resident_start()
        results = both()
        after = timing.resident_peak()
        del results
    return after - before


def memory(shape, names, args, xp, dtype):
    """Return {name: peak extra bytes} of forward + backward, each in a process of its own."""
    if xp is not np:
        both = candidates(shape, inputs(shape), Workers(1), None, xp, dtype)["minigpt"]["both"]
        return {"minigpt": timing.traced_peak(both, xp)}
    flags = ("--shapes", shape, "--threads", args.threads, "--memory-of")
    return {name: timing.in_child(__file__, *flags, name) for name in names}


def multiply(workers):
    """Make a product of NumPy's in each thread, larger than attention's, as training steps do.

    Until then OpenBLAS's small products take up to three times as long: see experiments.md.
    """
    x = np.ones((1024, 1024), np.float32)
    workers.map(lambda _: x @ x, range(workers.n))


def bench(shape, dtype, args, torch, xp):
    """Check and time one problem, and measure its memory; return a record per pass."""
    print(f"{shape} {dtype} ...", file=sys.stderr, flush=True)
    records = []
    with Workers(args.threads if xp is np else 1) as workers:
        check(shape, workers, torch, xp, dtype)
        if xp is np:
            multiply(workers)
        found = candidates(shape, inputs(shape), workers, torch, xp, dtype)
        for name in PASSES:
            fns = {c: fns[name] for c, fns in found.items() if c != "naive" or name == "both"}
            times = timing.measure(fns, args.seconds, xp=xp)
            record = {"name": str(shape), "shape": shape._asdict(), "causal": shape.causal}
            record |= {"dtype": dtype, "pass": name, "flops": shape.flops()[name], "times": {}}
            for candidate, time in times.items():
                record["times"][candidate] = time.record()
                if candidate != "minigpt":
                    record[f"ratio_to_{candidate}"] = timing.ratio(time, times["minigpt"])
            records.append(record)
    if not args.no_memory:
        records[-1]["peak_extra_bytes"] = memory(shape, found, args, xp, dtype)
    return records


def table(records):
    """Print a row per problem and pass."""
    names = list(dict.fromkeys(name for r in records for name in r["times"]))
    with_memory = [
        name for name in names if any(name in r.get("peak_extra_bytes", {}) for r in records)
    ]
    headings = ["B,H,T,D", "dtype", "pass", "rounds", *(f"{name} ms" for name in names)]
    headings += [f"x {name}" for name in names[1:]] + ["GFLOP/s"]
    headings += [f"{name} +MB" for name in with_memory]
    rows = []
    for r in records:
        time, extra = r["times"], r.get("peak_extra_bytes", {})
        row = [r["name"], r["dtype"], r["pass"], str(time["minigpt"]["rounds"])]
        row += [report.milliseconds(time[name]) if name in time else "" for name in names]
        ratios = [r.get(f"ratio_to_{name}", {}).get("of_medians") for name in names[1:]]
        row += [f"{x:.2f}" if x else "" for x in ratios]
        row.append(f"{r['flops'] / time['minigpt']['median_s'] / 1e9:.0f}")
        row += [f"{extra[name] / 1e6:.1f}" if name in extra else "" for name in with_memory]
        rows.append(row)
    report.print_table(headings, rows)
    print(NOTE)


def draw(path, records, env):
    """Draw time per head against sequence length, forward + backward, of the widest heads."""
    dtype = records[0]["dtype"]
    found = [r for r in records if r["causal"] and (r["pass"], r["dtype"]) == ("both", dtype)]
    D = max((r["shape"]["D"] for r in found), default=0)
    found = sorted((r for r in found if r["shape"]["D"] == D), key=lambda r: r["shape"]["Tq"])
    with report.figure(path) as [axes]:
        for name in dict.fromkeys(name for r in found for name in r["times"]):
            drawn = [r for r in found if name in r["times"]]
            heads = [r["shape"]["B"] * r["shape"]["H"] for r in drawn]
            times = [1e3 * r["times"][name]["median_s"] for r in drawn]
            lengths = [r["shape"]["Tq"] for r in drawn]
            axes.plot(lengths, np.divide(times, heads), "o-", label=LABELS[name])
        report.log_x(axes, sorted({r["shape"]["Tq"] for r in found}))
        report.log_y(axes)
        where = env.get("device", f"{env['threads']} threads")
        title = f"Causal attention, forward + backward, {where}, {dtype}"
        report.label(axes, "sequence length (tokens)", f"time per head of {D} channels (ms)", title)


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/attention.py", __doc__.split("\n\n")[0])
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=Shape.parse,
        metavar="B,H,T,D",
        default=None,
        help=f"causal self-attention, or B,H,Tq,Tk,D: cross attention (default: {SHAPES})",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(TOLERANCE),
        default=["float32"],
        help="in 16 bit on a GPU (default: float32)",
    )
    parser.add_argument("--long", action="store_true", help=f"{LONG} as well")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    report.add_flags(parser, backend=True)
    args = parser.parse_args(argv)
    args.shapes = args.shapes or [Shape.parse(text) for text in SHAPES.split()]
    if args.long:
        args.shapes.append(Shape.parse(LONG))
    return args


def main(argv=None):
    """Check and time every problem; print, write and draw what was found."""
    args = arguments(argv)
    if args.memory_of:
        print(json.dumps(extra_memory(args.shapes[0], args.memory_of, args.threads)))
        return 0
    xp = load_backend(args.backend)
    for dtype in args.dtype:
        check_precision(dtype, xp)
    torch = timing.torch_on(args.threads)
    env = report.environment(args.threads, xp)
    report.print_environment(env)
    with threadpoolctl.threadpool_limits(args.threads, user_api="blas"):
        problems = [(shape, dtype) for shape in args.shapes for dtype in args.dtype]
        records = [r for problem in problems for r in bench(*problem, args, torch, xp)]
    table(records)
    report.finish(args, "attention", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
