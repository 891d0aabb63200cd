"""Models from wherever they are: a run, a checkpoint, a folder of transformers, the hub.

Of a folder of transformers are read

    config.json             see architectures.py
    model.safetensors       or model.safetensors.index.json and the files that it names
    tokenizer.json          or vocab.json and merges.txt; without them a model takes ids alone

Names of tensors begin with "transformer." or not: the files of the first GPT-2s do not. Old files
also hold buffers, such as the causal masks h.0.attn.bias, which are no parameters.
"""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from minigpt.cli import first_of
from minigpt.data import hub
from minigpt.data.bpe_files import PAIRS, TOKENIZER
from minigpt.data.tokenizers import read_tokenizer
from minigpt.errors import UserError
from minigpt.files import BEST, LAST
from minigpt.interchange.architectures import HEAD, architecture_in, flattened, full_name
from minigpt.interchange.config_json import read_object
from minigpt.interchange.weights import check_dtype, equal, fill, find_slots
from minigpt.model.base import load_plain, place_of
from minigpt.model.checkpoint import Checkpoint, find_checkpoint, moved
from minigpt.params import Params, leaves

FOLDER = "folder of transformers with a config.json"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FOREIGN = "*.bin", "*.pt", "*.pth", "*.ckpt*", "*.h5", "*.msgpack", "*.gguf"


def load_model(path, xp=np):
    """Read a model, without an optimizer's moments.

    Parameters
    ----------
    path : str or path
        The folder of a run, a checkpoint, a folder of transformers, or the name of a model on the
        hub: owner/model. A file or folder of that name goes first.
    xp : module
        numpy or cupy: where the arrays go.

    Returns
    -------
    checkpoint : Checkpoint
        Its tokenizer is None where a folder of transformers has none.

    Raises
    ------
    UserError
        If there is none, if its files are damaged or do not fit together, or if it is of a kind
        that there is not here.
    """
    path = Path(path).expanduser()
    name = None if path.exists() else hub.repository(path.as_posix())
    if name is not None:
        return read_folder(hub.fetch(name, hub.OF_MODELS), xp)
    if is_folder_of_transformers(path):
        return read_folder(path, xp)
    if path.is_file() and any(map(path.match, FOREIGN)):
        raise unread(path.name, path.parent)
    return load_plain(find_checkpoint(path), xp, open_on_host)


def open_on_host(name):
    """Return the Checkpoint of `load_model` on the host: of what a run begins from, or adapts."""
    return load_model(name, np)


def place_in_transformers(base):
    """Return where transformers finds the Base of an adapter: its folder, or its name on the hub.

    None where it is in a file of minigpt, or gone.
    """
    path = Path(place_of(base))
    if path.exists() or base.folder:
        return os.path.realpath(path) if is_folder_of_transformers(path) else None
    return hub.repository(base.name)


def is_folder_of_transformers(path):
    """Tell whether a folder has a model's config or weights, and is not that of a run."""
    if not path.is_dir() or any((path / name).exists() for name in (BEST, LAST)):
        return False
    return any((path / name).exists() for name in (CONFIG, WEIGHTS, INDEX)) or bool(foreign(path))


def foreign(folder):
    """Return the names of files with weights that are not opened."""
    return sorted(file.name for pattern in FOREIGN for file in folder.glob(pattern))


def read_folder(folder, xp):
    """Return the Checkpoint in a folder of transformers."""
    fields, where = read_object(folder / CONFIG, "model", FOLDER), f"model {folder / CONFIG}"
    architecture = architecture_in(fields, where)
    config = architecture.config_of(fields, where)
    slots = by_short_name(find_weights(folder), architecture, folder)
    tied = is_tied(fields, slots, architecture)
    config = dataclasses.replace(config, tie_head=tied)
    if tied:
        slots.pop(HEAD, None)
    tokenizer = tokenizer_of(folder, config)
    params = moved(read_params(slots, config, architecture, folder), xp)
    return Checkpoint(config, tokenizer, params, None, {})


def find_weights(folder):
    """Return {name: Slot} of all weights in a folder, in one file or several.

    Raises
    ------
    UserError
        If a file is missing or damaged, or if the weights are in files that are not opened.
    """
    if (folder / WEIGHTS).exists():
        return find_slots(folder / WEIGHTS, "model")
    if not (folder / INDEX).exists():
        raise no_weights(folder)
    files = read_object(folder / INDEX, "model", FOLDER).get("weight_map")
    where = f"model {folder / INDEX}"
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{where} is damaged: it has no weight_map from names to files")
    slots = {}
    for file in sorted({*files.values()}):
        if re.search(r"[/\\:\0]", file) or file in ("", ".", ".."):
            raise UserError(f"{where} names the file {file!r:.100}, which is not in its folder")
        if not (folder / file).exists():
            raise UserError(f"{where} names {file!r:.100}, which is missing; put it beside it")
        found = find_slots(folder / file, "model")
        slots |= {name: slot for name, slot in found.items() if files.get(name, file) == file}
    lost = [name for name in files if name not in slots]
    if lost:
        raise UserError(f"{where} names tensors that no file has: {first_of(lost, 3)}")
    return slots


