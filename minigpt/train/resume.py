"""How a run is resumed: from its last checkpoint, with the options given beside --resume."""

import contextlib
import dataclasses
import time
from pathlib import Path

from minigpt.cli import fields_of, one_line
from minigpt.data.sources import locate
from minigpt.errors import UserError
from minigpt.files import BEST, LAST, METRICS
from minigpt.model.checkpoint import ELSE, data_of, load, read_state
from minigpt.optim.schedule import learning_rate
from minigpt.sample.tasks import TASKS
from minigpt.train.base import check_same_model, model_options, same_base
from minigpt.train.config import SCHEDULE, SIZES, TrainConfig, check_together, resolve
from minigpt.train.input import folder_given, keep_pipe
from minigpt.train.limits import Limits, describe_passes
from minigpt.train.presets import put_together
from minigpt.train.ranks import ALONE, RankFailed
from minigpt.train.run import Run, backend_of
from minigpt.train.state import RunState, taken_ahead
from minigpt.train.trackers import check_trackers

ADAPTER = "lora_rank", "lora_alpha", "lora_targets", "lora_rslora"  # options that make one


def folder_of(options):
    """Return the path of the run that a dict of options is of."""
    out_dir = fields_of(TrainConfig)["out_dir"]
    name = out_dir.check(options.get("out_dir", out_dir.default), "out_dir")
    if not name:
        raise UserError("out_dir is empty; name a folder, such as '.' for this one")
    return Path(name)


def state_of(checkpoint, path):
    """Return the RunState in a checkpoint, or raise a UserError."""
    if RunState.missing(checkpoint.state) or checkpoint.optimizer_arrays is None:
        raise UserError(f"--resume: {path} holds a model, but not the state of its training")
    try:
        return RunState.build(checkpoint.state)
    except UserError as error:
        raise UserError(f"--resume: {path} is damaged: {one_line(error)}; {ELSE}") from None


def stored_run(given):
    """Return (checkpoint, RunState, model config, TrainConfig) of the run in --out-dir.

    Parameters
    ----------
    given : dict
        The options beside --resume. They win over those of the run.

    Raises
    ------
    UserError
        If there is nothing to resume, or if an option would make another model of it.
    """
    folder = folder_of(given)
    path = folder / LAST
    if not path.exists():
        begin = "give --overwrite" if (folder / METRICS).exists() else "leave out --resume"
        raise UserError(f"--resume: there is no {path} to resume from; {begin} to begin")
    checkpoint = load(path)
    state = state_of(checkpoint, path)
    model = model_options(checkpoint.config)
    check_same_model(given, model, "--resume", folder, free={"dropout"})
    begun = state.train.get("init_from")
    if given.get("init_from", begun) != begun and checkpoint.lora is None:
        raise UserError(
            f"--resume: the run in {folder} goes on from its own weights: leave out --init-from"
        )
    named = state.train.get("tokenizer") or "char"
    if (given.get("tokenizer") or named) != named:
        raise UserError(
            f"--resume: tokenizer is {named} in {folder}; the model knows no other's tokens: leave "
            "it out"
        )
    adapter = {name: state.train.get(name, getattr(TrainConfig, name)) for name in ADAPTER}
    check_same_model(given, adapter, "--resume", folder, free=(), what="adapter")
    used = state.train.get("optimizer", "adamw")
    if given.get("optimizer", used) != used:
        raise UserError(
            f"--resume: optimizer is {used} in {folder}; its state cannot be converted to "
            f"{given['optimizer']}: leave it out"
        )
    kept = {"warmup_iters": state.train["warmup_iters"]}  # over, or under way
    options = put_together({**state.train, **model}, kept | given) | {"out_dir": str(folder)}
    sizes = {name: model[name] for name in SIZES if name in model}
    config, train_config = resolve(options, sizes)
    if SCHEDULE & given.keys() - {"max_iters"}:
        check_together(train_config)
    return checkpoint, state, config, train_config


def limits_of(state, train_config, given=()):
    """Return the Limits of a run that goes on as `train_config` says, on the data that it had.

    If the options `given` beside --resume name others, nobody knows yet how much a pass is.
    """
    data_rows = None if "data" in given else state.data_rows
    return Limits(train_config, data_rows, taken_ahead(state, train_config)[1])


def limits_before(state):
    """Return the Limits of a run as it was saved."""
    return limits_of(state, dataclasses.replace(TrainConfig(), **state.train))


class Complete(UserError):
    """There is nothing left to do in a run."""


