"""Training: `python -m minigpt.train`, with no flags at all or with those of --help.

A run lives in its --out-dir: `metrics.jsonl`, a line per log or evaluation; `best.safetensors`;
`last.safetensors`, from which --resume goes on to the bit; and, with matplotlib, `loss.png`.
"""

import json
import math
import shlex
import sys
import time
import warnings

from threadpoolctl import threadpool_limits

from minigpt import cli
from minigpt.backend.devices import tf32
from minigpt.errors import UserError
from minigpt.model.models import count_parameters
from minigpt.sample import __main__ as sample
from minigpt.train.config import configs
from minigpt.train.cost import describe
from minigpt.train.interrupt import Interrupt
from minigpt.train.options import options, parse
from minigpt.train.resume import folder_of, resumed, stored
from minigpt.train.run import begun
from minigpt.train.run_dir import METRICS, PICTURE, alone, clear_folder, cut_metrics
from minigpt.train.tasks import TASKS
from minigpt.train.threads import Workers

OVERHEAD = 1.5  # seconds of a command before its first step and after its last evaluation, about
EARLY, MARGIN = 0.1, 0.05  # of a picture: share of the steps that set no limit, room above the rest
SHAKESPEARE = 65  # characters in tiny Shakespeare, which a dry run without --data does not read
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"


def dry_run(own, values):
    """Print the cost of a run."""
    if own["resume"]:
        _, config, train = stored(values)
    else:
        _, train = configs(values, 1)
        sizes = (SHAKESPEARE,)
        if train.data is not None or train.task != "text":
            sizes = TASKS[train.task](train, values.get("share_embedding", False)).sizes
        config, train = configs(values, *sizes)
    print("\n".join(describe(config, train)))


def loop(run, bar, stop):
    """Train until the last step or until the wish to stop; log, evaluate and save on the way."""
    train = run.train
    start, busy, tokens = time.perf_counter() - run.seconds, 0.0, run.tokens
    if run.due:  # the run was interrupted amid an evaluation
        keep(run, run.due, 0.0, bar, start)
    while not run.over and stop.signal is None:
        before = time.perf_counter()
        run.advance()
        run.seconds = time.perf_counter() - start
        run.reserve = OVERHEAD + run.evaluation_seconds()
        run.over = run.progress >= 1
        evaluated = run.step % train.eval_interval == 0 or run.over
        logged = evaluated or run.step % train.log_interval == 0
        told = logged or train.backend == "numpy"  # to ask a device is to wait for it
        numbers = run.read() if told else None
        run.due = numbers if evaluated else None
        now = time.perf_counter()
        run.seconds, busy = now - start, busy + now - before
        rate = (run.tokens - tokens) / busy
        if told:
            loss = f"loss {shown(run.train_loss)}, {rate:,.0f} tokens/s{measured(run)}"
            if run.skips.fault:
                bar.write(run.skips.fault, file=sys.stderr)
            bar.set_postfix_str(loss, refresh=False)
        bar.update(int(run.seconds) - bar.n if train.max_seconds else 1)
        if logged:
            keep(run, numbers, rate, bar, start)
            busy, tokens = 0.0, run.tokens


def keep(run, numbers, rate, bar, start):
    """Write what is known after a step into the metrics; if it is due, evaluate, save and tell."""
    measures = {}
    if run.due:
        bar.set_postfix_str("evaluating")
        run.evaluate()
        run.seconds = time.perf_counter() - start
        measures = {"val_loss": run.val_loss, **run.measures}
    line = {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds, 3)}
    line |= {"train_loss": run.train_loss, **measures, **numbers}
    run.log({**line, "tokens_per_second": round(rate)})
    if run.due:
        run.due = None
        run.save_last()
        bar.write(
            f"step {run.step:>6,}   train {shown(run.train_loss)}   validation "
            f"{run.val_loss:.4f}{measured(run)}   {run.seconds:7.1f} s   {rate:,.0f} tokens/s",
            file=sys.stdout,
        )
        sys.stdout.flush()


def shown(loss):
    """Return a loss as text."""
    return "-" if loss is None else f"{loss:.4f}"


def measured(run):
    """Return what was measured beside the loss, as text: ", exact match 99.50%", or nothing."""
    return "".join(f", {name.replace('_', ' ')} {x:.2%}" for name, x in run.measures.items())


