"""Training: `python -m minigpt.train`, with no flags at all or with those of --help.

A run lives in its --out-dir: `metrics.jsonl`, a line per log or evaluation; `best.safetensors`;
`last.safetensors`, from which --resume goes on to the bit; and, with matplotlib, `loss.png`.
"""

import json
import math
import signal
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt import UserError, cli
from minigpt.backend import module
from minigpt.decoding import generate
from minigpt.estimate import describe
from minigpt.gpt import GPTConfig, count_parameters
from minigpt.parallel import Workers, usable_cores
from minigpt.recipe import DEFAULT, PRESETS, TrainConfig, configs
from minigpt.run import METRICS, PICTURE, begun, keep_metrics, prepare_folder, resumed

SHAKESPEARE = 65  # characters in tiny Shakespeare, what a dry run without --data counts with
SAMPLE = 300  # characters shown at the end of a run


def parse(argv):
    """Return (namespace of what is not an option of a config, dict of the options given)."""
    parser = cli.parser("python -m minigpt.train", "Train a GPT on text.")
    parser.add_argument("--preset", help=f"{', '.join(PRESETS)} (default: {DEFAULT})")
    parser.add_argument("--config", metavar="FILE", help="TOML file with options, as n_layer = 6")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out-dir")
    parser.add_argument("--overwrite", action="store_true", help="lose the run in --out-dir")
    parser.add_argument("--dry-run", action="store_true", help="print the cost of the run and exit")
    cli.add_flags(parser, TrainConfig, GPTConfig)
    given = vars(parser.parse_args(argv))
    names = ("preset", "config", "resume", "overwrite", "dry_run")
    own = {name: given.pop(name) for name in names}
    if own["resume"] and (own["overwrite"] or own["preset"]):
        parser.error("--resume keeps the run's own config: leave out --overwrite and --preset")
    return own, given


def options(own, given):
    """Return the options of a new run: the preset's, then the file's, then the flags'."""
    preset = cli.choose(own["preset"] or DEFAULT, PRESETS, "preset")
    return {**preset, **read_config(own["config"]), **given}


def read_config(path):
    """Return the options in a TOML file."""
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not a TOML file: {error}") from None


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a wish that is granted between two steps.

    A second Ctrl-C ends the program at once.
    """

    def __init__(self):
        self.signal = None

    def __enter__(self):
        names = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self.note) for number in names}
        return self

    def note(self, number, _):
        self.signal = number
        signal.signal(number, self.before[number])

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def loop(run, metrics, bar, stop):
    """Train until the last step or until the wish to stop; evaluate, log and save on the way."""
    train = run.train
    clock = time.perf_counter() - run.seconds
    losses, logged, tokens = [], time.perf_counter(), run.tokens
    batch = train.batch_size * train.gradient_accumulation_steps * run.config.block_size
    while run.step < train.max_iters and stop.signal is None:
        loss, norm, lr = run.trainer.step(run.train_ids, run.step)
        run.step, run.tokens = run.step + 1, run.tokens + batch
        run.seconds = time.perf_counter() - clock
        losses.append(loss)
        bar.update()
        last = run.step == train.max_iters or stop.signal is not None
        evaluated = run.step % train.eval_interval == 0 or run.step == train.max_iters
        if not (evaluated or last or run.step % train.log_interval == 0):
            continue
        rate = (run.tokens - tokens) / (time.perf_counter() - logged)
        line = {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds, 3)}
        line |= {"train_loss": sum(losses) / len(losses), "learning_rate": lr, "grad_norm": norm}
        line |= {"tokens_per_second": round(rate)}
        bar.set_postfix_str(f"loss {line['train_loss']:.4f}, {rate:,.0f} tokens/s", refresh=False)
        if evaluated:
            run.evaluate()
            run.seconds = time.perf_counter() - clock
            line |= {"val_loss": run.val_loss, "seconds": round(run.seconds, 3)}
            say(
                bar,
                f"step {run.step:>6,}   train {line['train_loss']:.4f}   "
                f"validation {run.val_loss:.4f}   {run.seconds:7.1f} s   {rate:,.0f} tokens/s",
            )
        metrics.write(json.dumps(line) + "\n")
        metrics.flush()
        if evaluated or last:
            run.save_last()
        losses, logged, tokens = [], time.perf_counter(), run.tokens


def say(bar, line):
    """Print a line above the bar."""
    bar.write(line, file=sys.stdout)
    sys.stdout.flush()


def finish(run, stop):
    """Say what came out; return the exit code."""
    folder, command = run.folder, f"--out-dir {run.folder}"
    if stop.signal is not None:
        print(
            f"stopped at step {run.step:,} of {run.train.max_iters:,}, saved; go on with\n"
            f"  python -m minigpt.train --resume {command}"
        )
        return 128 + stop.signal
    print(
        f"\nvalidation loss {run.val_loss:.4f} (last), {run.best_loss:.4f} "
        f"(best, step {run.best_step:,}), {run.seconds:.1f} s"
    )
    picture = plot(folder)
    if picture:
        print(f"picture: {picture}")
    print(f"\n{'-' * 15} a sample {'-' * 15}")
    start = "\n" if "\n" in run.tokenizer.chars else run.tokenizer.chars[0]
    ids = np.array([run.tokenizer.encode(start)], np.int32)
    settings = {"temperature": 0.8, "seed": run.train.seed}
    p = run.trainer.params.tree
    for new in generate(p, run.config, ids, SAMPLE, **settings):
        print(run.tokenizer.decode(new), end="", flush=True)
    print(f"\n{'-' * 40}\nmore: python -m minigpt.sample {command}")
    return 0


def plot(folder):
    """Draw loss.png from the metrics if matplotlib is there; return its path or None."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for key, label in (("train_loss", "training"), ("val_loss", "validation")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), label=label, marker="o" * (key == "val_loss"))
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / PICTURE, dpi=120)
    pyplot.close(figure)
    return folder / PICTURE


