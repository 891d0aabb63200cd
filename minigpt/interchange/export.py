"""Models for transformers: the folder that `AutoModelForCausalLM.from_pretrained` reads.

    config.json             the architecture: GPT-2's, or Starcoder2's where positions are rotary
    model.safetensors       the weights, float32
    tokenizer.json, tokenizer_config.json
    README.md               the model card

No architecture of transformers has all that a GPT may have here. What GPT-2 and Starcoder2 can
express exactly is rewritten for them: biases that are missing become zeros, a head's bias moves
into the last layernorm, tokens that stand for padding are cut off. The rest is refused.
"""

import dataclasses
import errno
import json
import os
import secrets
import shutil
from pathlib import Path

import numpy as np

from minigpt.errors import UserError
from minigpt.files import (
    READ_ONLY,
    TEMPORARY,
    make_folder,
    marked_read_only,
    remove_file,
    write_atomically,
    writing,
)
from minigpt.interchange.architectures import architecture_for, flattened, full_name
from minigpt.interchange.card import NOTHING, card
from minigpt.interchange.tokenizer_files import tokenizer_files
from minigpt.model.checkpoint import header, on_host
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.params import leaves

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
METADATA = {"format": "pt"}  # transformers 4 takes no other value
CHANGE = 1e-4  # of a logit, at most, where the bias of a head moves
STALE = (  # what would be read beside, or in place of, the files of an export; config.json first,
    # without which a folder that is only half replaced is no model
    CONFIG,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
)


def export(folder, params, config, tokenizer=None, facts=NOTHING, force=False):
    """Write a model as a folder for transformers, whole or not at all.

    Parameters
    ----------
    folder : str or path
        Made if it is missing.
    params : Params
        float32, on any backend.
    config : GPTConfig
    tokenizer : Tokenizer, optional
        Without one the folder is for ids alone.
    facts : Facts
        What the model card says of the training.
    force : bool
        Whether a folder that is not empty is taken. Files of the same names are replaced, as are
        those that would be read in place of the new ones; others stay.

    Returns
    -------
    architecture : str
        The name of the class in transformers.

    Raises
    ------
    UserError
        If the model has no counterpart in transformers, naming the flag that is in the way; if
        the folder is not empty or cannot be written; or if a weight is not finite.
    """
    check_folder(folder, force)
    check_exportable(config)
    V = tokenizer.vocab_size if tokenizer else config.vocab_size
    tensors, plain = completed(params, config, V)
    special = tokenizer.end_of_text if tokenizer else None
    architecture = architecture_for(config)
    described = architecture.describe(plain, special)
    renamed = {
        full_name(architecture, name): flattened(x)
        for name, x in architecture.views(tensors, plain).items()
    }
    name = os.path.basename(os.path.realpath(folder))
    files = {
        CONFIG: [as_json(described)],
        WEIGHTS: weights_file(renamed),
        **{name: [as_json(of)] for name, of in tokenizer_files(tokenizer, config).items()},
        CARD: [card(name, described, config, tokenizer, facts).encode()],
    }
    write_folder(folder, files)
    return described["architectures"][0]


def as_json(value):
    """Return a value as the bytes of a JSON file; a text is one already."""
    if isinstance(value, str):
        return value.encode()
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def check_exportable(config):
    """Raise a UserError if no architecture of transformers is like that of a model."""
    if isinstance(config, Seq2SeqConfig):
        raise UserError(
            "this model is an encoder-decoder, which has no counterpart in transformers; what can "
            "be exported is a GPT: train with --task text"
        )
    if config.bigram:
        raise UserError(
            "this model has a bigram embedding, which has no counterpart in transformers; train "
            "with --no-bigram (the preset quick has it on)"
        )


def completed(params, config, V):
    """Return a model's tensors as GPT-2 has them: every bias is there, but for the head's.

    Parameters
    ----------
    params : Params
    config : GPTConfig
    V : int
        How many of its tokens stand for something; the rest of the vocabulary is padding.

    Returns
    -------
    tensors : {dotted name: float32 array}
        Where nothing changes, views on the parameters.
    config : GPTConfig
        Of these tensors.
    """
    found = dict(on_host(params).leaves())
    bad = [name for name, x in found.items() if not np.isfinite(x).all()]
    if bad:
        raise UserError(f"{bad[0]} holds numbers that are not finite: nothing was exported")
    config = dataclasses.replace(config, vocab_size=V, bias=True, qkv_bias=True, head_bias=False)
    tensors = {
        name: found[name][: shape[0]] if name in found else np.zeros(shape, np.float32)
        for name, shape in leaves(config.shapes())
    }
    if "lm_head.b" in found:
        tensors["ln_f.b"] = moved(found["lm_head.b"][:V], tensors["lm_head.w"], tensors["ln_f.b"])
    return tensors, config


def moved(bias, w, b):
    """Return the bias of the last layernorm that also does the work of the head's.

    With h = LN(x) + b the logits are h w^T + bias. Where d solves w d = bias they are
    (h + d) w^T. As a rule there is such a d if the vocabulary is no larger than the channels.

    Parameters
    ----------
    bias : (V,) float32
    w : (V, C) float32
    b : (C,) float32

    Returns
    -------
    b + d : (C,) float32

    Raises
    ------
    UserError
        If a logit could change by more than CHANGE: by what of bias is not in the range of w, or
        by rounding, since h is rounded at the size of d.
    """
    w = w.astype(np.float64)
    d, *_ = np.linalg.lstsq(w, bias.astype(np.float64))
    new = (b + d).astype(np.float32)
    added = new - b.astype(np.float64)
    rounding = np.finfo(np.float32).eps * (abs(w) @ abs(added)).max()
    change = abs(w @ added - bias).max() + rounding
    if not change <= CHANGE:
        V, C = w.shape
        raise UserError(
            "this model's LM head has a bias, which has no counterpart in transformers, and with "
            f"{V} tokens and {C} channels it cannot become a part of the last layernorm (logits "
            f"would change by {change:.2g}); train with --no-head-bias"
        )
    return new


def weights_file(tensors):
    """Return the parts of a safetensors file."""
    tensors = {name: np.ascontiguousarray(x, "<f4") for name, x in tensors.items()}
    return [header(tensors, METADATA), *tensors.values()]


def check_folder(folder, force):
    """Raise a UserError if nothing may be written to a folder."""
    folder = Path(folder)
    if "\0" in str(folder):
        raise UserError(f"no folder can have the name {str(folder)!r:.100}; name another")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to export to")
    with writing(folder):
        if not force and folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{folder} is not empty; name another folder, or replace what is in the way with "
                "--force"
            )


def write_folder(folder, files):
    """Write the files of a folder: first all of them beside it, then each into its place.

    Parameters
    ----------
    folder : str or path
    files : {name: parts}
        Each as write_atomically takes them.

    Raises
    ------
    UserError
        If one cannot be written. The folder is as before then.
    """
    target = Path(os.path.realpath(folder))
    beside = target.with_name(f"{target.name}.{secrets.token_hex(4)}{TEMPORARY}")
    with writing(folder), make_folder(target.parent):
        try:
            beside.mkdir()
            for name, parts in files.items():
                write_atomically(beside / name, parts)
            put_in_place(beside, target, files)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def put_in_place(beside, target, names):
    """Move files from one folder to another; one that is not there yet appears as a whole."""
    if not target.exists():
        os.rename(beside, target)
        return
    if marked_read_only(target):
        raise PermissionError(errno.EACCES, READ_ONLY, str(target))
    for name in STALE:
        remove_file(target / name)
    for name in names:
        os.replace(beside / name, target / name)
