"""LoRA adapters in peft's files, both ways.

    adapter_config.json         what the adapter is like
    adapter_model.safetensors   base_model.model.transformer.h.0.attn.c_attn.lora_A.weight, ...
    README.md                   the model card

lora_A is (r, C_in) and lora_B (C_out, r), the transposes of lora_a and lora_b here. They are so
for every kind of layer: fan_in_fan_out, which says that a base has matrices (C_in, C_out), as
GPT-2's files do, is about the base alone.

Format: https://huggingface.co/docs/peft, "PEFT checkpoint format".
"""

import os
import re
from pathlib import Path

import numpy as np

from minigpt.backend import array_module
from minigpt.errors import UserError
from minigpt.interchange.card import NOTHING, adapter_card
from minigpt.interchange.config_json import read_object
from minigpt.interchange.export import CARD, as_json, check_folder, weights_file, write_folder
from minigpt.interchange.loading import place_in_transformers
from minigpt.interchange.weights import read_tensors
from minigpt.model.checkpoint import moved, on_host
from minigpt.model.gpt import GPTConfig
from minigpt.model.lora import Lora, adapter_shapes, linear_layers, merge
from minigpt.params import Params

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
MODEL, GPT = "base_model.model.", "transformer."  # what names begin with
FACTORS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
ALL = "all-linear"
INITS = True, False, None, "gaussian", "eva", "orthogonal"  # those that leave the base as it is
ANSWERED = "merge it into its base with peft (merge_and_unload), and load that by --model"
UNREAD = (  # of adapter_config.json: without effect on what a trained adapter computes
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
)
READ = "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "bias"


def write_adapter(folder, adapter, lora, config, base=None, facts=NOTHING, force=False):
    """Write an adapter as a folder of peft's, whole or not at all.

    Parameters
    ----------
    folder : str or path
    adapter : Params
        Of `lora`, on any backend.
    lora : Lora
    config : GPTConfig
        Of its base.
    base : str, optional
        Where transformers finds the base: a folder, or a name on the hub.
    facts : Facts
        What the model card says of the training.
    force : bool
        As in `export`.

    Raises
    ------
    UserError
        If the base is not GPT-2's architecture: peft's names are those of transformers' layers.
        As in `export`, where the folder cannot be written.
    """
    check_folder(folder, force)
    if config.rotary or config.bigram:
        raise UserError(f"{foreign(config)}; export the merged model: leave out --adapter-only")
    tensors = {peft_name(name): x.T for name, x in on_host(adapter).leaves()}
    described, name = describe(lora, base), os.path.basename(os.path.realpath(folder))
    files = {
        ADAPTER_CONFIG: [as_json(described)],
        ADAPTER: weights_file(tensors),
        CARD: [adapter_card(name, described, adapter.size, facts).encode()],
    }
    write_folder(folder, files)


def export_adapter(folder, checkpoint, facts=NOTHING, force=False):
    """Write an adapter that was trained here as a folder of peft's, whole or not at all.

    Parameters
    ----------
    folder, facts, force : as in write_adapter
    checkpoint : Checkpoint or None

    Returns
    -------
    base : str or None
        Where transformers finds the model that the adapter is of; None where that is a checkpoint
        of minigpt, which is to be exported, too.

    Raises
    ------
    UserError
        As write_adapter; or if the checkpoint is of no adapter, or the folder its base's.
    """
    if checkpoint is None or checkpoint.lora is None:
        raise UserError(
            "--adapter-only: this model has no adapter: all of its weights were trained; "
            "leave it out"
        )
    base = place_in_transformers(checkpoint.base)
    if base is not None and os.path.realpath(folder) == base:
        raise UserError(f"{folder} is the folder of the adapter's base; name another folder")
    adapter = checkpoint.params, checkpoint.lora, checkpoint.config
    write_adapter(folder, *adapter, base, facts, force)
    return base


