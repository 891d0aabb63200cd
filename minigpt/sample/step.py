"""One token of each row on a CPU: the forward pass that decoding repeats, in few calls.

A token's arrays are so small that a call takes longer than its arithmetic, and what they leave in
the processor's cache is gone after the next matrix. So here are the sums of model/gpt.py and
model/encoder_decoder.py once more, for T = 1 and without what a backward pass would need. The
models' passes remain the definition: other arrays, longer ones and plain mode take those.
"""

import numpy as np

from minigpt.backend import array_module, is_plain
from minigpt.backend.cpu import activation, rotary
from minigpt.backend.cpu.attention import one_query
from minigpt.backend.cpu.blocking import constant
from minigpt.model.gpt import embed_forward
from minigpt.ops.activation import KINDS
from minigpt.ops.attention import split_heads
from minigpt.ops.layernorm import EPS
from minigpt.ops.rotary import angles


def is_step(ids):
    """Tell whether `step` takes ids (B, T)."""
    return ids.shape[1] == 1 and array_module(ids) is np and not is_plain()


def step(ids, p, config, kv, seen=None):
    """gpt_forward, or decoder_forward, of one token of each row.

    Parameters
    ----------
    ids : (B, 1) int, NumPy
    p : tree of parameters
    config : GPTConfig or Seq2SeqConfig
    kv : KVCache, or DecoderCache where blocks have cross attention
        Of the tokens before `ids`, which are added to it.
    seen : (B, Ts) bool, optional
        The tokens of the memory that may be seen.

    Returns
    -------
    y : (B, C), dtype of the parameters
    """
    x, n_head, turn = embed_forward(ids, p, kv)[0][:, 0], config.n_head, None
    if config.rotary:
        turn = rotary.factors(*angles(x, kv.length, 1, x.shape[1] // n_head), n_head)
    for i, block in enumerate(p["h"]):
        *norms, last = (block[name] for name in ("ln_1", "ln_2", "ln_3") if name in block)
        own, memory = kv[i] if "cross" in block else (kv[i], None)
        x += self_attention(norm(x, **norms[0]), block["attn"], n_head, own, turn)
        if memory is not None:
            x += cross_attention(norm(x, **norms[1]), block["cross"], n_head, memory, seen)
        h = act(linear(norm(x, **last), **block["mlp"]["c_fc"]), config.activation)
        x += linear(h, **block["mlp"]["c_proj"])
    kv.advance(ids)
    return norm(x, **p["ln_f"])


def norm(x, w, b=None):
    """ops.layernorm of x (B, C)."""
    C = x.shape[1]
    y = x - (x @ constant(C, 1 / C, x.dtype))[:, None]
    std = np.vecdot(y, y)
    std *= 1 / C
    std += EPS
    y /= np.sqrt(std, out=std)[:, None]
    y *= w
    if b is not None:
        y += b
    return y


def linear(x, w, b=None, lora_a=None, lora_b=None, scale=1.0, dropout=0.0):
    """ops.linear of x (B, C_in), or ops.lora where there are factors; nothing is dropped."""
    y = x @ w
    if b is not None:
        y += b
    if lora_a is not None:
        y += scale * (x @ lora_a) @ lora_b
    return y


def act(x, kind):
    """ops.activation of x (B, C)."""
    fast = kind in activation.ALONE and activation.takes(kind, x.dtype)
    return activation.values(x, kind) if fast else KINDS[kind](x)[0]


def self_attention(x, p, n_head, kv, turn):
    """Self-attention of x (B, C) over a LayerKV; `turn` are the factors of rotation, or None."""
    qkv = linear(x, **p["c_attn"])
    if turn is not None:
        pairs = qkv[:, : turn.size * 2].view(turn.dtype)
        pairs *= turn
    q, k, v = split_heads(qkv[:, None], 3, n_head)
    y, _ = one_query(q, *kv.append(k, v), causal=True)
    return linear(y.reshape(x.shape), **p["c_proj"])


def cross_attention(x, p, n_head, memory, seen):
    """Cross attention of x (B, C) to the keys and values of a memory."""
    (q,) = split_heads(linear(x, **p["c_q"])[:, None], 1, n_head)
    y, _ = one_query(q, *memory, causal=False, key_mask=seen)
    return linear(y.reshape(x.shape), **p["c_proj"])
