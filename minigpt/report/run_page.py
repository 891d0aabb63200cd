"""The page of a run: `minigpt report --out-dir out` writes report.html into the run's folder.

What is on it stands in PARTS, in this order: each is a function of what is shown that returns a
Section, or None where the run has nothing of the kind.
"""

import copy
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minigpt import cli
from minigpt.backend.blas import blas_threads
from minigpt.cli import plural
from minigpt.data.datasets import PairData, TextData
from minigpt.data.excerpts import Excerpt
from minigpt.errors import UserError
from minigpt.files import METRICS, PAGE, describe_size
from minigpt.interchange.loading import open_on_host
from minigpt.model import count_parameters, describe_model
from minigpt.model.base import load_plain
from minigpt.model.checkpoint import Checkpoint, find_checkpoint
from minigpt.report.anatomy import anatomy_section
from minigpt.report.cost import cost_section
from minigpt.report.curves import curve_section
from minigpt.report.gradients import gradients_section
from minigpt.report.heads import attention_section
from minigpt.report.metrics import read_run
from minigpt.report.page import GENERATOR, check_place, facts, paragraph, write_page
from minigpt.report.passages import passages_section
from minigpt.report.passes import run_passes
from minigpt.report.run_data import open_run_data
from minigpt.report.samples import samples_section
from minigpt.report.tokens import tokens_section
from minigpt.report.vega import check_library
from minigpt.sample.tasks import Task, task_of

TOKENS, SAMPLE_S = 100, 0.5  # of a sample, at most
HEAD = 2000  # bytes at the beginning of a file in which a page says that it is one of these
FIGURES = (
    ("validation loss", "val_loss", "{:.4f}"),
    ("bits per byte", "val_bpb", "{:.4f}"),
    ("exact match", "exact_match", "{:.2%}"),
    ("tokens", "tokens", "{:,}"),
    ("time", "seconds", "{:,.0f} s"),
    ("tokens per second", "tokens_per_second", "{:,}"),
)
PARTS = (
    curve_section,
    lambda run: samples_section(run.sampled),
    attention_section,
    lambda run: passages_section(run.checkpoint, run.data, run.why),
    anatomy_section,
    lambda run: gradients_section(run.checkpoint, run.passes),
    lambda run: tokens_section(run.checkpoint, run.data),
    lambda run: cost_section(run.checkpoint, run.passes, run.lines),
)


@dataclass(frozen=True)
class Shown:
    """A run as its page shows it.

    Attributes
    ----------
    folder : Path
    lines : list of dict
        The metrics, thinned out.
    notes : list of str
        What of them could not be read, or is left out.
    checkpoint : Checkpoint
        The best, without moments, an adapter merged; on the host.
    task : Task
    data : TextData, PairData or Excerpt, or None
    why : str or None
        Why there are no data, a part of a sentence.
    prompt : str or None
        What attention is shown for; None for a text that is found.
    made : dict or None
        A sample of the checkpoint, as a line of metrics: of a run that has kept none.
    """

    folder: Path
    lines: list
    notes: list
    checkpoint: Checkpoint
    task: Task
    data: TextData | PairData | Excerpt | None
    why: str | None = None
    prompt: str | None = None
    made: dict | None = None

    @property
    def sampled(self):
        """Lines that have a sample: of the metrics, or what was made for the page; a list."""
        kept = [line for line in self.lines if line.get("sample")]
        return kept or [self.made] * (self.made is not None)

    @property
    def train(self):
        """The options of the training, a dict; {} of a model that was not trained here."""
        return self.checkpoint.state.get("train", {})

    @cached_property
    def passes(self):
        """Both passes over some of the data, as Passes; None without data."""
        return None if self.data is None else run_passes(self.checkpoint, self.data)


@dataclass(frozen=True)
class ReportConfig(cli.Config):
    """A page of a run."""

    out_dir: str = cli.option(
        "out", "folder of a run, or one of its checkpoints", metavar="DIR", path=True
    )
    to: str | None = cli.option(
        None, f"file to write (default: {PAGE} in the run's folder)", metavar="FILE", path=True
    )
    force: bool = cli.option(False, "replace the file that --to names")
    prompt: str | None = cli.option(
        None, "text for which attention is shown (default: a sample of the run)"
    )


def open_run(place, prompt=None, data=None, checkpoint=None):
    """Return a run as Shown.

    Parameters
    ----------
    place : Path
        Its folder, or one of its checkpoints.
    prompt : str, optional
        As of Shown.
    data : TextData or PairData, optional
        Of a run in training; looked for if left out.
    checkpoint : Checkpoint, optional
        That is there, of load_plain; read if left out.

    Raises
    ------
    UserError
        If there is no run, or its checkpoint cannot be read.
    """
    folder = folder_of(place)
    checkpoint = checkpoint or load_plain(find_checkpoint(place), np, open_on_host)
    try:
        lines, _, notes = read_run(folder)
    except OSError as error:
        why = error.strerror or error
        lines, notes = [], [f"{folder / METRICS} cannot be read ({why}): there are no curves."]
    why = None
    if data is None:
        data, why = open_run_data(checkpoint, folder)
    else:
        data = copy.copy(data)
        data.move(np)
    made = None
    if data is not None and not any(line.get("sample") for line in lines):
        made = new_sample(checkpoint, data)
    task = task_of(checkpoint.config)
    return Shown(folder, lines, notes, checkpoint, task, data, why, prompt, made)


