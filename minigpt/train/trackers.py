"""Trackers: what reads the metrics of a run while it is at work, for those who live there.

A tracker gets every line of the metrics as it is written. TensorBoard's files are in the run's
folder; Weights & Biases is reached by its own library, which WANDB_MODE=offline keeps from the
network. What fails in one amid a run costs a note and that tracker, never the run.

    tracked(run)         opens those that the options of a run ask for
    tracker.log(line)    a line of the metrics, a dict
    tracker.close(good)  the run is over, or was left; good: without an error
"""

import contextlib
import dataclasses
import html
import importlib
import io
import json
import secrets
import time

from minigpt import cli
from minigpt.cli import one_line
from minigpt.errors import UserError
from minigpt.files import METRICS, append, remove_file
from minigpt.model import count_parameters

FOLDER = "tensorboard"  # in that of the run
EVENTS = "events.out.tfevents."  # how the names of TensorBoard's files begin
WITHOUT = {"tensorboard": "--no-tensorboard", "wandb": "--wandb ''"}
PARTS = {  # what is imported of each library
    "tensorboard": (
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.proto.summary_pb2",
        "tensorboard.plugins.text.summary_v2",
        "tensorboard.summary.writer.record_writer",
    ),
    "wandb": ("wandb",),
}


def load_library(name):
    """Return the modules of a tracker's library, PARTS[name].

    Raises
    ------
    UserError
        If it is not installed, or cannot be loaded.
    """
    try:
        return [importlib.import_module(part) for part in PARTS[name]]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == name:
            raise UserError(
                f"--{name}: {name} is not installed: pip install 'minigpt[{name}]', or go on "
                f"without it: {WITHOUT[name]}"
            ) from None
        raise UserError(f"--{name}: {name} cannot be loaded: {one_line(error)}") from None
    except Exception as error:  # a library of others fails in ways that nobody can list
        why = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--{name}: {name} cannot be loaded: {why}") from None


def asked_for(train_config):
    """Return the names of the trackers that options ask for."""
    return ["tensorboard"] * train_config.tensorboard + ["wandb"] * bool(train_config.wandb)


def check_trackers(train_config):
    """Raise a UserError if the library of a tracker is missing, before any work."""
    for name in asked_for(train_config):
        load_library(name)


def settings_of(run):
    """Return all options of a run as a dict, and the size of its model."""
    options = {**dataclasses.asdict(run.config), **dataclasses.asdict(run.train_config)}
    known = {name: value for name, value in options.items() if value is not None}
    return {**known, "parameters": count_parameters(run.config)}


