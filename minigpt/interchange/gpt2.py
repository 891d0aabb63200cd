"""GPT-2 in transformers' files: config.json, the names of tensors. See config_json.py.

Matrices are (C_in, C_out) there as here, with queries, keys and values side by side and the heads
one after the other in each: nothing but names differs.
"""

import re

from minigpt.interchange.config_json import ENDS, describe_alike, read_options, require
from minigpt.ops.layernorm import EPS

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
FIXED = {
    "layer_norm_epsilon": EPS,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_inner": None,
    "resid_pdrop": 0.1,
    "activation_function": "gelu_new",
    **FIXED,
}
OPTIONS = {
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "dropout": "resid_pdrop",
    "activation": "activation_function",
}
PREFIX, EMBEDDING = "transformer.", "wte.weight"
BUFFERS = re.compile(r"(^|\.)attn\.(bias|masked_bias)$")  # the causal mask


def config_of(fields, where):
    """Return the GPTConfig, with a tied head, that a config.json describes.

    Parameters
    ----------
    fields : dict
    where : str
        What errors begin with.

    Raises
    ------
    UserError
        If it has an option that there is not here: names it.
    """
    fields = DEFAULTS | fields
    require(fields, FIXED, where)
    config = read_options(fields, where, OPTIONS, rotary=False)
    if fields["n_inner"] is not None:
        require(fields, {"n_inner": 4 * config.n_embd}, where)
    return config


def describe(config, end_of_text=None):
    """Return the config.json of a GPT with learnt positions, a dict.

    Parameters
    ----------
    config : GPTConfig
    end_of_text : int, optional
        The id of the token that texts begin and end with.
    """
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **describe_alike(config, end_of_text),
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "reorder_and_upcast_attn": False,
        **FIXED,
    }


def views(tensors, config):
    """Return the tensors of a GPT with all biases under GPT-2's names, without the prefix.

    Parameters
    ----------
    tensors : {dotted name: array}
    config : GPTConfig
    """
    renamed = {}
    for name, x in tensors.items():
        stem, _, end = name.rpartition(".")
        renamed[f"{stem}.{ENDS[end]}" if stem else f"{name}.weight"] = x
    return renamed