def no_weights(folder):
    """Return the UserError for a folder without weights that can be read."""
    others = foreign(folder)
    if not others:
        return UserError(f"model {folder} has no {WEIGHTS}; put it beside its {CONFIG}")
    return unread(others[0], folder)


def unread(name, folder):
    """Return the UserError for a file with weights that is not opened."""
    pickled = name.endswith((".bin", ".pt", ".pth"))
    why = "is a pickle, which can run code" if pickled else "is of a format that is not read"
    return UserError(
        f"model {folder}: {name} {why}; get {WEIGHTS} from the hub, or convert it on a "
        f"machine with torch: AutoModelForCausalLM.from_pretrained({str(folder)!r})"
        ".save_pretrained(FOLDER)"
    )


def by_short_name(slots, architecture, folder):
    """Return {name without prefix: Slot} of the parameters; buffers are left out."""
    found = {}
    for name, slot in slots.items():
        if architecture.BUFFERS.search(name):
            continue
        check_dtype(name, slot.dtype, f"model {slot.path}")
        if found.setdefault(name.removeprefix(architecture.PREFIX), slot) is not slot:
            raise UserError(f"model {folder} has {name!r:.100} twice: with a prefix and without")
    return found


def is_tied(fields, slots, architecture):
    """Tell whether a head is the token embedding: it is left out, or the same numbers."""
    if HEAD not in slots:
        return fields.get("tie_word_embeddings", True) is not False
    embedding = slots.get(architecture.EMBEDDING)
    return embedding is not None and equal(slots[HEAD], embedding)


def read_params(slots, config, architecture, folder):
    """Return Params on the host, filled from files: memory for them is all that is taken.

    Raises
    ------
    UserError
        If tensors are missing, surplus or of other shapes, or if a number is not finite.
    """
    check_tensors(slots, config, architecture, folder)
    params = Params(config.shapes(), np, "float32")
    for name, view in architecture.views(dict(params.leaves()), config).items():
        if not fill(view, slots[name]):
            raise UserError(
                f"model {folder}: {full_name(architecture, name)} holds numbers that are not "
                "finite: the model has diverged, or its file is damaged"
            )
    return params


def check_tensors(slots, config, architecture, folder):
    """Raise a UserError if tensors are not those of a model, before there is memory for it."""
    if config.n_layer > len(slots):
        raise UserError(
            f"model {folder}: n_layer is {config.n_layer:,}, but it has {len(slots):,} tensors; "
            "take its files again"
        )
    try:
        expected = shapes_of(config, architecture)
    except ValueError as error:  # NumPy's, of a number that no array has
        raise UserError(f"model {folder}: sizes in its {CONFIG} are too large ({error})") from None
    named = {name: full_name(architecture, name) for name in expected}
    faults = [f"{named[name]} is missing" for name in expected if name not in slots]
    faults += [f"unexpected tensor {name!r:.100}" for name in sorted(slots.keys() - expected)]
    faults += [
        f"{named[name]} is {slots[name].shape} and not {shape}"
        for name, shape in expected.items()
        if name in slots and slots[name].shape != shape
    ]
    if faults:
        raise UserError(
            f"model {folder}: tensors do not fit its {CONFIG}: {first_of(faults, 3)}; take its "
            "files again"
        )


def shapes_of(config, architecture):
    """Return {name without prefix: shape} of a model's tensors in transformers' files."""
    one = np.float32(0)  # that fills arrays of any shape, which take no memory
    tensors = {name: np.broadcast_to(one, shape) for name, shape in leaves(config.shapes())}
    views = architecture.views(tensors, config)
    return {name: flattened(view).shape for name, view in views.items()}


def tokenizer_of(folder, config):
    """Return the tokenizer in a folder of transformers; None if it has no file of one."""
    names = [(TOKENIZER,), *PAIRS]
    if not any(all((folder / name).exists() for name in files) for files in names):
        return None
    tokenizer = read_tokenizer(folder, "model")
    if not tokenizer.fits(config):
        raise UserError(
            f"model {folder}: its tokenizer has {tokenizer.vocab_size:,} tokens, but its "
            f"{CONFIG} has vocab_size {config.vocab_size:,}: they are of two models; take its "
            "files again"
        )
    return tokenizer
