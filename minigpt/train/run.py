"""A training run in its folder: what it is, and how it is begun, saved and taken up again."""

import dataclasses
import json
import math
import time
from pathlib import Path

from minigpt.backend import check_dtype, module, to_device, to_host
from minigpt.backend.devices import check_tf32
from minigpt.errors import UserError
from minigpt.model.checkpoint import BEST, LAST, save
from minigpt.model.models import model_of
from minigpt.optim.clipping import SCALE, SKIPPED, TAKEN
from minigpt.optim.schedule import progress
from minigpt.params import Params
from minigpt.train.config import configs
from minigpt.train.nonfinite import Skips, first_in_evaluation, first_in_step
from minigpt.train.run_dir import METRICS, check_folder, writing
from minigpt.train.step import Trainer
from minigpt.train.tasks import TASKS

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
    skips : Skips
        Steps that changed nothing, as far as they have been read.
    due : dict or None
        Between a step and its evaluation what `read` returned: its line of the metrics lacks these.
    saved : int or None
        The step of the last checkpoint of this run that --resume goes on from.
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
        self.known = 0.0, 0  # loss_sum and loss_count when they were last read and finite
        self.norm, self.lr, self.skips = 0.0, 0.0, Skips()
        self.over, self.due, self.saved = False, None, None
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
        self.known = self.loss_sum, self.loss_count
        self.skips.begin(self.trainer.progress())

    def advance(self):
        """Train a step. What came of it is known once it is read."""
        by_clock = self.progress if self.train.max_seconds else None
        loss, self.norm, self.lr = self.trainer.step(self.task.train, self.step, by_clock)
        if self.step % self.train.log_interval == 0:
            self.loss_sum, self.loss_count = self.known = 0.0, 0
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
        self.step, self.tokens = self.step + 1, self.tokens + self.trainer.count

    def read(self):
        """Read what the steps have left on the device; it waits for them.

        Losses that are not finite are left out of train_loss: on a device with all others since the
        last reading, since they come as a sum.

        Returns
        -------
        numbers : dict
            Of the last step: learning_rate, grad_norm and, in float16, what became of the loss
            scale. The norm of a step that was skipped is None.

        Raises
        ------
        UserError
            If too many steps in a row were skipped.
        """
        loss, self.norm = float(self.loss_sum), float(self.norm)
        if math.isfinite(loss):
            self.known = loss, self.loss_count
        self.loss_sum, self.loss_count = self.known
        what = self.skips.count(self.trainer.progress(), self.step, loss, self.norm)
        if what:
            raise self.diverged(what, first_in_step(self.trainer, self.task.train, self.step - 1))
        numbers = {
            "learning_rate": self.lr,
            "grad_norm": self.norm if math.isfinite(self.norm) else None,
        }
        if self.train.dtype == "float16":
            numbers |= {"loss_scale": self.skips.scale, "skipped_steps": self.skips.skipped}
        return numbers

    def diverged(self, what, first):
        """Return the UserError that ends a run: what, where it comes from, and what to do."""
        again = "train again"
        if self.saved is not None:
            again = f"go on from {self.folder / LAST} (step {self.saved}) by --resume"
        return UserError(
            f"training has diverged: {what}; the first that is not finite is {first}; {again} "
            "with a lower --learning-rate"
        )

    @property
    def progress(self):
        """The share of the run that is over: 0 to 1, at 1 it is complete."""
        if self.train.max_seconds:
            return progress(self.seconds, self.train.max_seconds, self.reserve)
        return min(self.step / self.train.max_iters, 1.0)

    @property
    def train_loss(self):
        """Mean over the steps since the last multiple of log_interval; None if none was finite."""
        return self.loss_sum / self.loss_count if self.loss_count else None

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
        if not math.isfinite(self.val_loss):
            what = f"the validation loss after step {self.step} is {self.val_loss}"
            raise self.diverged(what, first_in_evaluation(self.trainer, self.task.val))
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
            "bad": self.skips.bad,
            "optimizer": to_host(self.trainer.optimizer.state).tolist()[:SCALE],
            "over": self.over,
            "due": self.due,
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
        self.saved = self.step

    def log(self, line):
        """Add a line to the metrics."""
        with writing(self.folder / METRICS) as path, open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


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


def begun(values, overwrite):
    """Return the Run that a dict of options describes, in a folder of its own."""
    _, train = configs(values, 1)  # what is wrong with the options is said before any work
    backend_of(train)
    check_folder(Path(train.out_dir), overwrite)
    task = TASKS[train.task](train, values.get("share_embedding", False))
    config, train = configs(values, *task.sizes)
    return Run(config, dataclasses.replace(train, threads=train.cores()), task)
