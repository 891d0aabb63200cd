"""The state of a run: what --resume needs beside the weights and the optimizer's moments."""

import dataclasses
import math

from minigpt import cli
from minigpt.cli import aliases
from minigpt.data.pairs import SPLITS
from minigpt.errors import UserError
from minigpt.optim.clipping import (
    GRAD_NORM,
    GRAD_SCALE,
    LOSS_SCALE,
    MAX_LOSS_SCALE,
    SKIPPED,
    STEPS,
)
from minigpt.train.config import TrainConfig
from minigpt.train.input import folder_given

COUNTS = "step", "tokens", "loss_count", "best_step", "skips_in_a_row"
COUNTS += "eval_targets", "data_rows"
NUMBERS = "seconds", "loss_sum", "val_loss", "best_loss"
RENAMED = {"text": "data_name", "text_sha256": "data_sha256", "bad": "skips_in_a_row"}


@dataclasses.dataclass
class RunState:
    """How far a run has come.

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
    best_loss, best_step : float or None, int or None
        The lowest validation loss so far, and its step.
    train : dict
        The TrainConfig.
    data_name, data_sha256 : str
        What the run is trained on.
    data_rows : int or None
        As of train/limits.Limits; None in older checkpoints.
    data_folder : str
        Where option data was given, if it has a relative name; else "".
    skips_in_a_row : int
        Steps that were skipped since the last one that was taken.
    optimizer : list of float
        The first numbers of the optimizer's own state; see optim/clipping.py.
    over : bool
        Whether there is no further step.
    due : dict or None
        Between a step and its evaluation the numbers of that step, which the metrics still lack.
    split : str
        How the data are split: an attribute of the data set. Older runs have none.
    ahead : list of int
        Batches and rows that were taken beyond those of `step` steps of the present size.
    eval_targets : int or None
        How many targets of the validation split evaluations take, which is all where they take it
        whole; None before the first, and in older checkpoints, whose evaluations took it whole.
    wandb_id : str or None
        Under which Weights & Biases knows the run; None where it does not.
    """

    step: int
    tokens: int
    seconds: float
    loss_sum: float
    loss_count: int
    val_loss: float | None
    measures: dict
    best_loss: float | None
    best_step: int | None
    train: dict
    data_name: str
    data_sha256: str
    data_folder: str = ""
    skips_in_a_row: int = 0
    optimizer: list = dataclasses.field(default_factory=list)
    over: bool = False
    due: dict | None = None
    split: str = "position"
    ahead: list = dataclasses.field(default_factory=lambda: [0, 0])
    eval_targets: int | None = None
    wandb_id: str | None = None
    data_rows: int | None = None

    def __post_init__(self):
        checks = {
            **{name: is_count(getattr(self, name)) for name in COUNTS},
            **{name: is_number(getattr(self, name)) for name in NUMBERS},
            "seconds": is_number(self.seconds) and self.seconds >= 0,
            "measures": all(map(is_number, self.measures.values())),
            "split": self.split in SPLITS,
            "due": self.due is None or (self.due and all(map(is_number, self.due.values()))),
            "optimizer": not self.optimizer or is_optimizer(self.optimizer),
            "ahead": len(self.ahead) == 2 and all(type(n) is int for n in self.ahead),
            "best_step": is_count(self.best_step)
            and (self.best_loss is None) == (self.best_step is None),
        }
        for name, good in checks.items():
            if not good:
                raise UserError(f"its {name} is {getattr(self, name)!r:.60}")

    @classmethod
    def of(cls, train_config, data):
        """Return the state of a run that has not begun."""
        train = dataclasses.asdict(train_config)
        begun = 0, 0, 0.0, 0.0, 0, None, {}, None, None
        place = folder_given(train_config.data)
        return cls(*begun, train, data.name, data.sha256, place, split=data.split)

    @classmethod
    def build(cls, fields):
        """Return the state in a checkpoint, checked.

        Raises
        ------
        UserError
            If a field is missing, unknown, of another type or not possible.
        """
        fields = {RENAMED.get(name, name): value for name, value in fields.items()}
        state = cli.build(cls, fields)
        state.train = aliases.stored(state.train, cli.fields_of(TrainConfig))
        cli.build(TrainConfig, state.train)
        return state

    @classmethod
    def missing(cls, fields):
        """Return the names of required fields that a dict lacks."""
        known = {RENAMED.get(name, name) for name in fields}
        made = (dataclasses.MISSING, dataclasses.MISSING)
        fields = dataclasses.fields(cls)
        return {f.name for f in fields if (f.default, f.default_factory) == made} - known


def is_number(x):
    """Tell whether a value of JSON is a number that can be computed with, or None."""
    return x is None or (type(x) in (int, float) and abs(x) < 2.0**1000)


def is_count(x):
    """Tell whether a value of JSON is an int from 0 on, or None."""
    return x is None or (type(x) is int and 0 <= x < 2**63)


def is_optimizer(x):
    """Tell whether a list is the state of an optimizer."""
    first = x[:GRAD_SCALE]
    return (
        GRAD_SCALE <= len(x) <= GRAD_NORM + 1
        and all(number is not None and is_number(number) and number >= 0 for number in first)
        and 1 <= x[LOSS_SCALE] <= MAX_LOSS_SCALE
    )


def taken_ahead(state, train_config):
    """Return RunState.ahead for a run that goes on as `train_config` says: its data go on, too."""
    batches, rows = state.ahead
    before = state.train["gradient_accumulation_steps"], state.train["batch_size"]
    after = train_config.gradient_accumulation_steps, train_config.batch_size
    batches += state.step * (before[0] - after[0])
    rows += state.step * (math.prod(before) - math.prod(after))
    return [batches, rows]


def optimizer_numbers(state, train_config):
    """Return what AdamW.restore takes, from the state of a run.

    A loss scale is of use to the precision that it was found in: state.train has it, until
    `Run.start` is over.
    """
    numbers = dict(enumerate(state.optimizer)) or {STEPS: state.step, SKIPPED: 0}
    if state.train.get("dtype") == train_config.dtype:
        return numbers
    return {place: numbers[place] for place in (STEPS, SKIPPED)}