def foreign(config):
    """Say why a model's layers are none of those that an adapter of peft names."""
    what = "rotary positions" if config.rotary else "a bigram embedding"
    return f"adapters of peft name GPT-2's layers, but this model has {what}"


def describe(lora, base=None):
    """Return the adapter_config.json of a Lora, a dict."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [*lora.targets],
        "use_rslora": lora.rslora,
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
    }


def read_adapter(folder, config):
    """Read an adapter from a folder of peft's.

    Parameters
    ----------
    folder : str or path
    config : GPTConfig
        Of the base that it is to be used with.

    Returns
    -------
    adapter : Params
        float32, on the host.
    lora : Lora
        Its targets are the full names of the layers.

    Raises
    ------
    UserError
        If a file is missing or damaged, if the adapter does what is not known here, or if it is
        one of another base: by its layers or their shapes.
    """
    folder = Path(folder)
    if config.rotary or config.bigram:
        raise UserError(f"--adapter {folder}: {foreign(config)}; name its own base by --model")
    fields = read_config(folder)
    where = folder / ADAPTER_CONFIG
    check_known(fields, where)
    tensors = by_layer(read_tensors(find_weights(folder), "--adapter"), folder / ADAPTER)
    layers = {name.rpartition(".")[0] for name in tensors}
    check_layers(layers, fields, config, folder)
    names = (name for name in linear_layers(config) if name in layers)
    lora = lora_of(fields, tuple(names), where)
    adapter = Params(adapter_shapes(config, lora), np, "float32")
    for name, view in adapter.leaves():
        view[...] = fitting(tensors.get(name), view.shape[::-1], folder / ADAPTER, name, lora)
    return adapter, lora


def fitting(x, shape, where, name, lora):
    """Return lora_a or lora_b of a file in our layout, or raise a UserError: see `read_adapter`."""
    if x is None or x.shape != shape:
        came = "is missing" if x is None else f"is {x.shape}"
        raise UserError(
            f"{where}: {peft_name(name)} {came}, but this base and r = {lora.rank} need {shape}: "
            "it is an adapter of another base; name its own by --model"
        )
    if not np.isfinite(x).all():
        raise UserError(
            f"{where}: {peft_name(name)} holds numbers that are not finite; take another adapter"
        )
    return x.T


def adapted(checkpoint, folder):
    """Return a Checkpoint with the adapter in a folder of peft's merged into its weights.

    It has no state: what is known of its training is of the weights before.

    Raises
    ------
    UserError
        As `read_adapter`; or if the model is an encoder-decoder.
    """
    if type(checkpoint.config) is not GPTConfig:
        raise UserError(f"--adapter {folder}: adapters of peft are for a GPT, this model is none")
    adapter, lora = read_adapter(folder, checkpoint.config)
    adapter = moved(adapter, array_module(checkpoint.params.flat))
    params = merge(checkpoint.params, adapter, lora)
    return checkpoint._replace(params=params, state={}, adapter=None)


def read_config(folder):
    """Return adapter_config.json as a dict, or raise a UserError."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"--adapter {folder}: no {ADAPTER_CONFIG} there; name a folder that peft's "
            "save_pretrained or `minigpt export --adapter-only` wrote"
        )
    return read_object(folder / ADAPTER_CONFIG, "--adapter", "folder of peft")


def find_weights(folder):
    """Return the path of an adapter's weights, or raise a UserError."""
    if (folder / ADAPTER).is_file():
        return folder / ADAPTER
    if (folder / "adapter_model.bin").exists():
        raise UserError(
            f"{folder}: adapter_model.bin is a pickle, which can run code; convert it where torch "
            f"is: load it with peft, save_pretrained writes {ADAPTER}"
        )
    raise UserError(f"{folder}: no {ADAPTER} there; take the whole folder of the adapter")


