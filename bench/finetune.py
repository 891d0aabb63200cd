"""Fine-tuning: memory and time of a step of GPT-2, and losses on a second text.

    python bench/finetune.py memory     a step of GPT-2 124M, full and with LoRA, with and without
                                        --recompute, beside transformers and peft in torch
    python bench/finetune.py loss       a GPT trained on one text and fine-tuned on another, full
                                        and with LoRA, beside the same steps from scratch

Memory is the largest resident set of a process of its own, all included. Weights are random, of
GPT-2's shape; the second step is timed and those after it. Losses: tiny Shakespeare first, then
the Python language reference, with the characters of both.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.lib import report, timing
from minigpt import cli
from minigpt.backend.blas import blas_threads
from minigpt.data.characters import CharTokenizer
from minigpt.data.corpus import builtin_source, reference_text
from minigpt.data.datasets import TextData
from minigpt.model import count_parameters
from minigpt.model.init import init_params
from minigpt.model.lora import Lora, init_adapter
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

RANK, ALPHA, LORA_RATE = 8, 16, 2e-4
GPT2 = {name: PRESETS["gpt2"][name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
SHORT = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 32}
MODES = ("full", "recompute", "lora", "lora recompute", "torch", "torch recompute", "torch lora")
MODES += ("torch lora recompute",)
OTHERS = "torch", "transformers", "peft"  # what modes of torch need
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "rotary": True}


def configs(sizes, args, **options):
    """Return (model config, TrainConfig): a GPT-2 of those sizes and one batch of a fine-tuning."""
    given = {**PRESETS["gpt2"], **PRESETS["finetune"], **sizes, "threads": args.threads}
    given |= {"gradient_accumulation_steps": 1, "warmup_iters": 0, **options}
    return resolve(given, {"vocab_size": sizes["vocab_size"]})


class Tuned:
    """A model in training: all of its weights, or an adapter of rank RANK beside them."""

    def __init__(self, params, config, train_config, workers, lora):
        self.base = params
        trained, frozen = params, None
        if lora:
            trained, frozen = init_adapter(config, Lora(RANK, ALPHA), 1, np), params
            own = {"lora_rank": RANK, "lora_alpha": ALPHA, "init_from": "memory"}
            train_config = dataclasses.replace(train_config, **own)
        self.trainer = Trainer(trained, config, train_config, np, workers, frozen)

    @property
    def trained(self):
        """How many parameters are trained."""
        return self.trainer.params.size

    def loss(self, ids):
        """Return the validation loss."""
        return self.trainer.evaluate(ids)


def step_of_minigpt(args, lora, recompute):
    """Return what a step takes."""
    sizes, T = (SHORT, 16) if args.short else (GPT2, args.block_size)
    options = {"block_size": T, "batch_size": args.batch_size, "recompute": recompute}
    config, train_config = configs(sizes, args, **options)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 40 * T).astype(np.uint16)
    shards = train_config.shards()
    with blas_threads(args.threads), Workers(shards) as workers:
        tuned = Tuned(init_params(config, 1, np), config, train_config, workers, lora)
        times = timed(lambda step: tuned.trainer.step(ids, step), args.steps)
    return times | {"trained": tuned.trained, "parameters": count_parameters(config)}


def timed(step, n):
    """Take a step that does not count, and n that do; return their median and the memory's peak."""
    seconds = []
    for i in range(n + 1):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds[1:]), "peak": timing.resident_peak()}


