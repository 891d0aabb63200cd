"""GPT-2 in transformers' files: the names of tensors, config.json.

Matrices are (C_in, C_out) there as here, with queries, keys and values side by side and the heads
one after the other in each: nothing but names differs.
"""

from minigpt import cli
from minigpt.errors import UserError
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import STD
from minigpt.ops.layernorm import EPS

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
READ_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh"
}
ENDS = {"w": "weight", "b": "bias"}
PREFIX = "transformer."
EMBEDDINGS = "wte", "wpe"
SIZES = {  # our names of what config.json has under theirs, which stand for this if left out
    "vocab_size": ("vocab_size", 50257),
    "block_size": ("n_positions", 1024),
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_embd": ("n_embd", 768),
    "dropout": ("resid_pdrop", 0.1),
}
FIXED = {  # options of transformers that have one value here
    "layer_norm_epsilon": EPS,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def hf_name(name):
    """Return the name of a tensor in transformers' files."""
    stem, _, end = name.rpartition(".")
    if not stem:
        return f"{PREFIX}{name}.weight"
    prefix = "" if stem == "lm_head" else PREFIX
    return f"{prefix}{stem}.{ENDS[end]}"


def our_name(name):
    """Return the name here of a tensor in transformers' files, with their prefix or without.

    A name that GPT-2 does not have gives one that no GPT has, or itself.
    """
    stem, _, end = name.removeprefix(PREFIX).rpartition(".")
    if stem in EMBEDDINGS and end == "weight":
        return stem
    ours = {theirs: ours for ours, theirs in ENDS.items()}
    return f"{stem}.{ours[end]}" if end in ours else name


def config_of(fields, where):
    """Return the GPTConfig, with a tied head, that a config.json of GPT-2 describes.

    Parameters
    ----------
    fields : dict
    where : str
        What errors begin with.

    Raises
    ------
    UserError
        If the architecture is another, or has an option that there is not here: names it.
    """
    kind = fields.get("model_type")
    if kind != "gpt2":
        raise UserError(f"{where}: model_type is {kind!r:.60}; what can be loaded is 'gpt2'")
    for name, needed in FIXED.items():
        found = fields.get(name, needed)
        if found != needed:
            raise UserError(f"{where}: {name} is {found!r:.60}; what can be loaded has {needed!r}")
    sizes = {ours: fields.get(name, usual) for ours, (name, usual) in SIZES.items()}
    inner, activation = fields.get("n_inner"), fields.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in READ_ACTIVATIONS:
        known = ", ".join(READ_ACTIVATIONS)
        raise UserError(
            f"{where}: activation_function is {activation!r:.60}; what can be loaded: {known}"
        )
    try:
        config = cli.build(
            GPTConfig,
            sizes
            | {"activation": READ_ACTIVATIONS[activation]}
            | {"bias": True, "rotary": False, "bigram": False},
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if inner is not None and inner != 4 * config.n_embd:
        raise UserError(
            f"{where}: n_inner is {inner!r:.60}; what can be loaded has 4 n_embd, "
            f"{4 * config.n_embd}"
        )
    return config


def describe(config, end_of_text=None):
    """Return the config.json of a GPT with learnt positions, a dict."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **described_alike(config, end_of_text),
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
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }


def described_alike(config, end_of_text):
    """Return what a config.json has of any GPT, a dict."""
    return {
        "vocab_size": config.vocab_size,
        "initializer_range": STD,
        "tie_word_embeddings": config.tie_head,
        "use_cache": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",  # where transformers 5 looks, and 4 below
        "torch_dtype": "float32",
    }


def rename(tensors, config):
    """Return the tensors of a GPT under GPT-2's names."""
    return {hf_name(name): x for name, x in tensors.items()}
