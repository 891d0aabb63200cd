"""The training loss beside torch's, step for step: python bench/follow.py

Both start from the same weights and see the same batches of tiny Shakespeare. There is no dropout:
its bits would differ. Rounding errors grow from step to step, as they do between two machines;
beyond TOLERANCE the exit code is 1.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.lib import report, timing
from minigpt import cli
from minigpt.data.datasets import TextData
from minigpt.model.init import init_params
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

TOLERANCE = 0.02  # nats per token
SHOWN = 10  # rows
LEAST = 1e-7  # what a picture shows of losses that are the same in float32


def ours(config, train_config, split):
    """Yield the loss of each step of minigpt."""
    with Workers(train_config.workers()) as workers:
        params = init_params(config, train_config.seed, np)
        trainer = Trainer(params, config, train_config, np, workers)
        for step in range(train_config.max_iters):
            yield trainer.step(split, step)[0]


def theirs(config, train_config, split):
    """Yield the loss of each step of torch."""
    from bench.lib import nanogpt_torch, torch_models

    model = torch_models.GPT(config)
    model.load(init_params(config, train_config.seed, np).tree)
    yield from nanogpt_torch.losses(model, split, train_config, config.block_size)


def draw(path, records, _):
    """Draw both losses, and how far they are apart."""
    (record,) = records
    with report.figure(path, 2) as (above, below):
        steps = range(1, 1 + len(record["minigpt"]))
        for name, style in (("torch", "-"), ("minigpt", "--")):
            above.plot(steps, record[name], label=name, linestyle=style)
        below.semilogy(steps, np.maximum(apart(record), LEAST))
        report.label(above, "step", "training loss", record["preset"])
        title = f"minigpt and torch (from {LEAST:g} on)"
        report.label(below, "step", "|difference| of the losses", title)


def apart(record):
    """Return how far the two losses are apart in each step."""
    return np.abs(np.subtract(record["minigpt"], record["torch"]))


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/follow.py", __doc__.split("\n\n")[0])
    parser.add_argument("--preset", choices=("nanogpt-cpu", "nanogpt-baby"), default="nanogpt-baby")
    report.add_number(parser, "--steps", 250, "steps of each")
    report.add_number(parser, "--batch-size", 4, "sequences per batch")
    parser.add_argument("--data", help="as in minigpt.train")
    report.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Train both; print, write and draw what became of their losses."""
    args = arguments(argv)
    if timing.torch_on(args.threads) is None:
        raise report.WrongResult("torch is not installed: pip install torch")
    env = report.environment(args.threads)
    report.print_environment(env)
    given = {"max_iters": args.steps, "lr_decay_iters": 5000, "batch_size": args.batch_size}
    given |= {"dropout": 0.0, "threads": args.threads, "data": args.data}
    data = TextData(args.data)
    config, train_config = resolve(PRESETS[args.preset] | given, data.sizes)
    record = {"preset": args.preset, "train": dataclasses.asdict(train_config)}
    record |= {"torch": list(theirs(config, train_config, data.train))}
    record |= {"minigpt": list(ours(config, train_config, data.train))}
    steps = sorted({1, *range(0, args.steps + 1, max(1, args.steps // SHOWN))} - {0})
    rows = [
        [f"{i:,}", *(f"{record[name][i - 1]:.4f}" for name in ("torch", "minigpt"))]
        + [f"{apart(record)[i - 1]:.1e}"]
        for i in steps
    ]
    report.print_table(["step", "torch", "minigpt", "apart"], rows)
    most = apart(record).max()
    print(f"\n{args.preset}, {args.batch_size} x {config.block_size}: at most {most:.1e} apart")
    if not most <= TOLERANCE:
        raise report.WrongResult(f"the losses are {most:.1e} apart; {TOLERANCE:g} is allowed")
    report.finish(args, "follow", env, [record], draw)
    return 0


if __name__ == "__main__":
    report.run(main)
