"""A training run in its folder: what it is, and how it is begun, saved and taken up again."""

import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path

from minigpt import UserError
from minigpt.backend import module, to_device
from minigpt.checkpoint import load, save
from minigpt.models import model_of
from minigpt.params import Params
from minigpt.recipe import TrainConfig, configs
from minigpt.tasks import TASKS
from minigpt.trainer import Trainer

METRICS, BEST, LAST, PICTURE = "metrics.jsonl", "best.safetensors", "last.safetensors", "loss.png"
FILES = (METRICS, BEST, LAST, PICTURE)
PROGRESS = (
    *("step", "tokens", "seconds", "loss_sum", "loss_count"),
    *("val_loss", "measures", "best_loss", "best_step"),
)


class Run:
    """A run in its folder: what is trained, on what, and how far it has come.

    Attributes
    ----------
    step, tokens : int
        Steps done, tokens seen.
    seconds : float
        Spent on them, evaluations included, over all resumptions.
    loss_sum, loss_count : float, int
        Of the training losses since the last multiple of log_interval.
    val_loss, measures : float or None, dict
        Of the last evaluation: nats per token, and what else the task measures.
    best_loss : float or None
        The lowest so far, at `best_step`.
    """

    def __init__(self, config, train, task):
        self.config, self.train, self.task = config, train, task
        self.folder = Path(train.out_dir)
        task.check(config)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.loss_sum, self.loss_count = 0.0, 0
        self.val_loss, self.measures, self.best_loss, self.best_step = None, {}, None, None
        self.checkpoint = self.trainer = None

    def start(self, workers):
        """Make the weights and the optimizer, or take them over from `checkpoint`."""
        xp, (checkpoint, self.checkpoint) = module(self.train.backend), (self.checkpoint, None)
        if checkpoint is None:
            params = model_of(self.config).init_params(self.config, self.train.seed, xp)
        else:
            params = checkpoint.params
            params = Params(params.shapes, xp, "float32", to_device(params.flat, xp))
        self.trainer = Trainer(params, self.config, self.train, xp, workers)
        if checkpoint is not None:
            optimizer = self.trainer.optimizer
            for name, moment in checkpoint.optimizer_arrays.items():
                getattr(optimizer, name).flat[...] = to_device(moment.flat, xp)
            optimizer.step_count = self.step

    def advance(self):
        """Train a step.

        Returns
        -------
        numbers : {"learning_rate": float, "grad_norm": float}

        Raises
        ------
        UserError
            If the loss or the gradient is not finite.
        """
        loss, norm, lr = self.trainer.step(self.task.train, self.step)
        self.check_finite(f"the loss of step {self.step + 1}", loss)
        self.check_finite(f"the norm of the gradient of step {self.step + 1}", norm)
        if self.step % self.train.log_interval == 0:
            self.loss_sum, self.loss_count = 0.0, 0
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
        self.step, self.tokens = self.step + 1, self.tokens + self.trainer.count
        return {"learning_rate": lr, "grad_norm": norm}

    def check_finite(self, what, number):
        """Raise a UserError if a number is not finite: the weights are of no use then."""
        if not math.isfinite(number):
            last = self.folder / LAST
            again = f"go on from {last} by --resume" if last.exists() else "train again"
            raise UserError(
                f"training has diverged: {what} is {number}; {again} with a lower --learning-rate"
            )

    @property
    def train_loss(self):
        """Mean over the steps since the last multiple of log_interval."""
        return self.loss_sum / self.loss_count

    def evaluate(self):
        """Take validation loss and measures, and write the best checkpoint if this is it."""
        self.val_loss = self.trainer.evaluate(self.task.val)
        self.check_finite(f"the validation loss after step {self.step}", self.val_loss)
        self.measures = self.task.measures(self.trainer)
        if self.best_loss is None or self.val_loss < self.best_loss:
            self.best_loss, self.best_step = self.val_loss, self.step
            self.save(BEST)

    def save(self, name, optimizer=None):
        """Write a checkpoint of this moment into the run's folder."""
        state = {
            **{key: getattr(self, key) for key in PROGRESS},
            "train": dataclasses.asdict(self.train),
            "text": self.task.name,
            "text_sha256": self.task.sha256,
        }
        save(
            self.folder / name,
            self.trainer.params,
            self.config,
            tokenizer=self.task.tokenizer,
            state=state,
            optimizer=optimizer,
        )

    def save_last(self):
        """Write the checkpoint that --resume goes on from."""
        self.save(LAST, self.trainer.optimizer)

    def log(self, line):
        """Add a line to the metrics."""
        with writing(self.folder / METRICS) as path, open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def writing(path):
    """Make a UserError of what goes wrong while `path` is written."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_folder(folder, overwrite):
    """Raise a UserError if a new run cannot have the folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out-dir {folder} is a file; name a folder")
    if any((folder / name).exists() for name in FILES) and not overwrite:
        resume = "go on with it by --resume, " if (folder / LAST).exists() else ""
        raise UserError(
            f"--out-dir {folder} holds another run: {resume}lose it by --overwrite, or name "
            "another folder"
        )


