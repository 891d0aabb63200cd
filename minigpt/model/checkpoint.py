"""Checkpoints: a safetensors file that holds all there is to know of a model, without pickle.

    metadata   format      "minigpt 1", or "minigpt 1 adapter"
               model       "gpt" or "seq2seq"; "gpt" if left out
               config      GPTConfig or Seq2SeqConfig, as JSON
               tokenizer   the tokenizer's table, as JSON; two, of an encoder-decoder; null, of a
                           model that came without one
               state       what the caller keeps beside them (step, losses, ...), as JSON
               lora, base  of an adapter: model/lora.py's Lora and Base, as JSON
    tensors    the weights, float32, under their dotted names: wte, wpe, h.0.ln_1.w, ...
               or of an adapter its factors alone: h.0.attn.c_attn.lora_a, ...
               optimizer.m.NAME and optimizer.v.NAME: the optimizer's moments, where they are kept

Format: https://huggingface.co/docs/safetensors, "Format". The safetensors library reads the files.
They are written here, since the library's header differs from run to run: this way equal models
give equal files, straight from the arrays, with the permissions that the user's other files have.
"""

import dataclasses
import json
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

from minigpt import cli
from minigpt.backend import to_device, to_host
from minigpt.cli import aliases
from minigpt.data.tokenizers import tokenizer_from_json
from minigpt.errors import UserError
from minigpt.files import BEST, LAST, describe_size, write_atomically
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.model.lora import Base, Lora, adapter_shapes
from minigpt.params import Params, leaves

FORMAT = "minigpt 1"
ADAPTER = "minigpt 1 adapter"  # a format of its own: versions without adapters say so
CONFIGS = {"gpt": GPTConfig, "seq2seq": Seq2SeqConfig}  # by their names in the file
NO_TOKENIZER = "null"  # a model that takes ids alone
MOMENTS = ("m", "v")
ELSE = "take another checkpoint, or train one with `python -m minigpt.train`"


class Checkpoint(NamedTuple):
    """What `load` returns.

    Attributes
    ----------
    config : GPTConfig or Seq2SeqConfig
    tokenizer : Tokenizer, PairTokenizer, or None
        None where a model takes ids alone.
    params : Params
        float32, on the backend asked for; of an adapter its factors.
    optimizer_arrays : {"m": Params, "v": Params} or None
    state : dict
    lora, base : Lora and Base, or None
        Of an adapter; model/base.py merges it.
    adapter : Checkpoint or None
        Of an adapter that is merged into `params`.
    """

    config: object
    tokenizer: object
    params: Params
    optimizer_arrays: dict | None
    state: dict
    lora: Lora | None = None
    base: Base | None = None
    adapter: object = None


def save(path, params, config, *, tokenizer, state, optimizer=None, lora=None, base=None):
    """Write a checkpoint. At any moment there is a whole one at `path`: the old or the new.

    Parameters
    ----------
    path : str or path
    params : Params
        float32; from a GPU they come to the host in one copy.
    config : GPTConfig or Seq2SeqConfig
    tokenizer : Tokenizer, PairTokenizer, or None
    state : dict
        Of what JSON knows; floats come back to the bit.
    optimizer : AdamW, optional
        Its moments are saved; the rest of it is the caller's to keep in `state`.
    lora, base : Lora and Base, optional
        Where `params` are an adapter's.

    Raises
    ------
    UserError
        If the file cannot be written, for example on a full disk, or if a number is not finite.
        What was at `path` is unchanged.
    TypeError
        If an array is not float32: no other precision could be loaded.
    """
    tensors = dict(on_host(params).leaves())
    for moment in MOMENTS if optimizer else ():
        views = on_host(getattr(optimizer, moment)).leaves()
        tensors |= {f"optimizer.{moment}.{name}": view for name, view in views}
    tensors = {name: x.astype("<f4", casting="equiv", copy=False) for name, x in tensors.items()}
    bad = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if bad:
        raise UserError(
            f"{path}: not saved, since {bad[0]} holds numbers that are not finite: what was there "
            "before is unchanged; resume from it with a lower --learning-rate"
        )
    metadata = {
        "format": FORMAT if lora is None else ADAPTER,
        "model": next(name for name, cls in CONFIGS.items() if cls is type(config)),
        "config": json.dumps(dataclasses.asdict(config)),
        "tokenizer": NO_TOKENIZER if tokenizer is None else tokenizer.to_json(),
        "state": json.dumps(state, allow_nan=False),
    }
    if lora is not None:
        metadata["lora"] = json.dumps(dataclasses.asdict(lora))
        metadata["base"] = json.dumps(base._asdict())
    parts = [header(tensors, metadata), *tensors.values()]
    try:
        write_atomically(Path(path), parts)
    except OSError as error:
        size = describe_size(sum(memoryview(part).nbytes for part in parts))
        unchanged = "; what was there before is unchanged" if Path(path).exists() else ""
        raise UserError(
            f"{path}: cannot save the checkpoint ({size}): {error.strerror or error}{unchanged}"
        ) from None