def check_known(fields, where):
    """Raise a UserError if an adapter is more than the product of two matrices per layer."""
    if fields.get("peft_type") != "LORA":
        raise UserError(
            f"{where}: peft_type is {fields.get('peft_type')!r:.40}, not 'LORA'; {ANSWERED}"
        )
    if fields.get("init_lora_weights") not in INITS:
        raise UserError(
            f"{where}: init_lora_weights is {fields['init_lora_weights']!r:.40}, which changes the "
            f"base's weights; {ANSWERED}"
        )
    if fields.get("bias", "none") != "none":
        raise UserError(f"{where}: bias is {fields['bias']!r:.40}, not 'none'; {ANSWERED}")
    for name, value in fields.items():
        if name not in (*READ, *UNREAD, "init_lora_weights") and value:
            raise UserError(
                f"{where}: {name} is {value!r:.60}, which is not known here; {ANSWERED}"
            )


def lora_of(fields, layers, where):
    """Return the Lora of an adapter_config.json, of layers by their full names."""
    try:
        return Lora(
            rank=fields["r"],
            alpha=fields["lora_alpha"],
            dropout=fields.get("lora_dropout") or 0.0,
            targets=layers,
            rslora=bool(fields.get("use_rslora")),
        )
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} is missing; take it again") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def by_layer(tensors, where):
    """Return {name here: array as in the file} of the tensors of an adapter."""
    renamed = {}
    for name, x in tensors.items():
        layer, _, end = name.rpartition(".lora_")
        factor = next((ours for ours, theirs in FACTORS.items() if theirs == f"lora_{end}"), None)
        if factor is None or not name.startswith(MODEL):
            raise UserError(f"{where}: unexpected tensor {name!r:.100}; {ANSWERED}")
        layer = layer.removeprefix(MODEL).removeprefix(GPT)
        renamed[f"{layer}.{factor}"] = x
    return renamed


def peft_name(name):
    """Return the name in peft's files of lora_a or lora_b of a layer."""
    layer, _, factor = name.rpartition(".")
    return f"{MODEL}{GPT}{layer}.{FACTORS[factor]}"


def check_layers(layers, fields, config, folder):
    """Raise a UserError if an adapter's layers are not the base's, or not those that it targets.

    Parameters
    ----------
    layers : set of str
        Of the tensors in the file.
    """
    known, targets = linear_layers(config), fields.get("target_modules")
    for name in sorted(layers - known.keys()):
        raise UserError(
            f"{folder / ADAPTER}: it adapts {name!r:.60}, which is no linear layer in the blocks "
            f"of this base; name its own by --model, or {ANSWERED}"
        )
    wanted = {name for name in known if targeted(GPT + name, targets, folder / ADAPTER_CONFIG)}
    surplus = sorted(layers - wanted)
    if fields.get("layers_to_transform") is None and not fields.get("exclude_modules"):
        missing = sorted(wanted - layers)
    else:
        missing = [] if layers else sorted(wanted)
    if surplus or missing or not layers:
        what = f"lacks {missing[0]}" if missing else f"has {surplus[0] if surplus else 'no layer'}"
        raise UserError(
            f"{folder}: target_modules is {targets!r:.80}, but {ADAPTER} {what}; take the whole "
            "adapter again, and name its own base by --model"
        )


def targeted(name, targets, where):
    """Tell whether target_modules names a layer: by a regular expression, or by the ends of names.

    Parameters
    ----------
    name : str
        As in transformers, such as "transformer.h.0.attn.c_attn".
    targets : str or list of str
    where : path
        What errors begin with.
    """
    if isinstance(targets, str):
        try:
            return targets.lower() == ALL or bool(re.fullmatch(targets, name))
        except re.error as error:
            raise UserError(f"{where}: target_modules is {targets!r:.60}: {error}") from None
    if not (isinstance(targets, list) and all(isinstance(target, str) for target in targets)):
        raise UserError(f"{where}: target_modules is {targets!r:.60}; it must be a list of names")
    return any(f".{name}".endswith(f".{target}") for target in targets)
