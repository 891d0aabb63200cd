"""LoRA: an adapter is a tree of low-rank factors, of some of a GPT's linear layers.

    join   the tree of frozen weights with the factors beside them, as training sees it
    merge  w + s lora_a lora_b: plain weights of the base's size, as everything else sees them

What is trained is a Params of its own, that of the adapter: gradients, moments, the optimizer and
checkpoints follow from it, and know nothing of the weights that are frozen.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import NamedTuple

from minigpt.backend import array_module, host_uniform, to_device, to_host
from minigpt.backend.devices import load_backend
from minigpt.cli import nearest
from minigpt.errors import UserError
from minigpt.model.gpt import GPTConfig
from minigpt.params import Params, leaves, map_tree

STREAM = 2**32  # streams of random numbers from here on are an adapter's, those below a model's


@dataclass(frozen=True)
class Lora:
    """What an adapter is like.

    Attributes
    ----------
    rank : int
        r, the columns of lora_a and rows of lora_b.
    alpha : float
    dropout : float
        Of the adapters' inputs, in training.
    targets : tuple of str
        The layers with an adapter, by the end of their names: "c_proj" is that of attention and
        that of the MLP, "mlp.c_proj" the latter; as in peft.
    rslora : bool
        Whether the scale is alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732.

    Raises
    ------
    UserError
        If a value is of another type or out of bounds.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple = ("c_attn",)
    rslora: bool = False

    def __post_init__(self):
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        number = (int, float)
        checks = {
            "rank": type(self.rank) is int and 1 <= self.rank < 2**24,
            "alpha": type(self.alpha) in number and 0 < self.alpha < math.inf,
            "dropout": type(self.dropout) in number and 0 <= self.dropout < 1,
            "targets": type(self.targets) is tuple
            and self.targets
            and all(type(target) is str for target in self.targets),
            "rslora": type(self.rslora) is bool,
        }
        for name, good in checks.items():
            if not good:
                raise UserError(f"LoRA: {name} is {getattr(self, name)!r:.60}, which cannot be")

    @property
    def scale(self):
        """s, what the adapter's product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Base(NamedTuple):
    """The model that an adapter is of.

    Attributes
    ----------
    name : str
        As it was given: a folder, a checkpoint, or a name on the hub.
    folder : str
        Where it was given, if it is a relative name of something there; else "".
    sha256 : str
        Of its weights: see `weights_sha256`.
    """

    name: str
    folder: str
    sha256: str


def linear_layers(config):
    """Return {name: (C_in, C_out)} of the linear layers in the blocks of a GPT."""
    blocks = {f"h.{i}": block for i, block in enumerate(config.shapes()["h"])}
    return {
        f"{place}.{part}.{layer}": shapes["w"]
        for place, block in blocks.items()
        for part in ("attn", "mlp")
        for layer, shapes in block[part].items()
    }


def adapter_shapes(config, lora):
    """Return the tree of an adapter's shapes: of the layers that have one alone.

    Parameters
    ----------
    config : GPTConfig
    lora : Lora

    Returns
    -------
    tree : {"h": [{"attn": {"c_attn": {"lora_a": (C_in, r), "lora_b": (r, C_out)}}, ...}, ...]}

    Raises
    ------
    UserError
        If a target is no layer of the model, or if it is no GPT.
    """
    if type(config) is not GPTConfig:
        raise UserError("LoRA adapts the GPT, but this model is an encoder-decoder")
    layers, tree = linear_layers(config), {"h": [{} for _ in range(config.n_layer)]}
    for target in lora.targets:
        if not any(ends_in(name, target) for name in layers):
            short = [*dict.fromkeys(name.split(".", 2)[2] for name in layers)]
            raise UserError(
                f"LoRA: target {target!r:.60} is no linear layer of the model's blocks; choose "
                f"from {', '.join(short)}, or the ends of these names{nearest(target, short)}"
            )
    for name, (n_in, n_out) in layers.items():
        if any(ends_in(name, target) for target in lora.targets):
            _, i, part, layer = name.split(".")
            factors = {"lora_a": (n_in, lora.rank), "lora_b": (lora.rank, n_out)}
            tree["h"][int(i)].setdefault(part, {})[layer] = factors
    return tree


def count_adapter(config, lora):
    """Return the number of parameters of an adapter, without making any."""
    return sum(math.prod(shape) for _, shape in leaves(adapter_shapes(config, lora)))


def ends_in(name, target):
    """Tell whether a dotted name is `target`, or ends in it."""
    return f".{name}".endswith(f".{target}")


def init_adapter(config, lora, seed, xp="numpy"):
    """Return new Params of an adapter: lora_a uniform within 1 / sqrt(C_in), lora_b 0.

    So the model is its base before the first step, and the first gradient of lora_a is 0.

    Parameters
    ----------
    config : GPTConfig
    lora : Lora
    seed : int
    xp : module or str
        numpy or cupy, or the name of one.
    """
    xp = load_backend(xp)
    adapter = Params(adapter_shapes(config, lora), xp, "float32")
    for i, (name, view) in enumerate(adapter.leaves()):
        if name.endswith("lora_a"):
            bound = 1 / math.sqrt(len(view))
            view[...] = to_device(host_uniform(seed, STREAM + i, view.shape, bound), xp)
    return adapter


def join(base, adapter, lora):
    """Return the tree that the passes of training see: nothing is copied.

    Every linear layer in the blocks gets the arguments of ops/lora.py, whether it has an adapter
    or not, and the tree an entry "frozen": embeddings, head and layernorms get no gradient that
    would be kept.

    Parameters
    ----------
    base : Params or tree
    adapter : Params or tree
        Arrays of the same module and dtype.
    lora : Lora

    Returns
    -------
    tree : dict
    """
    tree = map_tree(lambda name, array: array, getattr(base, "tree", base))
    for block, factors in zip(tree["h"], adapter["h"], strict=True):
        for part in ("attn", "mlp"):
            for layer, arguments in block[part].items():
                arguments |= {"scale": lora.scale, "dropout": lora.dropout}
                arguments |= factors.get(part, {}).get(layer, {})
    return {**tree, "frozen": True}


def merge(params, adapter, lora):
    """Return new Params of the model alone: w + s lora_a lora_b in place of each w.

    Parameters
    ----------
    params, adapter : Params
        float32; they stay as they are.
    lora : Lora

    Raises
    ------
    UserError
        If a number of the adapter is not finite, or if its layers are not the model's.
    """
    xp = array_module(params.flat)
    merged = Params(params.shapes, xp, params.flat.dtype, params.flat.copy())
    views, factors = dict(merged.leaves()), dict(leaves(adapter))
    for name, lora_a in factors.items():
        layer, _, which = name.rpartition(".")
        if which != "lora_a":
            continue
        w, lora_b = views.get(f"{layer}.w"), factors[f"{layer}.lora_b"]
        if w is None or w.shape != (len(lora_a), lora_b.shape[1]):
            came = f"{len(lora_a)} x {lora_b.shape[1]}"
            has = "no such layer" if w is None else f"{w.shape[0]} x {w.shape[1]}"
            raise UserError(
                f"LoRA: the adapter is of another model: its {layer} is {came}, the model has {has}"
            )
        w += lora.scale * (lora_a @ lora_b)
        if not bool(xp.isfinite(w).all()):
            raise UserError(
                f"LoRA: {layer} holds numbers that are not finite when merged: the adapter's "
                "training has diverged; take an earlier checkpoint"
            )
    return merged


def weights_sha256(params):
    """Return the SHA-256 of weights: of names and shapes, and of the numbers in float32.

    It is that of the model, in whatever file it is.
    """
    shapes = {name: list(view.shape) for name, view in params.leaves()}
    digest = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode())
    for _, view in sorted(params.leaves()):
        digest.update(memoryview(to_host(view).astype("<f4", copy=False).reshape(-1)))
    return digest.hexdigest()
