"""A training run in its folder: what it is, and how it is begun, saved and taken up again."""

import dataclasses
import json
import math
import time
from pathlib import Path

from minigpt import UserError
from minigpt.backend import check_dtype, module, to_device, to_host
from minigpt.backend.device import check_tf32
from minigpt.checkpoint import load, save
from minigpt.folder import BEST, LAST, METRICS, check_folder, writing
from minigpt.models import model_of
from minigpt.optim import SKIPPED, TAKEN
from minigpt.params import Params
from minigpt.recipe import TrainConfig, configs
from minigpt.schedule import progress
from minigpt.tasks import TASKS
from minigpt.trainer import Trainer

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
    reserve : float
        Seconds that the command needs beside those, as far as is known: before and after.
    loss_sum, loss_count : float, int
        Of the training losses since the last multiple of log_interval. On a device the sum stays
        there until it is read, and so does the norm.
    norm, lr : float
        Norm of the gradient, before clipping, and learning rate of the last step.
    over : bool
        Whether there is no further step: decided once a step, since the clock goes on.
    skipped : int
        Steps whose gradient was not finite when it was read, and which changed nothing.
    val_loss, measures : float or None, dict
        Of the last evaluation: nats per token, and what else the task measures.
    best_loss : float or None
        The lowest so far, at `best_step`.
    """

    def __init__(self, config, train, task):
        self.config, self.train, self.task = config, train, task
        self.folder = Path(train.out_dir)
        task.check(config)
        self.step, self.tokens, self.seconds, self.reserve = 0, 0, 0.0, 0.0
        self.evaluation_s = None
        self.loss_sum, self.loss_count = 0.0, 0
        self.val_loss, self.measures, self.best_loss, self.best_step = None, {}, None, None
        self.norm, self.lr, self.skipped = 0.0, 0.0, 0
        self.over = False
        self.checkpoint = self.trainer = None

    def start(self, workers):
        """Make the weights and the optimizer, or take them over from `checkpoint`."""
        xp, (checkpoint, self.checkpoint) = backend_of(self.train), (self.checkpoint, None)
        self.task.move(xp)
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
            optimizer.restore(optimizer_state(checkpoint.state, self.train))
            optimizer.step_count = self.step
            _, self.skipped, _ = self.trainer.progress()

    def advance(self):
        """Train a step. What came of it is known once it is read."""
        by_clock = self.progress if self.train.max_seconds else None
        loss, self.norm, self.lr = self.trainer.step(self.task.train, self.step, by_clock)
        if self.step % self.train.log_interval == 0:
            self.loss_sum, self.loss_count = 0.0, 0
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
        self.step, self.tokens = self.step + 1, self.tokens + self.trainer.count

    def read(self):
        """Read what the steps have left on the device; it waits for them.

        Returns
        -------
        numbers : dict
            Of the last step: learning_rate, grad_norm and, in float16, what became of the loss
            scale. The norm of a step that was skipped is None.

        Raises
        ------
        UserError
            If a loss is not finite, or in float32 a gradient.
        """
        self.loss_sum, self.norm = float(self.loss_sum), float(self.norm)
        self.check_finite(f"the training loss at step {self.step}", self.loss_sum)
        before, (_, self.skipped, scale) = self.skipped, self.trainer.progress()
        finite = math.isfinite(self.norm)
        numbers = {"learning_rate": self.lr, "grad_norm": self.norm if finite else None}
        if self.train.dtype == "float16":
            return {**numbers, "loss_scale": scale, "skipped_steps": self.skipped}
        norm = self.norm if self.skipped == before else math.nan  # one between two readings
        self.check_finite(f"the norm of the gradient at step {self.step}", norm)
        return numbers

    def check_finite(self, what, number):
        """Raise a UserError if a number is not finite: the weights are of no use then."""
        if not math.isfinite(number):
            last = self.folder / LAST
            again = f"go on from {last} by --resume" if last.exists() else "train again"
            raise UserError(
                f"training has diverged: {what} is {number}; {again} with a lower --learning-rate"
            )

    @property
    def progress(self):
        """The share of the run that is over: 0 to 1, at 1 it is complete."""
        if self.train.max_seconds:
            return progress(self.seconds, self.train.max_seconds, self.reserve)
        return min(self.step / self.train.max_iters, 1.0)

    @property
    def train_loss(self):
        """Mean over the steps since the last multiple of log_interval."""
        return self.loss_sum / self.loss_count

    def evaluation_seconds(self):
        """Return how long an evaluation takes: as the last one, or half as long as training."""
        if self.evaluation_s is None:
            tokens = getattr(self.task.val, "size", len(self.task.val) * self.config.block_size)
            estimate = 0.5 * tokens * self.seconds / max(self.tokens, 1)
            return min(estimate, (self.train.max_seconds or math.inf) / 8)  # steps begin slowly
        return self.evaluation_s

    def evaluate(self):
        """Take validation loss and measures, and write the best checkpoint if this is it."""
        start = time.perf_counter()
        self.val_loss = self.trainer.evaluate(self.task.val)
        self.evaluation_s = time.perf_counter() - start
        self.check_finite(f"the validation loss after step {self.step}", self.val_loss)
        self.measures = self.task.measures(self.trainer)
        if self.best_loss is None or self.val_loss < self.best_loss:
            self.best_loss, self.best_step = self.val_loss, self.step
            self.save(BEST)

    def save(self, name, optimizer=None):
        """Write a checkpoint of this moment into the run's folder."""
        self.read()
        state = {
            **{key: getattr(self, key) for key in PROGRESS},
            "train": dataclasses.asdict(self.train),
            "text": self.task.name,
            "text_sha256": self.task.sha256,
            "optimizer": to_host(self.trainer.optimizer.state).tolist(),
            "over": self.over,
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


def backend_of(train):
    """Return the array module of a run, or raise a UserError if it cannot train as is asked."""
    xp = module(train.backend)
    check_dtype(train.dtype, xp)
    if train.tf32:
        check_tf32(xp)
    return xp


def optimizer_state(state, train):
    """Return what AdamW.restore takes, from the state in a checkpoint.

    A loss scale is of use to the precision that it was found in.
    """
    numbers = dict(enumerate(state.get("optimizer", ()))) or {TAKEN: state["step"], SKIPPED: 0}
    if state["train"].get("dtype") == train.dtype:
        return numbers
    return {place: numbers[place] for place in (TAKEN, SKIPPED)}


def folder_of(values):
    """Return the path of the run that a dict of options is of."""
    return Path(str(values.get("out_dir", TrainConfig.out_dir)))


def begun(values, overwrite):
    """Return the Run that a dict of options describes, in a folder of its own."""
    _, train = configs(values, 1)  # what is wrong with the options is said before any work
    backend_of(train)
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
    folder = folder_of(given)
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
    used = state["train"].get("optimizer", "adamw")
    if given.get("optimizer", used) != used:
        raise UserError(
            f"--resume: optimizer is {used} in {folder}; its state is of no use to another"
        )
    values = {**state["train"], **model, **given, "out_dir": str(folder)}
    return checkpoint, *configs(values, model["vocab_size"], model.get("source_vocab_size"))


def check_incomplete(state, train):
    """Raise a UserError if there is nothing left to do in a run."""
    if train.max_seconds:
        of, more = f"{train.max_seconds:g} seconds", "--max-seconds"
        before = state["train"].get("max_seconds") or math.inf
        complete = state.get("over", False) and train.max_seconds <= before
    else:
        of, more = f"{state['step']} of {train.max_iters} steps", "--max-iters"
        complete = state["step"] >= train.max_iters
    if complete:
        raise UserError(
            f"--resume: the run in {train.out_dir} is complete, with {of}; give a larger {more} "
            "to go on"
        )


def resumed(given):
    """Return the Run in --out-dir as it was saved, with the options given beside --resume."""
    checkpoint, config, train = stored(given)
    state = checkpoint.state
    check_incomplete(state, train)
    backend_of(train)
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