def folder_of(place):
    """Return the folder of a run: of its path, or that of one of its files."""
    return place.parent if place.is_file() else place


def new_sample(checkpoint, data):
    """Return a sample of a checkpoint as a line of metrics: for a run that has kept none."""
    task, start = task_of(checkpoint.config), time.perf_counter()
    model = data, checkpoint.params.tree, checkpoint.config
    text = task.sample(*model, TOKENS, lambda: time.perf_counter() - start > SAMPLE_S)
    return {"step": checkpoint.state.get("step"), "sample": text, "made": True}


def write_run_page(place, path=None, prompt=None, refresh=None, data=None, force=False):
    """Write the page of a run; return (path, size in bytes, notes on what it lacks).

    Parameters
    ----------
    place, prompt, data : as of `open_run`
    path : Path, optional
        PAGE in the run's folder if left out.
    refresh : int, optional
        Seconds between two looks of a browser; None for a run that is over.
    force : bool
        Whether to replace a file at `path`. PAGE in the run's folder is replaced anyway.

    Raises
    ------
    NoLibrary
    UserError
        As `open_run`; or if there is something else at `path`, or it cannot be written.
    """
    folder = folder_of(place)
    path = folder / PAGE if path is None else path
    if path == folder / PAGE:
        check_own_place(path)
    else:
        check_place("--to", path, "run.html", force)
    checkpoint = load_plain(find_checkpoint(place), np, open_on_host)
    check_library()
    # The threads of BLAS would wait for each other in every product, long where cores are busy.
    with blas_threads(1):
        run = open_run(place, prompt, data, checkpoint)
        sections = [section for part in PARTS if (section := part(run)) is not None]
    lead, notes = paragraph(sentence(run)) + facts(figures(run)), run.notes
    del run, checkpoint  # the library needs memory of its own
    size = write_page(path, f"minigpt: {folder.resolve().name}", sections, lead, refresh)
    return path, size, notes


def check_own_place(path):
    """Raise a UserError if there is something at a run's own place that is no page of minigpt."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file by --to")
    try:
        with open(path, "rb") as file:
            other = GENERATOR.encode() not in file.read(HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if other:
        raise UserError(f"{path} is there and no page of minigpt; name another file by --to")


def sentence(run):
    """Return a run in one sentence."""
    config, train, state = run.checkpoint.config, run.train, run.checkpoint.state
    last = run.lines[-1] if run.lines else state
    text = f"{run.task.kind[:1].upper()}{run.task.kind[1:]} of {count_parameters(config):,} "
    text += f"parameters ({describe_model(config)})"
    if train.get("init_from"):
        text += f", {'adapted by LoRA' * bool(train.get('lora_rank')) or 'fine-tuned'} from "
        text += train["init_from"]
    if last.get("step") is not None:
        text += f", trained for {plural(last['step'], 'step')} on {state.get('data_name', 'data')}"
        text += f" with {train.get('optimizer', 'adamw')} in {train.get('dtype', 'float32')}"
    losses = [line["val_loss"] for line in run.lines if line.get("val_loss") is not None]
    if losses:
        text += f"; the validation loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
    return text + "."


def figures(run):
    """Return {name: text} of what a reader looks for first."""
    state, train = run.checkpoint.state, run.train
    last = {key: value for line in run.lines for key, value in line.items() if value is not None}
    rows = {}
    if last.get("step") is not None:
        by_steps = not (train.get("max_seconds") or train.get("max_passes"))
        of = f" of {train['max_iters']:,}" if by_steps and train.get("max_iters") else ""
        rows["steps"] = f"{last['step']:,}{of}"
    for name, key, form in FIGURES:
        if last.get(key) is not None:
            rows[name] = form.format(last[key])
    if state.get("best_loss") is not None:
        rows["best checkpoint"] = f"{state['best_loss']:.4f} at step {state['best_step']:,}"
    return rows


def main(argv=None, prog="minigpt report"):
    """Write a page on a run: its curves, samples, attention, the model. It opens in any browser."""
    parser = cli.parser(prog, main.__doc__)
    cli.add_flags(parser, ReportConfig)
    options = cli.build(ReportConfig, vars(parser.parse_args(argv)))
    to = None if options.to is None else Path(options.to)
    if to is None and options.force:
        raise UserError("--force is for --to FILE")
    place, force = Path(options.out_dir), options.force
    path, size, notes = write_run_page(place, to, options.prompt, force=force)
    for each in notes:
        cli.note(each)
    print(f"page: {cli.printable(str(path))}, {describe_size(size)}")
