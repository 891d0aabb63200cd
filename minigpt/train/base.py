"""The model that a run begins from, with --init-from: its weights, its config, its tokenizer."""

import dataclasses

import numpy as np

from minigpt.errors import UserError
from minigpt.model.checkpoint import find_checkpoint, load
from minigpt.params import Params, leaves
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
    base = load(find_checkpoint(name), np, with_optimizer=False)
    model = model_options(base.config)
    check_same_model(options, model, "--init-from", name)
    usual = {"sampler": TASKS[model["task"]].samplers[0]}
    own = {key: value for key, value in model.items() if key not in FREE}
    block_size = fitting_block_size(options["block_size"], base.config.block_size, name)
    return base, {**usual, **options, **own, "block_size": block_size}


def model_options(config):
    """Return the options that a model has been made with, and its task, as a dict."""
    return {**dataclasses.asdict(config), "task": task_of(config).name}


def check_same_model(options, model, flag, name, free=FREE):
    """Raise a UserError if an option would make another model of one that there is.

    Parameters
    ----------
    options, model : dict
        The latter as from model_options.
    flag, name : str
        Where the model comes from: --resume or --init-from, and what that names.
    free : collection of str
        Options that may become others.
    """
    for key in options.keys() & model.keys() - {*free}:
        value = options[key]
        if value != model[key] and value != AUTO.get(key, model[key]):
            raise UserError(
                f"{flag}: {key} is {model[key]} in {name}; it is part of the model and cannot "
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


def cropped(params, config):
    """Return the Params of a model for a shorter context: without its last positions.

    Rotated positions have no weights: there nothing is to be cut. nanoGPT, `crop_block_size`.

    Parameters
    ----------
    params : Params
        On the host.
    config : GPTConfig or Seq2SeqConfig
        The model's, but for dropout and a block size that is not larger.
    """
    shapes = config.shapes()
    if dict(leaves(shapes)) == dict(leaves(params.shapes)):
        return params
    whole, rest = dict(params.leaves()), Params(shapes, np, "float32")
    for name, view in rest.leaves():
        view[...] = whole[name][: len(view)]
    return rest
