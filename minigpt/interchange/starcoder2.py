"""Starcoder2, the architecture of transformers that is a GPT with rotary positions.

Lozhkov et al. 2024, arXiv:2402.19173: GPT-2's blocks with rotary positions, layernorms with biases,
an MLP of two layers and an LM head that may be tied. Two things differ from a GPT here.

**Matrices** are (C_out, C_in), and queries, keys and values have one each.

**Rotation.** Pair j of the D channels of a head is (j, j + D/2) there and (2j, 2j + 1) here. Both q
and k are reordered, even channels first, which leaves q . k as it is. The speed of pair j is

    there  theta^(-2j / D)        here  BASE^(-j / (D/2 - 1)) = BASE^(-2j / (D - 2))

so theta = BASE^(D / (D - 2)). A single pair, D = 2, has speed 1 for any theta.
"""

import math
import re

import numpy as np

from minigpt.errors import UserError
from minigpt.interchange.config_json import ENDS, describe_alike, read_options, require
from minigpt.ops.layernorm import EPS
from minigpt.ops.rotary import BASE

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
FIXED = {"use_bias": True, "norm_epsilon": EPS, "sliding_window": None}
DEFAULTS = {
    "vocab_size": 49152,
    "max_position_embeddings": 4096,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "residual_dropout": 0.0,
    "hidden_act": "gelu_pytorch_tanh",
    "rope_theta": 10000.0,
    **FIXED,
}
OPTIONS = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "dropout": "residual_dropout",
    "activation": "hidden_act",
}
PREFIX, EMBEDDING = "model.", "embed_tokens.weight"
BUFFERS = re.compile(r"rotary_emb\.inv_freq$")
PARTS = {  # of a block, by their names here
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.c_fc",
    "mlp.c_proj": "mlp.c_proj",
}


def config_of(fields, where):
    """Return the GPTConfig, with a tied head, that a config.json describes; as gpt2.config_of."""
    fields = DEFAULTS | fields
    require(fields, FIXED, where)
    config = read_options(fields, where, OPTIONS, rotary=True)
    sizes = {"num_key_value_heads": config.n_head, "intermediate_size": 4 * config.n_embd}
    require(fields, sizes, where)
    check_rotation(fields, config, where)
    return config


def check_rotation(fields, config, where):
    """Raise a UserError if pairs of channels do not turn at the speeds that they have here."""
    for name in "rope_parameters", "rope_scaling":  # of transformers 5, and of 4
        found = fields.get(name) or {}
        if not isinstance(found, dict) or found.get("rope_type", "default") != "default":
            raise UserError(
                f"{where}: {name} is {found!r:.60}; what can be loaded has rope_type 'default'"
            )
    fields = fields | (fields.get("rope_parameters") or {})
    theta, found = theta_of(config), fields["rope_theta"]
    known = isinstance(found, int | float) and math.isclose(found, theta, rel_tol=1e-9)
    if not known and config.n_embd > 2 * config.n_head:
        raise UserError(
            f"{where}: rope_theta is {found!r:.60}; what can be loaded has {theta!r}, the one for "
            f"{config.n_embd // config.n_head} channels a head: a model that was exported here"
        )


def theta_of(config):
    """Return the theta of Starcoder2 that gives the speeds here."""
    D = config.n_embd // config.n_head
    return BASE ** (D / (D - 2)) if D > 2 else BASE


def describe(config, end_of_text=None):
    """Return the config.json of a GPT with rotary positions, a dict; as gpt2.describe."""
    theta = theta_of(config)
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        **describe_alike(config, end_of_text),
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "hidden_act": ACTIVATIONS[config.activation],
        "rope_theta": theta,  # where transformers 4 looks, and 5 below
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "residual_dropout": config.dropout,
        "embedding_dropout": config.dropout,
        "attention_dropout": config.dropout,
        **FIXED,
    }


def views(tensors, config):
    """Return the tensors of a GPT with all biases under Starcoder2's names, without the prefix.

    Parameters
    ----------
    tensors : {dotted name: array}
    config : GPTConfig

    Returns
    -------
    tensors : {name: array}
        Views in Starcoder2's layout, but that the first axis of queries and keys is still three.
    """
    renamed = {EMBEDDING: tensors["wte"]}
    if "lm_head.w" in tensors:
        renamed["lm_head.weight"] = tensors["lm_head.w"]
    for end, name in ENDS.items():
        renamed[f"norm.{name}"] = tensors[f"ln_f.{end}"]
        for i in range(config.n_layer):
            for ours, theirs in PARTS.items():
                renamed[f"layers.{i}.{theirs}.{name}"] = tensors[f"h.{i}.{ours}.{end}"].T
            qkv = np.split(tensors[f"h.{i}.attn.c_attn.{end}"].T, 3)
            for letter, x in zip("qkv", qkv, strict=True):
                x = x if letter == "v" else halves(x, config.n_head)
                renamed[f"layers.{i}.self_attn.{letter}_proj.{name}"] = x
    return renamed


def halves(x, n_head):
    """Return the output channels (C, ...) with the even ones of each head first, then the odd.

    Returns
    -------
    heads : (H, 2, D / 2, ...)
        A view.
    """
    return x.reshape(n_head, -1, 2, *x.shape[1:]).swapaxes(1, 2)
