"""The model that a run begins from, with --init-from: its weights, its config, its tokenizer."""

import dataclasses
import os
from pathlib import Path

from minigpt.errors import UserError
from minigpt.interchange.loading import open_on_host
from minigpt.model.base import base_params
from minigpt.model.lora import Base, weights_sha256
from minigpt.sample.prompt import PUT_TOKENIZER
from minigpt.sample.tasks import TASKS, task_of
from minigpt.train.config import AUTO, AtLeast, Within

FREE = ("dropout", "block_size")  # what of a model may become another


def open_base(options):
    """Read the model that a new run begins from, and put its config among the options.

    Parameters
    ----------
    options : dict
        Of the run. Of a model they hold what was given, and dropout and block size.

    Returns
    -------
    base : Checkpoint or None
        On the host, without an optimizer's moments; None where the run begins anew.
    options : dict
        Those of the run, with the model's.

    Raises
    ------
    UserError
        If there is no such model, or if an option contradicts it.
    """
    name = options.get("init_from")
    if name is None:
        return None, options
    if options.get("tokenizer") is not None:
        raise UserError(f"--init-from: {name} has a tokenizer of its own: leave out --tokenizer")
    base = open_on_host(name)
    if base.tokenizer is None:
        raise UserError(f"--init-from: {name} has no tokenizer; {PUT_TOKENIZER}")
    model = model_options(base.config)
    check_same_model(options, model, "--init-from", name)
    usual = {"sampler": TASKS[model["task"]].samplers[0]}
    own = {key: value for key, value in model.items() if key not in FREE}
    block_size = fitting_block_size(options["block_size"], base.config.block_size, name)
    return base, {**usual, **options, **own, "block_size": block_size}


def model_options(config):
    """Return the options that a model has been made with, and its task, as a dict."""
    return {**dataclasses.asdict(config), "task": task_of(config).name}


def check_same_model(options, model, flag, name, free=FREE, what="model"):
    """Raise a UserError if an option would make another model of one that there is.

    Parameters
    ----------
    options, model : dict
        The latter as from model_options.
    flag, name : str
        Where the model comes from: --resume or --init-from, and what that names.
    free : collection of str
        Options that may become others.
    what : str
        What they are part of.
    """
    for key in options.keys() & model.keys() - {*free}:
        value = options[key]
        if value != model[key] and value != AUTO.get(key, model[key]):
            raise UserError(
                f"{flag}: {key} is {model[key]} in {name}; it is part of the {what} and cannot "
                f"become {value}: leave it out"
            )


def fitting_block_size(asked, most, name):
    """Return the block size of a run: that of a preset is at most the model's.

    Raises
    ------
    UserError
        If more was asked for.
    """
    if isinstance(asked, AtLeast):
        return Within(asked, most)
    if asked > most:
        raise UserError(
            f"--init-from: block_size is {most} in {name} and can only become smaller, not "
            f"{asked}: leave it out, or give at most {most}"
        )
    return asked


def base_of(train_config, checkpoint):
    """Return the Base of the model that a new run adapts; None where all weights are trained.

    Raises
    ------
    UserError
        If the adapter would take the model's place.
    """
    name, out_dir = train_config.init_from, Path(train_config.out_dir)
    if train_config.lora is None:
        return None
    if out_dir.resolve() in (Path(name).resolve(), Path(name).resolve().parent):
        raise UserError(
            f"--init-from: {name} is in {out_dir}, where the adapter would take its place, and an "
            "adapter is of no use without its model; give another --out-dir"
        )
    return Base(name, place_given(name), weights_sha256(checkpoint.params))


def same_base(checkpoint, given, path):
    """Return the model that an adapter is of, to train on: (Checkpoint, Base), or (None, None).

    Parameters
    ----------
    checkpoint : Checkpoint
        Of the run that is resumed.
    given : dict
        Of the options beside --resume: init_from is another place of the same model.
    path : path
        Of the checkpoint, for errors.
    """
    base, name = checkpoint.base, given.get("init_from")
    if base is None:
        return None, None
    if name is not None:
        base = Base(name, place_given(name), base.sha256)
    params = base_params(base, checkpoint.config, path, open_on_host)
    return checkpoint._replace(params=params), base


def place_given(name):
    """Return the current folder if a model's name is relative to it; "" of others."""
    return os.getcwd() if os.path.exists(name) and not os.path.isabs(name) else ""
