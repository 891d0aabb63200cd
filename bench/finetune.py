"""Fine-tuning: memory and time of a step of GPT-2, and losses on a second text.

    python bench/finetune.py memory     a step of GPT-2 124M, full and with LoRA, with and without
                                        --recompute, beside transformers and peft in torch
    python bench/finetune.py loss       a GPT trained on one text, exported, imported and trained on
                                        another, full and with LoRA, beside the same from scratch

Memory is the largest resident set of a process of its own, all included. `memory`: the second step
is timed and those after it. `loss`: every training is a `minigpt.fit` in a process of its own, with
the tokenizer of the first text. What there is on the second text has equal steps and batches, and
learning rates of its own: the best of those tried counts. The ways take turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import minigpt
from bench.lib import gpt2_step, report, timing
from minigpt import cli
from minigpt.data.corpus import NAME, builtin_source, reference_text
from minigpt.errors import UserError
from minigpt.files import read_text
from minigpt.model import count_parameters
from minigpt.model.lora import Lora, count_adapter
from minigpt.train.presets import FINETUNE, PRESETS

RANK = 8
TURNS = 3  # each with another rate
ADAPTER = {"lora_rank": RANK, "weight_decay": 0.0}
GPT2 = {"rotary": False, "bias": True, "activation": "gelu_tanh"}  # what is read back in
MODEL = {**GPT2, "block_size": 64}  # beside what preset quick has
TINY = {**GPT2, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16}
NOTE = """
Before, after: validation loss on the second text before the first step, and the lowest after one.
Step: median over all runs of a way. Peak: the largest resident set of a process, all included.
"""


class Way(NamedTuple):
    """How to train on the second text: whether from the model, own options, learning rates."""

    begins: bool
    options: dict
    rates: tuple


WAYS = {
    "scratch": Way(False, {}, (3e-3, 1.5e-3, 6e-3)),
    "full": Way(True, {}, (4e-3, 2e-3, 8e-3)),
    "LoRA": Way(True, ADAPTER, (8e-2, 4e-2, 1.6e-1)),
    "LoRA, all layers": Way(
        True, {**ADAPTER, "lora_targets": "c_attn,c_proj,c_fc"}, (4e-2, 2e-2, 8e-2)
    ),
}


def bench_memory(args):
    """Return a record per way of taking a step."""
    records, others = [], report.installed(*gpt2_step.OTHERS).keys() >= {*gpt2_step.OTHERS}
    for mode in gpt2_step.MODES:
        if "torch" in mode and not others:
            continue
        print(f"{mode} ...", file=sys.stderr, flush=True)
        flags = ["memory", "--threads", args.threads, "--own", mode, "--steps", args.steps]
        flags += ["--batch-size", args.batch_size, "--block-size", args.block_size]
        found = timing.in_child(__file__, *flags, *["--short"] * args.short)
        records.append({"mode": mode, "batch": args.batch_size, "tokens": args.block_size, **found})
    rows = [
        [
            r["mode"],
            f"{r['trained']:,}",
            f"{r['peak'] / 1e6:,.0f}",
            f"{r['median_s']:.3f}",
        ]
        for r in records
    ]
    report.print_table(["mode", "trained", "peak MB", "s a step"], rows)
    return records


def write_texts(args, folder):
    """Return the files of the first text and of the second, as names."""
    if args.data:
        for name in args.data:
            read_text(name, "--data", empty=False)  # an error of a process of its own is no line
        return args.data
    source = builtin_source()
    if source.path != NAME:
        raise UserError(
            "the first text, tiny Shakespeare, is not at hand: name a copy by MINIGPT_CORPUS, or "
            "two texts of your own by --data FIRST SECOND"
        )
    files = folder / "first.txt", folder / "second.txt"
    for path, raw in zip(files, (source.raw, reference_text().encode("utf-8")), strict=True):
        path.write_bytes(raw)
    return [*map(str, files)]


def fit(options):
    """Train as `minigpt.fit` with those options does; return what came of it, of a fresh process.

    With "export", the model is exported to that folder.
    """
    folder = options.pop("export", None)
    model = minigpt.fit(progress=False, **options)
    if folder:
        model.export(folder)
    seen = [line for line in model.history if line.get("val_loss") is not None]
    best = min(seen, key=lambda line: line["val_loss"])
    steps = [line for line in model.history if line["step"] and line.get("tokens_per_second")]
    tokens = steps[-1]["tokens"] // steps[-1]["step"]
    trained = count_parameters(model.config)
    if "lora_rank" in options:
        targets = options.get("lora_targets", "c_attn").split(",")
        trained = count_adapter(model.config, Lora(RANK, RANK, targets=targets))
    return {
        "curve": [(line["step"], line["val_loss"], line["val_bpb"]) for line in seen],
        "val_loss": best["val_loss"],
        "val_bpb": best["val_bpb"],
        "step_s": statistics.median(tokens / line["tokens_per_second"] for line in steps),
        "steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "trained": trained,
        "peak": timing.resident_peak(),
    }


def in_own_process(**options):
    """Return what `fit` returns, from a fresh process."""
    return timing.in_child(__file__, "loss", "--own", json.dumps(options))


def options_of(way, rate, args, data, folder):
    """Return the options of `minigpt.fit` on the second text."""
    begin = {"preset": FINETUNE, "init_from": folder}
    if not way.begins:
        # The same options, with a tokenizer and a config that the model would have brought.
        begin = {**PRESETS[FINETUNE], "preset": "quick", "tokenizer": folder, **args.model}
    own = {"learning_rate": rate, "min_lr": rate / 10, **way.options}
    same = {"batch_size": 16, "gradient_accumulation_steps": 1, "max_iters": args.steps}
    same |= {"warmup_iters": args.steps // 10, "eval_interval": args.steps // 4, "log_interval": 1}
    same |= {"sampler": "weyl", "data": data}
    return {**begin, **same, **own, "threads": args.threads}


def bench_loss(args):
    """Return a record of the first text's training and of each way to train on the second."""
    with tempfile.TemporaryDirectory(prefix="minigpt-") as folder:
        files, model = write_texts(args, Path(folder)), str(Path(folder, "model"))
        print(f"first text, {args.first_steps:,} steps ...", file=sys.stderr, flush=True)
        first = {"preset": "quick", "data": files[0], "tokenizer": "bpe", **args.model}
        first |= {"vocab_size": 300 if args.short else 1024, "max_iters": args.first_steps}
        first |= {"eval_interval": args.first_steps // 5, "threads": args.threads}
        found = in_own_process(**first, export=model)
        records = [{"way": "first text", **found}]
        runs = {name: [] for name in WAYS}
        for turn in range(1 if args.short else TURNS):
            for name, way in WAYS.items():
                rate = way.rates[turn]
                print(f"{name}, {rate:g} ...", file=sys.stderr, flush=True)
                options = options_of(way, rate, args, files[1], model)
                runs[name].append({"learning_rate": rate, **in_own_process(**options)})
    records += [{"way": name, **summary(found)} for name, found in runs.items()]
    check(records)
    print_losses(records)
    return records


def summary(runs):
    """Return the record of a way: the best of its runs, its step and memory, and all runs."""
    best = min(runs, key=lambda run: run["val_loss"])
    medians = {key: statistics.median(run[key] for run in runs) for key in ("step_s", "peak")}
    tried = [(run["learning_rate"], run["val_loss"], run["val_bpb"]) for run in runs]
    return {**best, **medians, "tried": tried}


def check(records):
    """Raise WrongResult unless all began alike: one model, equal batches.

    Before its first step an adapter changes nothing, so that both losses there are the model's.
    """
    _, scratch, full, *adapters = records
    for record in adapters:
        (_, before, _), (_, after, _) = full["curve"][0], record["curve"][0]
        if abs(before - after) > 1e-5:
            raise report.WrongResult(f"{record['way']} begins at {after}, full at {before}")
    if len({(r["steps"], r["tokens"]) for r in (scratch, full, *adapters)}) != 1:
        raise report.WrongResult("the ways have not seen equally many tokens")


def print_losses(records):
    """Print the table of what came out, and the rates that were tried."""
    rows = []
    for r in records:
        step, _, bpb = r["curve"][0]
        rows.append(
            [
                r["way"],
                f"{r['trained']:,}",
                f"{r['learning_rate']:g}" if "learning_rate" in r else "-",
                f"{bpb:.4f}" if step == 0 else "-",
                f"{r['val_bpb']:.4f}",
                f"{r['val_loss']:.4f}",
                f"{1e3 * r['step_s']:.1f}",
                f"{r['peak'] / 1e6:.0f}",
            ]
        )
    headings = ["way", "trained", "rate", "bits/byte before", "after", "nats/token"]
    report.print_table([*headings, "ms a step", "peak MB"], rows)
    print("\nBits per byte after so many steps, at the best rate:")
    steps = [step for step, *_ in records[2]["curve"]]
    rows = [
        [r["way"], *(f"{bpb[step]:.4f}" if step in bpb else "-" for step in steps)]
        for r in records[1:]
        for bpb in [{step: bpb for step, _, bpb in r["curve"]}]
    ]
    report.print_table(["way", *map(str, steps)], rows)
    print("\nBits per byte at the end, by learning rate:")
    for r in records[1:]:
        print(r["way"] + ": " + ", ".join(f"{bpb:.4f} at {rate:g}" for rate, _, bpb in r["tried"]))
    print(NOTE)


def draw(path, records, env):
    """Draw the peaks by mode, or bits per byte by step."""
    with report.figure(path) as [axes]:
        if "mode" in records[0]:
            axes.bar(range(len(records)), [r["peak"] / 1e6 for r in records])
            axes.set_xticks(range(len(records)), [r["mode"] for r in records], rotation=30)
            names = "", "memory (MB)"
        else:
            for r in records[1:]:
                steps, _, bits = zip(*r["curve"], strict=True)
                axes.plot(steps, bits, marker=".", label=f"{r['way']}, {r['learning_rate']:g}")
            names = "steps on the second text", "validation loss (bits per byte)"
        report.label(axes, *names, f"Fine-tuning, {env['threads']} threads")


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/finetune.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    add("what", choices=("memory", "loss"))
    add("--short", action="store_true", help="a tiny model, and of losses one rate")
    report.add_number(parser, "--steps", None, "steps that count (default: 2; of losses 120)")
    report.add_number(parser, "--batch-size", 1, "sequences in a step of GPT-2")
    report.add_number(parser, "--block-size", 1024, "tokens of a sequence of GPT-2")
    report.add_number(parser, "--first-steps", 500, "steps on the first text")
    two = {"nargs": 2, "metavar": ("FIRST", "SECOND")}
    add("--data", **two, help="texts (default: tiny Shakespeare, the Python language reference)")
    add("--own", help=argparse.SUPPRESS)
    report.add_flags(parser)
    args = parser.parse_args(argv)
    args.steps = args.steps or {"memory": 2, "loss": 120}[args.what]
    args.model = TINY if args.short else MODEL
    return args


def own_figure(args):
    """Return what a fresh process is asked for."""
    return gpt2_step.step_of(args.own, args) if args.what == "memory" else fit(json.loads(args.own))


def main(argv=None):
    """Measure; print, write and draw what was found."""
    args = arguments(argv)
    if args.own:
        print(json.dumps(own_figure(args)))
        return 0
    env = report.environment(args.threads)
    report.print_environment(env)
    records = {"memory": bench_memory, "loss": bench_loss}[args.what](args)
    report.finish(args, f"finetune {args.what}", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