def step_of_torch(args, lora, recompute):
    """Return what a step of transformers takes, with peft's adapter or without."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(args.threads)
    sizes, T = (SHORT, 16) if args.short else (GPT2, args.block_size)
    drops = {f"{where}_pdrop": 0.0 for where in ("resid", "embd", "attn")}
    config = GPT2Config(**sizes, n_positions=T, use_cache=False, **drops)
    model = GPT2LMHeadModel(config).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=["c_attn"], fan_in_fan_out=True
        )
        model = get_peft_model(model, adapter)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-5, fused=True)
    ids = torch.randint(0, sizes["vocab_size"], (args.batch_size, T))

    def step(i):
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    times = timed(step, args.steps)
    n = sum(p.numel() for p in model.parameters())
    return times | {"trained": sum(p.numel() for p in trained), "parameters": n}


def own_figure(args):
    """Return what a fresh process is asked for."""
    words = args.own.split()
    step = step_of_torch if "torch" in words else step_of_minigpt
    return step(args, "lora" in words, "recompute" in words)


def bench_memory(args):
    """Return a record per way of taking a step."""
    records = []
    for mode in MODES:
        if "torch" in mode and not report.installed(*OTHERS).keys() >= {*OTHERS}:
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
            report.three_digits(r["median_s"]),
        ]
        for r in records
    ]
    report.print_table(["step", "trained", "peak MB", "s"], rows)
    return records


def train(params, config, args, split, steps, rate, lora=False):
    """Train in so many steps; return (Params, record)."""
    ids, val = split
    given = {**PRESETS["finetune"], "batch_size": 32, "gradient_accumulation_steps": 1}
    given |= {"learning_rate": rate, "min_lr": rate / 10, "max_iters": steps}
    given |= {"threads": args.threads, "warmup_iters": min(20, steps // 10), "bigram": False}
    sizes = {"vocab_size": config.vocab_size}
    _, train_config = resolve({**given, "block_size": config.block_size}, sizes)
    with blas_threads(args.threads), Workers(train_config.shards()) as workers:
        tuned = Tuned(params, config, train_config, workers, lora)
        before = tuned.loss(val)
        times = timed(lambda step: tuned.trainer.step(ids, step), steps - 1)
        loss = tuned.loss(val)
    record = {"before": before, "loss": loss, "steps": steps, "learning_rate": rate}
    return tuned.base, record | {"trained": tuned.trained, "median_s": times["median_s"]}


def encoded_texts(short):
    """Return (number of tokens, [(train, val) of each of the two texts]), in one vocabulary."""
    texts = [builtin_source().raw.decode(), reference_text()]
    if short:
        texts = [text[:20000] for text in texts]
    tokenizer, splits = CharTokenizer.from_text("".join(texts)), []
    with tempfile.TemporaryDirectory() as folder:
        for i, text in enumerate(texts):
            path = Path(folder, f"{i}.txt")
            path.write_bytes(text.encode("utf-8"))
            data = TextData(str(path), tokenizer)
            splits.append((data.train, data.val))
    return tokenizer.vocab_size, splits


def bench_loss(args):
    """Return a record of the first text's training and of each way to train on the second."""
    vocab_size, splits = encoded_texts(args.short)
    sizes = SMALL | ({"n_embd": 16, "n_layer": 1, "block_size": 16} if args.short else {})
    config, _ = configs({"vocab_size": vocab_size, **sizes}, args, bigram=False)
    rate, first, steps = 1e-3, args.steps * 4, args.steps
    base, record = train(init_params(config, 1, np), config, args, splits[0], first, rate)
    records = [{"run": "first text", **record}]
    for name, lora, begin, lr in (
        ("scratch", False, None, rate),
        ("full", False, base, rate),
        ("lora", True, base, args.lora_rate),
    ):
        params = init_params(config, 1, np)
        if begin is not None:
            params.flat[...] = begin.flat
        _, record = train(params, config, args, splits[1], steps, lr, lora)
        records.append({"run": name, **record})
    print_losses(records)
    return records


def print_losses(records):
    """Print the table of `bench_loss`."""
    keys = ("run", "steps", "loss before", "after", "trained", "ms a step")
    rows = [
        [r["run"], str(r["steps"]), f"{r['before']:.4f}", f"{r['loss']:.4f}", f"{r['trained']:,}"]
        + [f"{1e3 * r['median_s']:.1f}"]
        for r in records
    ]
    report.print_table([*keys], rows)


def draw(path, records, env):
    """Draw the peaks, or the losses."""
    key, name = ("peak", "mode") if "peak" in records[0] else ("loss", "run")
    with report.figure(path) as [axes]:
        axes.bar(range(len(records)), [r[key] for r in records])
        axes.set_xticks(range(len(records)), [r[name] for r in records], rotation=30)
        report.label(axes, "", key, f"Fine-tuning, {env['threads']} threads")


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/finetune.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    add("what", choices=("memory", "loss"))
    add("--short", action="store_true", help="a tiny model")
    add("--lora-rate", type=float, default=1e-3, help="learning rate of LoRA (default: 1e-3)")
    report.add_number(parser, "--steps", None, "steps that count (default: 2; of losses 300)")
    report.add_number(parser, "--batch-size", 1, "sequences in a step of GPT-2")
    report.add_number(parser, "--block-size", 1024, "tokens of a sequence of GPT-2")
    add("--own", choices=MODES, help=argparse.SUPPRESS)
    report.add_flags(parser)
    args = parser.parse_args(argv)
    args.steps = args.steps or {"memory": 2, "loss": 300}[args.what]
    return args


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
