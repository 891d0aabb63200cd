"""Training: `python -m minigpt.train`, with no flags at all or with those of --help.

A run lives in its --out-dir: `metrics.jsonl`, a line per log or evaluation; `best.safetensors`;
`last.safetensors`, from which --resume goes on to the bit; with matplotlib `loss.png`, and with
the extra `report` a page, `report.html`; of the trackers asked for, `tensorboard/` and `wandb/`.
"""

import contextlib
import functools
import math

from minigpt import backend, cli
from minigpt.backend.blas import product_rate
from minigpt.backend.cores import note_on_threads, usable_cores
from minigpt.files import LAST
from minigpt.model import count_parameters, describe_model
from minigpt.optim.schedule import describe as describe_schedule
from minigpt.report.loss_curve import draw_losses
from minigpt.report.picture import NoPicture, NotInstalled
from minigpt.sample.command import sample
from minigpt.sample.tasks import TASKS, task_of
from minigpt.train.base import open_base
from minigpt.train.begin import new_run, open_data
from minigpt.train.config import resolve, train_config_of
from minigpt.train.cost import describe, describe_trained
from minigpt.train.interrupt import Interrupt
from minigpt.train.limits import Limits
from minigpt.train.loop import reported, started, train_run
from minigpt.train.memory import longest, resident
from minigpt.train.nonfinite import Diverged
from minigpt.train.options import PROG, options, parse
from minigpt.train.page import end_page, stop_page
from minigpt.train.progress import format_bits, format_measures
from minigpt.train.ranks import ALONE, check_alike, check_same, join
from minigpt.train.resume import folder_of, limits_of, resume_run, stored_run
from minigpt.train.run_dir import locked


def dry_run(own, options, processes):
    """Print the cost of a run that so many processes share."""
    data, rate = None, None
    if own["resume"]:
        _, state, config, train_config = stored_run(options)
        limits = limits_of(state, train_config, options)
    else:
        base, options = open_base(options)
        train_config = train_config_of(options)
        chars = train_config.tokenizer in (None, "char")
        known = chars and train_config.data is None and base is None
        sizes = TASKS[train_config.task].builtin_sizes if known else None
        if sizes is None:
            data = open_data(train_config, options, base)
            sizes = data.sizes
        base = None  # of the run, its weights are counted
        config, train_config = resolve(options, sizes)
        if data is not None:
            data.check(config.block_size)
        train = range(sizes["train"]) if data is None else data.train
        limits = Limits(train_config, task_of(config).eval_size(train, config)[0])
    if train_config.backend == "numpy":
        rate = product_rate(min(train_config.threads, usable_cores()))
    spent = *resident(), longest(data)
    print("\n".join(describe(config, train_config, *spent, rate, processes, limits)))
    for note in note_on_threads(train_config.workers()):
        cli.note(note)


def finish(run):
    """Print what came out, with a picture and a sample."""
    state = run.state
    last = f"{state.val_loss:.4f} (last"
    if run.whole_loss is not None:
        last = f"{run.whole_loss:.4f} (last, whole split), {last}, part"
    best = ""
    if state.best_loss is not None:  # there is none if it could not be saved
        best = f", {state.best_loss:.4f} (best, step {state.best_step:,})"
    measured = f"{format_bits(run.val_bpb)}{format_measures(state.measures)}"
    print(f"\n{run.limits.reason(state.step, state.seconds)}")
    print(f"validation loss {last}){best}{measured}, {state.seconds:.1f} s")
    # The run is done, whatever becomes of its picture and its sample.
    try:
        print(f"picture: {cli.printable(str(draw_losses(run.folder)))}")
    except NotInstalled:
        pass  # a picture is an extra
    except NoPicture as why:
        cli.note(f"no picture: {why}")
    page = end_page(run)
    if page is not None:
        print(f"page: {cli.printable(str(page))}")
    for note in run.notes:
        cli.note(note)
    shown = run.task.show(run.data)
    if shown is not None:
        print(f"\n{'-' * 15} a sample {'-' * 15}")
        try:
            sample({"out_dir": str(run.folder), "backend": run.train_config.backend, **shown})
        except Exception as error:  # whatever goes wrong in it
            print(f"none: {cli.one_line(error) or type(error).__name__}")
        print("-" * 40)
    print(f"more: {cli.command('python -m minigpt.sample', out_dir=run.folder)}")


