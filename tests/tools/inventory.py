"""Inventory: every gradient that a backward pass of the package returns, and so needs a check."""

import importlib
import inspect
import itertools
import pkgutil
from dataclasses import replace

from minigpt import ops
from minigpt.model import blocks, encoder_decoder, gpt, init
from minigpt.params import leaves
from tests.tools.options import rows
from tests.tools.problem import BOUNDS, FORMS

OPS = [importlib.import_module(f"minigpt.ops.{m.name}") for m in pkgutil.iter_modules(ops.__path__)]
# Arguments that are no arrays of floats: they have no gradient.
PLAIN = {
    *("ids", "source", "targets", "seen", "start", "kind", "causal", "key_mask", "kv", "p"),
    *("activation", "n_head", "config", "on_layer", "rng", "dropout", "eps", "count", "dloss"),
    *("rotary", "scale", "frozen", "recompute", "place"),
}
FROZEN = {"lora": {"w", "b"}}  # of an op: constants, which have no gradient either
SMALLEST = encoder_decoder.Seq2SeqConfig(4, 4, 1, 1, 4, source_vocab_size=4)


def backward_passes(module):
    """Yield (name, forward pass) of the backward passes that a module defines."""
    for attribute, f in vars(module).items():
        name = attribute.removesuffix("_backward")
        if name != attribute and f.__module__ == module.__name__:
            yield name, vars(module)[f"{name}_forward"]


def arrays(forward):
    """Return the names of the arrays of floats that a forward pass takes."""
    return {name for name in inspect.signature(forward).parameters if name not in PLAIN}


def parameters(shapes):
    """Return the names of the parameters of all models whose `shapes` this is."""
    trees = [shapes(replace(SMALLEST, **row)) for row in rows().values()]
    return {name for tree in trees for name, _ in leaves(tree)}


def layers():
    """Return the names of the parameters of each layer of minigpt.blocks."""
    block, cross = init.block_shapes(SMALLEST), init.cross_block_shapes(SMALLEST)
    trees = {"block": block, "cross_block": cross, "cross_attention": cross["cross"]}
    trees |= {"self_attention": block["attn"], "mlp": block["mlp"]}
    any_linear = {"w": (), "b": (), "lora_a": (), "lora_b": ()}
    trees |= {"project": any_linear, "project_activation": any_linear}
    return {layer: {name for name, _ in leaves(tree)} for layer, tree in trees.items()}


def models():
    """Return the names of the parameters that each backward pass of a model is for."""
    of_gpt, of_both = parameters(gpt.shapes), parameters(encoder_decoder.shapes)
    headless, both = ({x for x in s if x.split(".")[0] != "lm_head"} for s in (of_gpt, of_both))
    decoder = {x for x in both if x.split(".")[0] != "encoder"}
    return {
        "gpt": {"embed": {"wte", "wpe", "wbe"}, "gpt": headless, "loss": of_gpt},
        "encoder_decoder": {"decoder": decoder, "seq2seq": both, "loss": of_both},
    }


def inventory():
    """Return {subject: names of the inputs that need a gradient}, subjects as in the registry."""
    found = {}
    for module in OPS:
        for name, forward in backward_passes(module):
            found[f"ops.{name}"] = arrays(forward) - FROZEN.get(name, set())
    for name, forward in backward_passes(blocks):
        found[f"blocks.{name}"] = arrays(forward) | layers().get(name, {"parameters"})
    for module, place in ((gpt, "gpt"), (encoder_decoder, "encoder_decoder")):
        for name, forward in backward_passes(module):
            found[f"{place}.{name}"] = arrays(forward) | models()[place].get(name, {"parameters"})
    return found


def gaps(records):
    """Return a line for every gradient of the inventory that has no check among the records."""
    checked = {tuple(r[key] for key in ("subject", "input", "form", "check")) for r in records}
    needed = (
        (subject, name, form, check)
        for subject, names in inventory().items()
        for name, form, check in itertools.product(sorted(names), FORMS, BOUNDS)
    )
    return [
        f"{subject}: no check of {name} by {check}, {form}"
        for subject, name, form, check in needed
        if (subject, name, form, check) not in checked
    ]
