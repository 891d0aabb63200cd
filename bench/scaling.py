"""How the cost of a training step grows: python bench/scaling.py

Three sweeps over one model: threads; sequence length, at a constant number of tokens per batch;
width, at a constant head size. BLAS has one thread in each of minigpt's.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import threadpoolctl

from bench.lib import report, timing
from minigpt import cli
from minigpt.errors import UserError
from minigpt.model.init import init_params
from minigpt.train.config import resolve
from minigpt.train.cost import flops_per_step
from minigpt.train.presets import PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

LENGTHS = (64, 128, 256, 512, 1024)
WIDTHS = (64, 128, 256, 512)
HEAD_SIZE = 64
VOCABULARY = 65


def step(workers, n_embd, block_size, args):
    """Return a function that takes a training step, and the FLOPs of its matrix products."""
    if args.tokens % block_size:
        raise UserError(f"--tokens is {args.tokens}, not a multiple of the context {block_size}")
    values = {"n_layer": args.n_layer, "n_embd": n_embd, "n_head": max(1, n_embd // HEAD_SIZE)}
    values |= {"block_size": block_size, "batch_size": args.tokens // block_size}
    config, train_config = resolve(PRESETS["nanogpt-cpu"] | values, {"vocab_size": VOCABULARY})
    ids = np.random.default_rng(1337).integers(0, VOCABULARY, 100_000, dtype=np.int32)
    trainer = Trainer(init_params(config, 1337, np), config, train_config, np, workers)
    numbers = iter(range(2**62))
    return lambda: trainer.step(ids, next(numbers)), flops_per_step(config, train_config)


def sweep(name, values, args):
    """Time a step at each value of `name`; return a record per value."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(threadpoolctl.threadpool_limits(1, user_api="blas"))
        points = {}
        for value in values:
            point = {"threads": args.threads, "length": args.block_size, "width": args.n_embd}
            point[name] = value
            workers = stack.enter_context(Workers(point["threads"]))
            points[value] = step(workers, point["width"], point["length"], args)
        times = timing.measure({value: fn for value, (fn, _) in points.items()}, args.seconds)
    return [
        {
            "sweep": name,
            "value": value,
            "time": times[value].record(),
            "tokens_per_s": args.tokens / times[value].median,
            "flops_per_s": flops / times[value].median,
            "growth": times[value].median / times[values[0]].median,
        }
        for value, (_, flops) in points.items()
    ]


def table(records):
    """Print a row per point of each sweep."""
    headings = ["sweep", "value", "rounds", "ms", "x first", "tokens/s", "GFLOP/s"]
    rows = [
        [
            r["sweep"],
            str(r["value"]),
            str(r["time"]["rounds"]),
            report.milliseconds(r["time"]),
            f"{r['growth']:.2f}",
            f"{r['tokens_per_s']:,.0f}",
            f"{r['flops_per_s'] / 1e9:.0f}",
        ]
        for r in records
    ]
    report.print_table(headings, rows)
    print(
        "\nms: median, +- half the distance of the quartiles. x first: median over the first one's."
        "\nGFLOP/s: matrix products, 6 FLOPs per weight and token, attention by its lower triangle."
    )


def draw(path, records, env):
    """Draw a panel per sweep: speed-up on threads, time per token of length and width."""
    sweeps = list(dict.fromkeys(r["sweep"] for r in records))
    names = {
        "threads": "threads",
        "length": "sequence length (tokens)",
        "width": "width (channels)",
    }
    with report.figure(path, len(sweeps)) as panels:
        for axes, name in zip(panels, sweeps, strict=True):
            mine = [r for r in records if r["sweep"] == name]
            x = [r["value"] for r in mine]
            if name == "threads":
                axes.plot(x, x, ":", color="0.6", label="ideal")
                axes.plot(x, [1 / r["growth"] for r in mine], "o-", label="minigpt")
                axes.set_xticks(x)
                report.label(axes, names[name], "speed (1 thread = 1)", "Threads")
                continue
            axes.plot(x, [1e6 / r["tokens_per_s"] for r in mine], "o-")
            report.log_x(axes, x)
            if name == "width":
                report.log_y(axes)
            else:
                axes.set_ylim(bottom=0)
            title = f"{name.capitalize()}, {env['threads']} threads"
            report.label(axes, names[name], "time per token (µs)", title)


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/scaling.py", __doc__.split("\n\n")[0])
    names = ("threads", "length", "width")
    parser.add_argument(
        "--sweep", nargs="+", choices=names, default=names, help="which (default: all)"
    )
    report.add_number(parser, "--lengths", LENGTHS, "sequence lengths, in tokens")
    report.add_number(parser, "--widths", WIDTHS, "widths, in channels")
    report.add_number(parser, "--tokens", 4096, "tokens per batch")
    report.add_number(parser, "--n-layer", 4, "blocks")
    report.add_number(parser, "--n-embd", 256, "width elsewhere")
    report.add_number(parser, "--block-size", 256, "length elsewhere")
    report.add_flags(parser, seconds=15.0)
    return parser.parse_args(argv)


def main(argv=None):
    """Run the sweeps; print, write and draw what was found."""
    args = arguments(argv)
    env = report.environment(args.threads)
    report.print_environment(env)
    threads = [n for n in (2**i for i in range(10)) if n < args.threads] + [args.threads]
    values = {"threads": threads, "length": list(args.lengths), "width": list(args.widths)}
    records = [r for name in args.sweep for r in sweep(name, values[name], args)]
    table(records)
    report.finish(args, "scaling", env, records, draw)


if __name__ == "__main__":
    report.run(main)