def advance_all(run):
    """Train to the end, or to the wish to stop and save; return the signal that was it or None."""
    from tqdm import tqdm  # slow to import, and --help needs none

    bar = tqdm(
        total=round(run.train.max_seconds or run.train.max_iters),
        initial=int(run.seconds) if run.train.max_seconds else run.step,
        bar_format=BAR,
        disable=None,
        dynamic_ncols=True,
        leave=False,
        smoothing=0,
    )
    with Interrupt() as stop, bar:
        try:
            loop(run, bar, stop)
        except KeyboardInterrupt:
            # Amid a step, the weights are those of the last one until the optimizer begins.
            if run.trainer.optimizer.step_count != run.step or run.over:
                raise
        if not run.over:
            run.save_last()
    return stop.signal


def finish(run):
    """Tell what came out, with a picture and a sample."""
    print(
        f"\nvalidation loss {run.val_loss:.4f} (last), {run.best_loss:.4f} "
        f"(best, step {run.best_step:,}){measured(run)}, {run.seconds:.1f} s"
    )
    # The run is done, whatever becomes of its picture and its sample.
    try:
        picture = plot(run.folder)
        if picture:
            print(f"picture: {picture}")
    except OSError as error:
        print(f"no picture: {cli.one_line(error)}")
    print(f"\n{'-' * 15} a sample {'-' * 15}")
    where = [f"--out-dir={run.folder}", f"--backend={run.train.backend}"]
    try:
        sample.main([*where, *run.task.sample_flags])
    except (UserError, MemoryError, *cli.device_failures()) as error:
        print(f"none: {cli.one_line(error)}")
    print(f"{'-' * 40}\nmore: python -m minigpt.sample --out-dir {shlex.quote(str(run.folder))}")


def plot(folder):
    """Draw loss.png from the metrics; return its path, or None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    lines = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    later = []
    for key, label in (("train_loss", "training"), ("val_loss", "validation")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        axes.plot(*zip(*points, strict=True), label=label, marker="o" * (key == "val_loss"))
        later += [loss for step, loss in points if step > EARLY * lines[-1]["step"]]
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_ylim(top=max(later) + MARGIN * (max(later) - min(later)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / PICTURE, dpi=120)
    return folder / PICTURE


def introduce(run):
    """Print what is about to be trained."""
    config, train, threads = run.config, run.train, run.train.shards()
    on = f"{threads} thread{'s' * (threads > 1)}"
    clock = f"for {train.max_seconds:g} seconds" if train.max_seconds else None
    end = clock or f"to step {train.max_iters:,}"
    if train.backend == "cupy":
        on = f"cupy in {train.dtype}{' with tf32' * train.tf32}"
    print(
        f"{run.task.description}\n"
        f"model: {count_parameters(config):,} parameters, {config.n_layer} layers, "
        f"{config.n_head} heads, {config.n_embd} channels, context {config.block_size}"
        f"{', pairs of tokens' * config.bigram}\n"
        f"training: {f'from step {run.step:,} ' * (run.step > 0)}{end}, of "
        f"{run.task.batch_description(train, config)}, on {on}, into {run.folder}\n"
        f"loss of a uniform guess: {math.log(config.vocab_size):.4f} nats per token",
        flush=True,
    )


def train(own, values):
    """Train as the options say; return the exit code."""
    run = resumed(values) if own["resume"] else begun(values, own["overwrite"])
    # One shard needs no thread of its own: BLAS then has all cores.
    with (
        threadpool_limits(run.train.cores(), "blas"),
        Workers(run.train.shards()) as workers,
        tf32(run.train.tf32),
    ):
        run.start(workers)
        if not own["resume"]:
            clear_folder(run.folder)
        cut_metrics(run.folder / METRICS, run.step - bool(run.due))
        introduce(run)
        number = advance_all(run)
    if run.over:
        finish(run)
    else:
        clock = run.train.max_seconds
        of = f"a run of {clock:g} seconds" if clock else f"{run.train.max_iters:,}"
        print(
            f"stopped at step {run.step:,} of {of}, saved; go on with\n"
            f"  python -m minigpt.train --resume --out-dir {shlex.quote(str(run.folder))}"
        )
    return 128 + number if number else 0


def main(argv=None):
    """Train a GPT on text."""
    own, given = parse(argv)
    values = options(own, given)
    if own["dry_run"]:
        return dry_run(own, values)
    with warnings.catch_warnings():
        # Numbers that overflow are told as what they mean: that training has diverged.
        warnings.filterwarnings("ignore", "(overflow|invalid value|divide by zero)")
        try:
            with alone(folder_of(values), make=not own["resume"]):
                return train(own, values)
        except MemoryError as error:
            raise UserError(
                f"out of memory ({cli.one_line(str(error)) or 'no more to be had'}); take a "
                "smaller --batch-size (with --gradient-accumulation-steps), --block-size or "
                "model; --dry-run shows what is needed"
            ) from None


if __name__ == "__main__":
    cli.run(main)
