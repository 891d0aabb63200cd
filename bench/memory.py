"""The memory of a run beside what --dry-run says of it: python bench/memory.py

Of each preset a fresh process runs `minigpt train` for three steps and an evaluation, with the
sample, the picture and the page at its end, where their extras are installed. Its peak is the
largest resident set (VmHWM): all that the process held, Python and its libraries, data and
checkpoints included, as `top` shows it. Beside it stands what --dry-run prints, from another
process.

More steps take no more memory, since all batches of a text have one shape, and more batches in a
step take none either: --gradient-accumulation-steps is 2 at most here. The text has as many
characters and different ones as tiny Shakespeare, or a tenth with --short, which leaves evaluations
short; those of pairs have all of their shapes in some steps only: the preset dates runs for 60.

The preset finetune begins from random weights of nanogpt-baby's shape or, as `--base gpt2` has it,
of GPT-2's, full and with LoRA, with and without --recompute.
"""

import argparse
import contextlib
import io
import json
import random
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.lib import report, timing
from minigpt import cli
from minigpt.data.characters import CharTokenizer
from minigpt.model import checkpoint
from minigpt.model.init import init_params
from minigpt.train import __main__ as train
from minigpt.train.presets import FINETUNE, PRESETS, configs_of

CHARACTERS, DIFFERENT = 1_115_394, 65  # of tiny Shakespeare
KINDS = [chr(ord("A") + i) for i in range(DIFFERENT - 1)] + [" "]
STEPS = {"dates": 60, "gpt2": 1}  # of the others 3
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
LORA = "--lora-rank 8"
ALL_LAYERS = "--lora-targets c_attn,c_proj,c_fc --lora-dropout 0.1"
TUNED = {  # ways to fine-tune
    FINETUNE: "",
    f"{FINETUNE} recompute": "--recompute",
    f"{FINETUNE} lora": LORA,
    f"{FINETUNE} lora recompute": f"{LORA} --recompute",
    f"{FINETUNE} lora all": f"{LORA} {ALL_LAYERS}",
    f"{FINETUNE} lora all recompute": f"{LORA} {ALL_LAYERS} --recompute",
}
NAMES = f"presets, or ways to fine-tune: {', '.join(repr(name) for name in TUNED)}; default: all"
CASES = [*(name for name in PRESETS if name != FINETUNE), *TUNED]


def write_text(path, n):
    """Write n random characters, of as many kinds as the presets for tiny Shakespeare have."""
    path.write_text("".join(random.Random(0).choices(KINDS, k=n)), encoding="utf-8")


def write_base(path, preset):
    """Write a checkpoint of random weights, of a preset's model."""
    config, _ = configs_of(preset, DIFFERENT)
    table = CharTokenizer("".join(sorted(KINDS)))
    checkpoint.save(path, init_params(config, 1), config, tokenizer=table, state={})


def flags_of(name, args, folder):
    """Return the command line of `minigpt train`, as short as keeps the peak."""
    preset, characters = name.split()[0], CHARACTERS // (10 if args.short else 1)
    steps = STEPS.get(preset, 3)
    flags = ["--preset", preset, "--threads", args.threads, "--max-iters", steps]
    flags += ["--eval-interval", steps, "--warmup-iters", 0, "--out-dir", folder / "run"]
    batches = PRESETS[preset].get("gradient_accumulation_steps", 1)
    flags += ["--gradient-accumulation-steps", min(2, batches)]
    if preset == FINETUNE:
        write_base(folder / "base.safetensors", args.base)
        flags += ["--init-from", folder / "base.safetensors", *TUNED[name].split()]
    if PRESETS[preset].get("task") != "seq2seq":
        write_text(folder / "text.txt", characters)
        flags += ["--data", folder / "text.txt"]
    return [*map(str, flags), *args.flags.split()]


def estimate(flags):
    """Return what --dry-run says, in bytes."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train.main([*flags, "--dry-run"])
    number, unit = re.search(r"^memory +about ([\d.]+) (\w+)", printed.getvalue(), re.M).groups()
    return float(number) * UNITS[unit]


def peak(flags):
    """Train, and return the peak of this process, in bytes."""
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(flags)
    return timing.resident_peak()


def own_figure(args):
    """Return what a fresh process is asked for."""
    measure = {"estimate": estimate, "peak": peak}[args.own]
    with tempfile.TemporaryDirectory() as folder:
        return measure(flags_of(args.preset[0], args, Path(folder)))


def bench(name, args):
    """Return the record of a preset."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    flags = ["--preset", name, "--threads", args.threads, f"--flags={args.flags}"]
    flags += ["--base", args.base, *["--short"] * args.short]
    found = {own: timing.in_child(__file__, *flags, "--own", own) for own in ("estimate", "peak")}
    return {"preset": name, "threads": args.threads, **found}


def table(records):
    """Print a row per preset."""
    rows = [
        [
            r["preset"],
            str(r["threads"]),
            f"{r['estimate'] / 1e6:,.0f}",
            f"{r['peak'] / 1e6:,.0f}",
            f"{r['estimate'] / r['peak']:.2f}",
        ]
        for r in records
    ]
    report.print_table(["preset", "threads", "--dry-run MB", "peak MB", "ratio"], rows)
    print("\nratio: what --dry-run says over the measured peak of the whole process.")


def draw(path, records, env):
    """Draw both figures of each preset."""
    with report.figure(path) as [axes]:
        for i, name in enumerate(("estimate", "peak")):
            places = [n + 0.4 * i - 0.2 for n in range(len(records))]
            axes.bar(places, [r[name] / 1e6 for r in records], 0.38, label=name)
        names = [r["preset"] for r in records]
        axes.set_xticks(range(len(records)), names, rotation=30, ha="right")
        report.log_y(axes)
        report.label(axes, "", "memory (MB)", f"Memory of a run, {env['threads']} threads")


def arguments(argv):
    """Read the command line."""
    parser = cli.parser("python bench/memory.py", __doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--preset", nargs="+", choices=CASES, default=CASES, metavar="NAME", help=NAMES)
    bases = [name for name in PRESETS if name != FINETUNE]
    add("--base", choices=bases, default="nanogpt-baby", help="whose model is fine-tuned")
    add("--short", action="store_true", help="a tenth of the text")
    add("--flags", default="", metavar="TEXT", help='further flags of train: "--n-layer 2"')
    add("--own", choices=("estimate", "peak"), help=argparse.SUPPRESS)
    report.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Measure every preset; print, write and draw what was found."""
    args = arguments(argv)
    if args.own:
        print(json.dumps(own_figure(args)))
        return 0
    env = report.environment(args.threads)
    report.print_environment(env)
    records = [bench(name, args) for name in args.preset]
    table(records)
    report.finish(args, "memory", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