def dry_run(values):
    """Print the cost of the run that the options describe."""
    size = begun(values).tokenizer.vocab_size if values.get("data") else 0
    config, train = configs({"vocab_size": SHAKESPEARE} | values if not size else values, size)
    print("\n".join(describe(config, train)))


def introduce(run, threads):
    """Print what is about to be trained."""
    config, n = run.config, len(run.train_ids) + len(run.val_ids)
    print(
        f"{run.name}: {n:,} characters, {run.tokenizer.vocab_size} different\n"
        f"model: {count_parameters(config):,} parameters, {config.n_layer} layers, "
        f"{config.n_head} heads, {config.n_embd} channels, context {config.block_size}\n"
        f"training: {run.train.max_iters:,} steps of {run.train.batch_size} x {config.block_size} "
        f"tokens on {threads} thread{'s' * (threads > 1)}, into {run.folder}\n"
        f"loss of a uniform guess: {math.log(config.vocab_size):.4f} nats per token",
        flush=True,
    )


def thread_count(train):
    """Return how many threads can work: no more than a batch has rows, one on a device."""
    if train.backend != "numpy":
        return 1
    n = min(train.threads or usable_cores(), train.batch_size)
    if train.threads and n < train.threads:
        print(
            f"note: a batch has {n} rows: using {n} threads, not {train.threads}", file=sys.stderr
        )
    return n


def train(own, given):
    """Train as the flags say; return the exit code."""
    checkpoint = None
    if own["resume"]:
        run, checkpoint = resumed({**read_config(own["config"]), **given})
    else:
        values = options(own, given)
        _, settings = configs(values, 1)  # what is wrong with the flags is said before any work
        folder = Path(settings.out_dir)
        prepare_folder(folder, own["overwrite"])
        run = begun(values)
    xp, threads = module(run.train.backend), thread_count(run.train)
    with Workers(threads) as workers, Interrupt() as stop:
        run.start(workers, xp, checkpoint)
        introduce(run, threads)
        keep_metrics(run.folder / METRICS, run.step)
        bar = tqdm(total=run.train.max_iters, initial=run.step, unit="step", disable=None)
        with open(run.folder / METRICS, "a", encoding="utf-8") as metrics, bar:
            loop(run, metrics, bar, stop)
        return finish(run, stop)


def main(argv=None):
    """Train a GPT on text."""
    own, given = parse(argv)
    if own["dry_run"]:
        return dry_run(options(own, given))
    try:
        return train(own, given)
    except MemoryError as error:
        raise UserError(
            f"out of memory ({error or 'no more to be had'}); --batch-size with "
            "--gradient-accumulation-steps, --block-size and --n-embd say how much is needed: "
            "--dry-run shows it"
        ) from None


if __name__ == "__main__":
    cli.run(main)
