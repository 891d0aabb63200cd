"""GPT-2 in transformers' files: the names of tensors, config.json.

Matrices are (C_in, C_out) there as here, with queries, keys and values side by side and the heads
one after the other in each: nothing but names differs.
"""

from minigpt.ops.layernorm import EPS

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
ENDS = {"w": "weight", "b": "bias"}


def hf_name(name):
    """Return the name of a tensor in transformers' files."""
    stem, _, end = name.rpartition(".")
    if not stem:
        return f"transformer.{name}.weight"
    prefix = "" if stem == "lm_head" else "transformer."
    return f"{prefix}{stem}.{ENDS[end]}"


def describe(config, end_of_text=None):
    """Return the config.json of a GPT with learnt positions, a dict."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": ACTIVATIONS[config.activation],
        "layer_norm_epsilon": EPS,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": config.tie_head,
        "use_cache": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def rename(tensors, config):
    """Return the tensors of a GPT under GPT-2's names."""
    return {hf_name(name): x for name, x in tensors.items()}
