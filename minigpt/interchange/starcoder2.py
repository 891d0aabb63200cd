"""Starcoder2, the architecture of transformers that is a GPT with rotary positions.

Lozhkov et al. 2024, arXiv:2402.19173: GPT-2's blocks with rotary positions, layernorms with biases,
an MLP of two layers and an LM head that may be tied. Two things differ from a GPT here.

**Matrices** are (C_out, C_in), and queries, keys and values have one each.

**Rotation.** Pair j of the D channels of a head is (j, j + D/2) there and (2j, 2j + 1) here. Both q
and k are reordered, even channels first, which leaves q . k as it is. The speed of pair j is

    there  theta^(-2j / D)        here  BASE^(-j / (D/2 - 1)) = BASE^(-2j / (D - 2))

so theta = BASE^(D / (D - 2)). A single pair, D = 2, has speed 1 for any theta.
"""

import numpy as np

from minigpt.interchange.gpt2 import ENDS, described_alike
from minigpt.ops.layernorm import EPS
from minigpt.ops.rotary import BASE

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
PARTS = {  # of a block, by their names here
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.c_fc",
    "mlp.c_proj": "mlp.c_proj",
}


def describe(config, end_of_text=None):
    """Return the config.json of a GPT with rotary positions, a dict.

    Parameters
    ----------
    config : GPTConfig
    end_of_text : int, optional
        The id of the token that texts begin and end with.
    """
    D = config.n_embd // config.n_head
    theta = BASE ** (D / (D - 2)) if D > 2 else BASE
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        **described_alike(config, end_of_text),
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "hidden_act": ACTIVATIONS[config.activation],
        "use_bias": True,
        "norm_epsilon": EPS,
        "rope_theta": theta,  # where transformers 4 looks, and 5 below
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "sliding_window": None,
        "residual_dropout": config.dropout,
        "embedding_dropout": config.dropout,
        "attention_dropout": config.dropout,
    }


def rename(tensors, config):
    """Return the tensors of a GPT with all biases under Starcoder2's names, in its layout.

    Parameters
    ----------
    tensors : {dotted name: array}
    config : GPTConfig

    Returns
    -------
    tensors : {name: array}
        Not contiguous where they are transposed.
    """
    renamed = {"model.embed_tokens.weight": tensors["wte"]}
    if "lm_head.w" in tensors:
        renamed["lm_head.weight"] = tensors["lm_head.w"]
    for end, name in ENDS.items():
        renamed[f"model.norm.{name}"] = tensors[f"ln_f.{end}"]
        for i in range(config.n_layer):
            for ours, theirs in PARTS.items():
                renamed[f"model.layers.{i}.{theirs}.{name}"] = tensors[f"h.{i}.{ours}.{end}"].T
            qkv = np.split(tensors[f"h.{i}.attn.c_attn.{end}"].T, 3)
            for letter, x in zip("qkv", qkv, strict=True):
                x = x if letter == "v" else halves(x, config.n_head)
                renamed[f"model.layers.{i}.self_attn.{letter}_proj.{name}"] = x
    return renamed


def halves(x, n_head):
    """Return the output channels (C, ...) with the even ones of each head first, then the odd."""
    heads = x.reshape(n_head, -1, 2, *x.shape[1:])  # (H, D / 2, 2, ...)
    return heads.swapaxes(1, 2).reshape(x.shape)
