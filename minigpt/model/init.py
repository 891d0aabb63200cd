"""Parameters before training: the shapes of the parts that models share, and their first values."""

import math
from collections import Counter

from minigpt.backend import host_normal, to_device
from minigpt.backend.devices import load_backend
from minigpt.params import Params

STD = 0.02  # of every matrix and embedding, as in nanoGPT; GPT-2 has 0.01 for positions


def norm_shapes(config):
    """Return the shapes of a layernorm's parameters."""
    C = config.n_embd
    return {"w": (C,), "b": (C,)} if config.bias else {"w": (C,)}


def linear_shapes(n_in, n_out, bias):
    """Return the shapes of a linear layer's parameters."""
    return {"w": (n_in, n_out), "b": (n_out,)} if bias else {"w": (n_in, n_out)}


def block_shapes(config):
    """Return the tree of parameter shapes of a block."""
    C = config.n_embd
    return {
        "ln_1": norm_shapes(config),
        "attn": {
            "c_attn": linear_shapes(C, 3 * C, config.qkv_bias),
            "c_proj": linear_shapes(C, C, config.bias),
        },
        "ln_2": norm_shapes(config),
        "mlp": {
            "c_fc": linear_shapes(C, 4 * C, config.bias),
            "c_proj": linear_shapes(4 * C, C, config.bias),
        },
    }


def cross_block_shapes(config):
    """Return the tree of parameter shapes of a block with cross attention."""
    C, bias = config.n_embd, config.qkv_bias
    cross = {
        "c_q": linear_shapes(C, C, bias),
        "c_kv": linear_shapes(C, 2 * C, bias),
        "c_proj": linear_shapes(C, C, config.bias),
    }
    return {**block_shapes(config), "cross": cross, "ln_3": norm_shapes(config)}


def embedding_shapes(V, config):
    """Return the shapes of the embeddings: of tokens, of positions, of pairs of tokens."""
    C, shapes = config.n_embd, {"wte": (V, config.n_embd)}
    if not config.rotary:
        shapes["wpe"] = (config.block_size, C)
    if config.bigram:
        shapes["wbe"] = ((V + 1) * V, C)
    return shapes


def init_params(config, seed, xp="numpy", dtype="float32"):
    """Return new Params of a model: matrices normal with standard deviation STD, gains 1, biases 0.

    init_scale="residual" divides the projections into the residual stream by the square root of
    their number, which is 2 n_layer in a GPT (Radford et al. 2019, section 2.3): the variances of
    so many independent additions add up. "plain" does not.

    Parameters
    ----------
    config : GPTConfig or Seq2SeqConfig
    seed : int
        The numbers depend on it and on the place of a name among the parameters, not on the
        backend.
    xp : module or str
        numpy or cupy, or the name of one.
    dtype : str
    """
    return draw_params(config.shapes(), config.init_scale, seed, xp, dtype)


def draw_params(shape_tree, init_scale, seed, xp, dtype):
    """Return the Params of a tree of shapes, drawn as `init_params` says.

    Where there are several stacks of blocks, "encoder.h" beside "h", each counts its own
    projections into the residual stream: a decoder has three a block.
    """
    xp = load_backend(xp)
    params = Params(shape_tree, xp, dtype)
    names = [name for name, _ in params.leaves() if name.endswith("c_proj.w")]
    residual = Counter(name.partition("h.")[0] for name in names)
    for i, (name, view) in enumerate(params.leaves()):
        if name.endswith(".b"):
            continue
        if view.ndim == 1:
            view[...] = 1
            continue
        scaled = init_scale == "residual" and name.endswith("c_proj.w")
        std = STD / math.sqrt(residual[name.partition("h.")[0]]) if scaled else STD
        view[...] = to_device(host_normal(seed, i, view.shape, std), xp)
    return params