def on_host(params):
    """Return Params on the host: these, or a copy of those on a GPU."""
    return Params(params.shapes, np, params.flat.dtype, to_host(params.flat))


def moved(params, xp):
    """Return float32 Params on the host with their arrays where those of `xp` are."""
    return Params(params.shapes, xp, "float32", to_device(params.flat, xp))


def header(tensors, metadata):
    """Return what a safetensors file begins with: its length as uint64, then JSON, padded to 8."""
    entries, start = {"__metadata__": metadata}, 0
    for name, x in tensors.items():
        entries[name] = {
            "dtype": "F32",
            "shape": x.shape,
            "data_offsets": (start, start + x.nbytes),
        }
        start += x.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def load(path, xp=np, with_optimizer=True):
    """Read a checkpoint that `save` wrote.

    Parameters
    ----------
    path : str or path
    xp : module
        numpy or cupy: where the arrays go.
    with_optimizer : bool
        Whether to read the optimizer's moments; sampling leaves them on the disk.

    Returns
    -------
    checkpoint : Checkpoint

    Raises
    ------
    UserError
        If the file is missing, damaged or of another kind, if its parts do not fit together, or
        if a number in it is not finite. Memory is allocated only after names, shapes and types
        have been checked against the file's own size.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"{path}: {what}; name a .safetensors file that minigpt.train wrote")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return read(file, xp, with_optimizer)
    except UserError as error:
        raise UserError(f"{path}: {cli.one_line(error)}") from None
    except (safetensors.SafetensorError, OSError) as error:
        reason = cli.one_line(error)
        raise UserError(f"{path}: damaged, or not a safetensors file ({reason}); {ELSE}") from None


def read_state(path):
    """Return the state in a checkpoint, a dict, without reading weights; {} if it has none."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def data_of(state):
    """Return the SHA-256 of the data that a state is of, None where it does not say."""
    return state.get("data_sha256", state.get("text_sha256"))  # its name in older runs


def read(file, xp, with_optimizer):
    """Return the Checkpoint in an open safetensors file; UserErrors do not name the file."""
    metadata = file.metadata() or {}
    found = metadata.get("format", "")
    if not found.startswith("minigpt "):
        raise UserError(f"not a minigpt checkpoint: it has no minigpt metadata; {ELSE}")
    if found not in (FORMAT, ADAPTER):
        raise UserError(f"its format is {found!r}, but this version reads {FORMAT!r} only; {ELSE}")
    names = set(file.keys())
    config, tokenizer, state = read_metadata(metadata, len(names))
    lora, base = (None, None) if found == FORMAT else read_adapter(metadata)
    shape_tree = config.shapes() if lora is None else adapter_shapes(config, lora)
    weights = dict(leaves(shape_tree))
    moments = {f"optimizer.{moment}.{name}": s for moment in MOMENTS for name, s in weights.items()}
    has_moments = any(name.startswith("optimizer.") for name in names)
    check_tensors(file, names, weights | moments if has_moments else weights)
    arrays = None
    if with_optimizer and has_moments:
        arrays = {m: read_params(file, shape_tree, xp, f"optimizer.{m}.") for m in MOMENTS}
    params = read_params(file, shape_tree, xp)
    return Checkpoint(config, tokenizer, params, arrays, state, lora, base)