def introduce(run):
    """Print what is about to be trained."""
    config, train_config, state = run.config, run.train_config, run.state
    limits, by_progress = run.limits, not run.limits.by_steps
    hardware = cli.plural(train_config.workers(), "thread")
    if train_config.backend == "cupy":
        hardware = f"cupy in {train_config.dtype}"
    if run.ranks.size > 1:
        hardware = f"{run.ranks.size} processes of {hardware} each"
    end = f"for {limits.length()}" if by_progress else f"to step {limits.steps:,}"
    start = f"from step {state.step:,} " if state.step else ""
    begun = f", from {train_config.init_from}" if train_config.init_from else ""
    if train_config.lora is not None:
        begun += f"\nLoRA: {describe_trained(config, train_config.lora)}"
    found = train_config.weight_decay is None
    decay = "; weight decay by the passes through the data" * found
    batch = f"{train_config.batch_size} {run.task.batch_unit.format(T=config.block_size)}"
    schedule = describe_schedule(train_config, by_progress, limits.steps)
    text = (
        f"{run.data.description}\n"
        f"model: {count_parameters(config):,} parameters, {describe_model(config)}"
        f"{', with a bigram embedding' * config.bigram}{begun}\n"
        f"training: {start}{end}, batches of {batch}, on {hardware}, into {run.folder}\n"
        f"learning rate: {schedule}{decay}\n"
        f"loss of random guessing: {math.log(config.vocab_size):.4f} nats per token"
    )
    print(cli.printable(text), flush=True)


def train(own, options, stop, ranks=ALONE):
    """Train as the options say; return the exit code.

    Parameters
    ----------
    own, options : dict
        As from `parse`.
    stop : Interrupt
    ranks : Alone or Ranks
    """
    begin = resume_run if own["resume"] else functools.partial(new_run, overwrite=own["overwrite"])
    run = begin(options, ranks=ranks)
    check_same(run, ranks)
    with started(run):
        introduce(run)
        try:
            with stop.patience():
                train_run(run, stop)
        except KeyboardInterrupt:  # from a second signal
            if stop.signal is None:
                raise
        except Exception as error:
            if run.state.step and not isinstance(error, Diverged):  # which says so itself
                cli.note(stopped(run, " "))
            stop_page(run)
            raise
    if run.state.over and not run.state.due:
        with contextlib.suppress(KeyboardInterrupt):  # it is complete
            if not ranks.rank:
                finish(run)
        return 0
    with contextlib.suppress(OSError):  # a signal may mean that the terminal is gone
        print(stopped(run, "\n  "), flush=True)
    with contextlib.suppress(KeyboardInterrupt, OSError):  # the page is no reason to wait
        stop_page(run)
    return 128 + stop.signal


def stopped(run, space):
    """Return where a run has stopped, what is saved of it, and how to go on after a space."""
    limits, step = run.limits, run.state.step
    end = f"{limits.steps:,}" if limits.by_steps else f"a run of {limits.length()}"
    place = f"stopped {'in the evaluation of' if run.state.due else 'at'} step {step:,} of {end}"
    if run.saved is None:
        return f"{place}, no {LAST} is saved"
    what = "saved" if run.saved[0] == step else f"step {run.saved[0]:,} is saved"
    command = cli.command(PROG, resume=True, out_dir=run.folder)
    return f"{place}, {what}; resume with{space}{command}"


def main(argv=None, prog=PROG):
    """Train a GPT on text."""
    with cli.standard_streams(), join() as ranks:
        own, given = parse(argv, prog)
        check_alike(own, ranks)
        if ranks.size > 1:  # a resumed run, too, has as many cores as there are here
            given.setdefault("threads", ranks.cores())
        chosen = options(own, given)
        if own["dry_run"]:
            return dry_run(own, chosen, ranks.size)
        return train_in_folder(own, chosen, ranks)


def train_in_folder(own, options, ranks):
    """Train as the options say, in a folder that is locked; return the exit code."""
    folder = contextlib.nullcontext()  # of the first rank, which alone writes there
    if not ranks.rank:
        folder = locked(folder_of(options), make=not own["resume"])
    with Interrupt(ranks.announce) as stop:
        try:
            with reported(), folder, backend.plain(own["plain"]):
                return train(own, options, stop, ranks)
        except KeyboardInterrupt:
            if stop.signal is None:
                raise
            return 128 + stop.signal


if __name__ == "__main__":
    cli.run(main)
