"""The model that an adapter is of: found again, checked, and merged with it."""

import os

from minigpt.backend import array_module
from minigpt.errors import UserError
from minigpt.model.checkpoint import load, moved
from minigpt.model.lora import merge, weights_sha256
from minigpt.params import Params, leaves


def load_plain(path, xp, open_model):
    """Read a checkpoint for whatever does not train on: an adapter is merged into its base.

    Parameters
    ----------
    path : str or path
    xp : module
        numpy or cupy: where the arrays go.
    open_model : callable
        open_model(name) returns the Checkpoint of a base, on the host.

    Returns
    -------
    checkpoint : Checkpoint
        Without an optimizer's moments.

    Raises
    ------
    UserError
        As `load`; or if the base is not to be found, or another than it was.
    """
    checkpoint = load(path, xp, with_optimizer=False)
    if checkpoint.lora is None:
        return checkpoint
    base = base_params(checkpoint.base, checkpoint.config, path, open_model)
    params = merge(moved(base, xp), checkpoint.params, checkpoint.lora)
    return checkpoint._replace(params=params, lora=None, base=None, adapter=checkpoint)


def base_params(base, config, path, open_model):
    """Return the weights that an adapter is of, as Params on the host.

    Parameters
    ----------
    base : Base
    config : GPTConfig
        The adapter's, whose context may be shorter than the base's.
    path : str or path
        Of the adapter, for errors.
    open_model : callable
        As of load_plain.

    Raises
    ------
    UserError
        If the base is not to be found, or if its weights are others than they were.
    """
    try:
        found = open_model(place_of(base)).params
    except UserError as error:
        raise UserError(f"{path} is an adapter, and its base cannot be read: {error}") from None
    sha256 = weights_sha256(found)
    if sha256 != base.sha256:
        raise UserError(
            f"{path} is an adapter of {base.name}, but that has other weights now (SHA-256 "
            f"{sha256[:12]}..., not {base.sha256[:12]}...); bring the old ones back"
        )
    return cropped(found, config)


def place_of(base):
    """Return what a base can be opened by: its name, or its place in the folder it was given in."""
    path = os.path.join(base.folder, base.name)
    return path if base.folder and os.path.exists(path) else base.name


def cropped(params, config):
    """Return the Params of a model for a shorter context: without its last positions.

    Rotated positions have no weights: there nothing is to be cut. nanoGPT, `crop_block_size`.

    Parameters
    ----------
    params : Params
    config : GPTConfig or Seq2SeqConfig
        The model's, but for dropout and a block size that is not larger.
    """
    shapes = config.shapes()
    if dict(leaves(shapes)) == dict(leaves(params.shapes)):
        return params
    whole, rest = dict(params.leaves()), Params(shapes, array_module(params.flat), "float32")
    for name, view in rest.leaves():
        view[...] = whole[name][: len(view)]
    return rest
