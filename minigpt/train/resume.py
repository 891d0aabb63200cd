"""How a run is taken up again: from its last checkpoint, with the options given beside --resume."""

import dataclasses
from pathlib import Path

from minigpt.cli import build, one_line
from minigpt.errors import UserError
from minigpt.model.checkpoint import ELSE, LAST, load
from minigpt.optim.clipping import LARGEST, LOSS_SCALE, NORM, SCALE
from minigpt.train.config import TrainConfig, configs
from minigpt.train.presets import put_together
from minigpt.train.run import PROGRESS, Run, backend_of
from minigpt.train.run_dir import METRICS
from minigpt.train.tasks import TASKS


def folder_of(values):
    """Return the path of the run that a dict of options is of."""
    return Path(str(values.get("out_dir", TrainConfig.out_dir)))


def is_number(x):
    """Tell whether a value of JSON is a number that can be reckoned with."""
    return type(x) in (int, float) and abs(x) < 2.0**1000


def is_measured(x):
    """Tell whether a value of JSON is a number, or None in the place of one that is not finite."""
    return x is None or is_number(x)


def is_count(x):
    """Tell whether a value of JSON is an int from 0 on."""
    return type(x) is int and 0 <= x < 2**63


def is_optimizer(x):
    """Tell whether a value of JSON is the state of an optimizer."""
    return (
        isinstance(x, list)
        and SCALE <= len(x) <= NORM + 1
        and all(is_number(number) and number >= 0 for number in x[:SCALE])
        and 1 <= x[LOSS_SCALE] <= LARGEST
    )


RULES = {  # of what `Run.save` writes beside the model
    **dict.fromkeys(("step", "tokens", "loss_count", "bad"), is_count),
    "seconds": lambda x: is_number(x) and x >= 0,
    "loss_sum": is_number,
    **dict.fromkeys(("val_loss", "best_loss"), is_measured),
    "best_step": lambda x: x is None or is_count(x),
    "measures": lambda x: isinstance(x, dict) and all(map(is_number, x.values())),
    **dict.fromkeys(("text", "text_sha256"), lambda x: isinstance(x, str)),
    "over": lambda x: isinstance(x, bool),
    "due": lambda x: x is None or (x and isinstance(x, dict) and all(map(is_measured, x.values()))),
    "optimizer": is_optimizer,
    "train": lambda x: isinstance(x, dict),
}


def check_state(state, path):
    """Raise a UserError if the state in a checkpoint is not that of a run."""
    if not {*PROGRESS, "text", "text_sha256", "train"} <= state.keys():
        raise UserError(f"--resume: {path} holds a model, but not the state of its training")
    wrong = [name for name, rule in RULES.items() if name in state and not rule(state[name])]
    if (state["best_loss"] is None) != (state["best_step"] is None):
        wrong.append("best_step")
    if wrong:
        value = f"{state[wrong[0]]!r:.60}"
        raise UserError(f"--resume: {path} is damaged: its {wrong[0]} is {value}; {ELSE}")
    try:
        build(TrainConfig, state["train"])
    except UserError as error:
        raise UserError(f"--resume: {path} is damaged: {one_line(error)}; {ELSE}") from None


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
    check_state(state, path)
    if checkpoint.optimizer_arrays is None:
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
    values = put_together({**state["train"], **model}, given) | {"out_dir": str(folder)}
    return checkpoint, *configs(values, model["vocab_size"], model.get("source_vocab_size"))


def check_incomplete(state, train):
    """Raise a UserError if there is nothing left to do in a run."""
    if train.max_seconds:
        of, more = f"{train.max_seconds:g} seconds", "--max-seconds"
        before = state["train"].get("max_seconds")
        complete = before and state.get("over", False) and train.max_seconds <= before
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
    run.checkpoint, run.saved, run.skips.bad = checkpoint, run.step, state.get("bad", 0)
    run.due = state.get("due")
    if task.sha256 != state["text_sha256"]:
        if "data" not in given:
            raise UserError(
                f"--resume: the run was trained on {state['text']}, but the text is now another "
                f"({task.name}); bring the old one back, or name the new one by --data"
            )
        run.best_loss = run.best_step = None  # losses of two texts do not compare
    return run