def read_metadata(metadata, n_tensors):
    """Return (config, tokenizer, state) from their JSON, or raise a UserError."""
    fields = {}
    for key in ("config", "state"):
        try:
            fields[key] = json.loads(metadata[key])
        except (KeyError, ValueError, RecursionError):
            fields[key] = None
        if not isinstance(fields[key], dict):
            raise UserError(f"damaged: its metadata {key!r} is missing or not an object; {ELSE}")
    cls = cli.choose(metadata.get("model", "gpt"), CONFIGS, "model")
    config = cli.build(cls, aliases.stored(fields["config"], cli.fields_of(cls)))
    if config.n_layer > n_tensors:
        raise UserError(f"damaged: {config.n_layer} layers, but {n_tensors} tensors; {ELSE}")
    table = metadata.get("tokenizer", "")
    if table == NO_TOKENIZER:
        return config, None, fields["state"]
    try:
        tokenizer = tokenizer_from_json(table)
    except RecursionError:
        raise UserError(f"damaged: its tokenizer is not readable JSON; {ELSE}") from None
    if not tokenizer.fits(config):
        raise UserError(
            f"its tokenizer has {tokenizer.vocab_size} tokens, but its config has "
            f"vocab_size {config.vocab_size}; {ELSE}"
        )
    return config, tokenizer, fields["state"]


def read_adapter(metadata):
    """Return (Lora, Base) from their JSON, or raise a UserError."""
    made = []
    for key, cls in (("lora", Lora), ("base", Base)):
        try:
            made.append(cls(**json.loads(metadata[key])))
        except UserError as error:
            raise UserError(f"damaged: {error}; {ELSE}") from None
        except (KeyError, ValueError, TypeError, RecursionError):
            raise UserError(f"damaged: its metadata {key!r} is not an adapter's; {ELSE}") from None
    if not all(type(value) is str for value in made[1]):
        raise UserError(f"damaged: its metadata 'base' is {made[1]!r:.60}; {ELSE}")
    return made


def check_tensors(file, names, expected):
    """Raise a UserError if the tensors in the file are not float32 of the `expected` shapes."""
    faults = [f"{name} is missing" for name in expected if name not in names]
    faults += [f"unexpected tensor {name!r}" for name in sorted(names - expected.keys())]
    for name in [name for name in expected if name in names]:
        x = file.get_slice(name)
        came, needed = (x.get_dtype(), tuple(x.get_shape())), ("F32", expected[name])
        if came != needed:
            faults.append(f"{name} is {came[0]} {came[1]} and not {needed[0]} {needed[1]}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"tensors do not fit the config: {', '.join(faults[:3])}{more}; {ELSE}")


def read_params(file, shape_tree, xp, prefix=""):
    """Return float32 Params filled from the tensors `prefix` + name."""
    params = Params(shape_tree, np, "float32")
    for name, view in params.leaves():
        x = file.get_tensor(prefix + name)
        if not np.isfinite(x).all():
            raise UserError(
                f"{prefix}{name} holds numbers that are not finite: the run had diverged; take an "
                "earlier checkpoint, or train again with a lower --learning-rate"
            )
        view[...] = x
    return moved(params, xp)


def find_checkpoint(path):
    """Return the path of a checkpoint: of a run's folder its best, else its last; or of a file.

    The best is of no use where it is of other data than the last: a run that was resumed with
    another text leaves it until its first evaluation.

    Parameters
    ----------
    path : str or path
        A folder, or a file.

    Raises
    ------
    UserError
        If the folder has none, or there is nothing at all.
    """
    path = Path(path)
    files = [file for file in (path / BEST, path / LAST) if file.exists()]
    if files:
        data = [data_of(read_state(file)) for file in files]
        return files[0] if None in data or len({*data}) == 1 else files[1]
    if path.is_dir() or not (path.exists() or path.suffix == Path(BEST).suffix):
        found = f"no {BEST} or {LAST} there" if path.is_dir() else "there is no such file or folder"
        train = cli.command("python -m minigpt.train", out_dir=path)
        raise UserError(
            f"{path}: {found}; train a model with `{train}`, or name the folder of a run or a "
            "checkpoint"
        )
    return path