def check_incomplete(state, train_config, before, limits):
    """Raise Complete if there is nothing left to do in a run.

    Parameters
    ----------
    state : RunState
    train_config : TrainConfig
    before, limits : Limits
        Of the run as it was saved, and as it is to go on.

    Returns
    -------
    over : bool
        Whether an evaluation alone is left.
    """
    no_more_time = before.seconds and limits.seconds and limits.seconds <= before.seconds
    if limits.used_up(state.step) and limits.by_steps:
        done, more = f"is at step {state.step} of {limits.steps}", "--max-iters"
    elif limits.used_up(state.step):
        done, more = f"has made its {describe_passes(limits.passes)}", "--max-passes"
    elif no_more_time and state.over and not before.used_up(state.step):
        done = f"has used {state.seconds:.1f} s of its {limits.seconds:g} s"
        more = "--max-seconds"
    else:
        return False
    if state.due:
        return True
    raise Complete(
        f"--resume: the run in {train_config.out_dir} is complete: it {done}; give a larger "
        f"{more} to train on"
    )


def resume_run(given, ranks=ALONE):
    """Return the Run in --out-dir as it was saved, with the options given beside --resume."""
    began = time.perf_counter()
    checkpoint, state, config, train_config = stored_run(given)
    before = limits_before(state)
    check_incomplete(state, train_config, before, limits_of(state, train_config, given))
    ranks.use(train_config.backend)
    backend_of(train_config)
    ranks.first(lambda: check_trackers(train_config))
    base = same_base(checkpoint, given, Path(train_config.out_dir) / LAST)
    trained_on, sha256 = state.data_name, state.data_sha256
    try:
        found = given_or_found(given, train_config, state, ranks)
        with found as (train_config, name, file):
            options = {**dataclasses.asdict(train_config), "data": name}
            task = TASKS[train_config.task]
            data = task.open_data(options, checkpoint.tokenizer, trained_on, state.split)
            asked = state.train["eval_tokens"]
            same_losses = (data.sha256, train_config.eval_tokens) == (sha256, asked)
            if not same_losses:  # the part of the split that evaluations take is chosen anew
                state.eval_targets = None
            run = Run(config, train_config, data, state, checkpoint, began, *base, ranks)
            state.over = check_incomplete(state, train_config, before, run.limits)
            run.files.kept = file
    except (Complete, RankFailed):
        raise
    except UserError as error:
        raise UserError(f"--resume: the run was trained on {trained_on}, but {error}") from None
    if data.sha256 != sha256:
        if "data" not in given:
            raise UserError(
                f"--resume: the run was trained on {trained_on}, but the text is now another "
                f"({data.name}); bring the old one back, or name the new one by --data"
            )
        run.notes.append(f"trained on {trained_on} so far, and on {data.name} from here on")
        state.data_name, state.data_sha256 = data.name, data.sha256
        state.val_loss, state.measures = None, {}
    run.notes += compare_best(run, same_losses)
    run.notes += compare_rates(state, train_config, before, run.limits)
    return run


@contextlib.contextmanager
def given_or_found(given, train_config, state, ranks):
    """Find the data of a run that is resumed.

    Yields
    ------
    train_config : TrainConfig
        With a file's name in place of a pipe's.
    name : str or None
        What to open.
    file : KeptFile or None
    """
    if "data" not in given:
        name = locate(train_config.data, state.data_folder, train_config.out_dir)
        yield train_config, name, None
        return
    with keep_pipe(train_config, ranks) as (name, file):
        state.data_folder = folder_given(name)
        yield dataclasses.replace(train_config, data=name), name, file


def compare_best(run, same_losses):
    """Take the record of the best evaluation from the file that has its weights; return notes.

    There is none where the file is gone, as where only the last checkpoint was copied, or where its
    loss is of another text or of another part of the split: it would not compare.

    Parameters
    ----------
    run : Run
    same_losses : bool
        Whether further losses are of the text, and of the part of its split, of those before.
    """
    state, best, whole = run.state, run.folder / BEST, run.validation.targets
    found = read_state(best) if best.exists() else {}
    losses = (state.data_sha256, state.eval_targets or whole)
    same = same_losses and losses == (data_of(found), found.get("eval_targets") or whole)
    before = state.best_step
    state.best_loss, state.best_step = None, None
    if same and found.get("val_loss") is not None:
        state.best_loss, state.best_step = found["val_loss"], found["step"]
    if before is None or state.best_step is not None:
        return []
    why = "is of other data or another evaluation" if best.exists() else "is missing"
    return [f"{best} {why}: the next evaluation begins a new record"]


def compare_rates(state, train_config, before, limits):
    """Return a note where the learning rate rises because a run has become longer: from its Limits
    `before` to its `limits`.
    """
    step = state.step
    if before.seconds or limits.seconds or not step:
        return []
    config = dataclasses.replace(TrainConfig(), **state.train)
    last = learning_rate(step - 1, config, before.schedule(step - 1))
    first = learning_rate(step, train_config, limits.schedule(step))
    if first <= 1.5 * last or step <= train_config.warmup_iters:
        return []
    end = train_config.lr_decay_iters if limits.by_steps else limits.steps
    return [
        f"the learning rate goes up again, from {last:.2g} to {first:.2g}: its decay now ends at "
        f"step {end:,}"
    ]