def numbers_of(line):
    """Return the numbers of a line of the metrics, but for its step."""
    return {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def sample_text(sample):
    """Return a sample of the metrics, a text or answers, as text."""
    if isinstance(sample, str):
        return sample
    return "\n".join(
        f"{one['source']} -> {one['answer']} (expected: {one['expected']})" for one in sample
    )


class TensorBoard:
    """Writes event files that TensorBoard reads: scalars, samples as text, the options.

    Each line is written at once and whole, by this thread, in the library's own format; TensorFlow
    is not needed.

    Parameters
    ----------
    run : Run
        If it is resumed, its curves go on: TensorBoard drops what was logged beyond its step.
    """

    name = "tensorboard"

    def __init__(self, run):
        self.events, summaries, texts, records = load_library(self.name)
        self.Summary, self.text_pb = summaries.Summary, texts.text_pb
        self.records = io.BytesIO()  # of a line: the file has whole lines
        self.writer = records.RecordWriter(self.records)
        self.folder, self.cut = run.folder / FOLDER, run.files.cut
        self.options, self.path = settings_of(run), None

    def begin(self):
        """Begin a file of this process; a new run removes those of the one before."""
        import socket  # no help of a command waits for it

        self.folder.mkdir(parents=True, exist_ok=True)
        if self.cut is None:
            for path in self.folder.glob(f"{EVENTS}*"):
                remove_file(path)
        name = f"{EVENTS}{time.time_ns() // 1000:016}.{socket.gethostname()}"
        self.path = self.folder / name
        self.write(0, file_version="brain.Event:2")
        if self.cut is None:
            text = "\n".join(f"    {name} = {json.dumps(x)}" for name, x in self.options.items())
            self.write(0, summary=self.text_pb("options", text))
        else:
            start = self.events.SessionLog(status=self.events.SessionLog.START)
            self.write(self.cut + 1, session_log=start)

    def write(self, step, **what):
        """Put an event among the records of this line."""
        event = self.events.Event(wall_time=time.time(), step=step, **what)
        self.writer.write(event.SerializeToString())

    def log(self, line):
        """Write a line of the metrics."""
        if self.path is None:
            self.begin()
        numbers = numbers_of(line).items()
        values = [self.Summary.Value(tag=name, simple_value=value) for name, value in numbers]
        self.write(line["step"], summary=self.Summary(value=values))
        if line.get("sample"):
            text = sample_text(line["sample"])
            block = "\n".join(f"    {row}" for row in text.split("\n"))  # Markdown for: as it is
            self.write(line["step"], summary=self.text_pb("sample", block))
        append(self.path, self.records.getvalue())
        self.records.seek(0), self.records.truncate()

    def close(self, good=True):
        """Do nothing: every line is in its file already."""


class WandB:
    """Logs to Weights & Biases: the curves go by the run's steps.

    Parameters
    ----------
    run : Run
        Its state keeps the id, under which a resumed run goes on.

    Raises
    ------
    UserError
        If it cannot begin: without a login, or without a network.
    """

    name = "wandb"

    def __init__(self, run):
        (self.wandb,) = load_library(self.name)
        known = run.state.wandb_id
        run.state.wandb_id = known or secrets.token_hex(4)
        try:
            self.run = self.wandb.init(
                project=run.train_config.wandb,
                name=run.folder.resolve().name,
                id=run.state.wandb_id,
                resume="allow" if known else None,
                dir=run.folder,
                config=settings_of(run),
                settings=self.wandb.Settings(console="off"),
            )
        except Exception as error:
            raise UserError(
                f"--wandb {run.train_config.wandb}: {one_line(error).rstrip('.')}; without a login "
                "or a network, set WANDB_MODE=offline"
            ) from None
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, line):
        """Log a line of the metrics."""
        values = {"step": line["step"], **numbers_of(line)}
        if line.get("sample"):
            text = html.escape(sample_text(line["sample"]))
            values["sample"] = self.wandb.Html(f"<pre>{text}</pre>")
        self.run.log(values)

    def close(self, good=True):
        """Say that the run is over; what has not been sent yet is sent."""
        self.run.finish(exit_code=0 if good else 1)


KINDS = {"tensorboard": TensorBoard, "wandb": WandB}


class Trackers:
    """The trackers of a run, of which each may fail.

    Parameters
    ----------
    trackers : list
    notes : list of str
        Receives what has failed.
    """

    def __init__(self, trackers, notes):
        self.trackers, self.notes = trackers, notes

    def log(self, line):
        """Give a line of the metrics to each."""
        for tracker in [*self.trackers]:
            self.attempt(tracker, lambda tracker=tracker: tracker.log(line))

    def close(self, good=True):
        """Close each."""
        for tracker in [*self.trackers]:
            self.attempt(tracker, lambda tracker=tracker: tracker.close(good))

    def attempt(self, tracker, act):
        """Do something with a tracker; where that fails, note it and leave the tracker out."""
        try:
            act()
        except Exception as error:  # a library of others fails in ways that nobody can list
            self.trackers.remove(tracker)
            why = one_line(error) or type(error).__name__
            self.notes.append(
                f"--{tracker.name}: {why}; it gets no more of this run, which goes on: {METRICS} "
                "has it all"
            )


@contextlib.contextmanager
def tracked(run):
    """Open the trackers of a run and give them its metrics, for as long as this context lasts.

    Raises
    ------
    UserError
        If one cannot begin.
    """
    opened, good = Trackers([], run.notes), False
    try:
        for name in asked_for(run.train_config):
            opened.trackers.append(KINDS[name](run))
        run.files.trackers = opened
        yield
        good = True
    finally:
        before = len(run.notes)
        opened.close(good)
        for note in run.notes[before:]:  # nobody else prints these any more
            cli.note(note)
        del run.notes[before:]