def clear_folder(folder):
    """Make the folder of a new run, or empty it of an old one."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


def cut_metrics(path, step):
    """Cut from a resumed run's metrics what came after `step`, and half-written lines."""
    lines = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = []
    for line in lines.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    with writing(path):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)


def begun(values, overwrite):
    """Return the Run that a dict of options describes, in a folder of its own."""
    _, train = configs(values, 1)  # what is wrong with the options is said before any work
    module(train.backend)
    check_folder(Path(train.out_dir), overwrite)
    task = TASKS[train.task](train, values.get("share_embedding", False))
    config, train = configs(values, *task.sizes)
    return Run(config, dataclasses.replace(train, threads=train.cores()), task)


def stored(given):
    """Return (checkpoint, config of the model, TrainConfig) of the run in --out-dir.

    Parameters
    ----------
    given : dict
        The options beside --resume. They win over those of the run.

    Raises
    ------
    UserError
        If there is nothing to go on from, or if one of them would make another model of it.
    """
    folder = Path(str(given.get("out_dir", TrainConfig.out_dir)))
    path = folder / LAST
    if not path.exists():
        begin = "give --overwrite" if (folder / METRICS).exists() else "leave out --resume"
        raise UserError(f"--resume: there is no {path} to go on from; {begin} to begin")
    checkpoint = load(path)
    model, state = dataclasses.asdict(checkpoint.config), checkpoint.state
    known = isinstance(state.get("train"), dict) and {*PROGRESS, "text_sha256"} <= state.keys()
    if checkpoint.optimizer_arrays is None or not known:
        raise UserError(f"--resume: {path} holds a model, but not the state of its training")
    model["task"] = state["train"].get("task", TrainConfig.task)
    for name, value in given.items():
        if name in model and name != "dropout" and value != model[name]:
            raise UserError(
                f"--resume: {name} is {model[name]} in {folder}; it is part of the model and "
                f"cannot become {value}: leave it out"
            )
    values = {**state["train"], **model, **given, "out_dir": str(folder)}
    return checkpoint, *configs(values, model["vocab_size"], model.get("source_vocab_size"))


def resumed(given):
    """Return the Run in --out-dir as it was saved, with the options given beside --resume."""
    checkpoint, config, train = stored(given)
    state = checkpoint.state
    if state["step"] >= train.max_iters:
        raise UserError(
            f"--resume: the run in {train.out_dir} is complete, with {state['step']} of "
            f"{train.max_iters} steps; give a larger --max-iters to go on"
        )
    module(train.backend)
    try:
        task = TASKS[train.task](train, tokenizer=checkpoint.tokenizer, name=state["text"])
        run = Run(config, train, task)
    except UserError as error:
        raise UserError(f"--resume: the run was trained on {state['text']}, but {error}") from None
    for key in PROGRESS:
        setattr(run, key, state[key])
    run.checkpoint = checkpoint
    if task.sha256 != state["text_sha256"]:
        if "data" not in given:
            raise UserError(
                f"--resume: the run was trained on {state['text']}, but the text is now another "
                f"({task.name}); bring the old one back, or name the new one by --data"
            )
        run.best_loss = run.best_step = None  # losses of two texts do not compare
    return run
