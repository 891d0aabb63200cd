"""The parts of a transformer, made of ops: attention layer, MLP, block. Pairs of passes again.

Every backward pass is its forward pass read upwards. `p` is a subtree of the parameters and
`grads` comes back with the same nesting; biases that are not in `p` are not there.
"""

from minigpt.ops.activation import activation_backward, activation_forward
from minigpt.ops.attention import (
    attention_backward,
    attention_forward,
    merge_heads,
    split_heads,
)
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.ops.linear import linear_backward, linear_forward

WEIGHTS, ATTENTION, MLP = range(3)  # the places of a block where dropout draws its own bits


def at(rng, place):
    """Return the key for one place, or None where there is no dropout."""
    return None if rng is None else rng.fold(place)


def self_attention_forward(x, p, n_head, dropout=0.0, rng=None, kv=None):
    """Causal self-attention: q, k and v in one product, attention by head, projection, dropout.

    Parameters
    ----------
    x : (B, T, C) float
    p : {"c_attn": {"w" (C, 3C)[, "b"]}, "c_proj": {"w" (C, C)[, "b"]}}
    n_head : int
    dropout : float
        For the attention weights and for the output.
    rng : Rng, optional
        None is no dropout.
    kv : optional
        One layer of a KV cache: its append(k, v) returns all keys and values so far.

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    qkv, qkv_cache = linear_forward(x, **p["c_attn"])
    q, k, v = split_heads(qkv, 3, n_head)
    if kv is not None:
        k, v = kv.append(k, v)
    y, attention_cache = attention_forward(
        q, k, v, causal=True, dropout=dropout, rng=at(rng, WEIGHTS)
    )
    y, proj_cache = linear_forward(merge_heads(y), **p["c_proj"])
    y, dropout_cache = dropout_forward(y, dropout, at(rng, ATTENTION))
    return y, (n_head, qkv_cache, attention_cache, proj_cache, dropout_cache)


def self_attention_backward(dy, cache):
    """Return dx (B, T, C) and grads. Not for a forward pass with a KV cache."""
    n_head, qkv_cache, attention_cache, proj_cache, dropout_cache = cache
    dy = dropout_backward(dy, dropout_cache)
    dy, c_proj = linear_backward(dy, proj_cache)
    (dy,) = split_heads(dy, 1, n_head)
    dqkv = merge_heads(*attention_backward(dy, attention_cache))
    dx, c_attn = linear_backward(dqkv, qkv_cache)
    return dx, {"c_attn": c_attn, "c_proj": c_proj}


def mlp_forward(x, p, activation, dropout=0.0, rng=None):
    """Two linear layers with an activation between them, then dropout.

    Parameters
    ----------
    x : (B, T, C) float
    p : {"c_fc": {"w" (C, 4C)[, "b"]}, "c_proj": {"w" (4C, C)[, "b"]}}
    activation : str
        "gelu", "gelu_tanh" or "relu".

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    h, fc_cache = linear_forward(x, **p["c_fc"])
    h, activation_cache = activation_forward(h, activation)
    y, proj_cache = linear_forward(h, **p["c_proj"])
    y, dropout_cache = dropout_forward(y, dropout, rng)
    return y, (fc_cache, activation_cache, proj_cache, dropout_cache)


def mlp_backward(dy, cache):
    """Return dx (B, T, C) and grads."""
    fc_cache, activation_cache, proj_cache, dropout_cache = cache
    dy = dropout_backward(dy, dropout_cache)
    dh, c_proj = linear_backward(dy, proj_cache)
    dh = activation_backward(dh, activation_cache)
    dx, c_fc = linear_backward(dh, fc_cache)
    return dx, {"c_fc": c_fc, "c_proj": c_proj}


def block_forward(x, p, n_head, activation, dropout=0.0, rng=None, kv=None):
    """x + attention(layernorm(x)), then x + mlp(layernorm(x)): GPT-2's pre-norm block.

    Radford et al. 2019 (GPT-2), section 2.3.

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    h, c1 = layernorm_forward(x, **p["ln_1"])
    h, c2 = self_attention_forward(h, p["attn"], n_head, dropout, rng, kv)
    x = x + h
    h, c3 = layernorm_forward(x, **p["ln_2"])
    h, c4 = mlp_forward(h, p["mlp"], activation, dropout, at(rng, MLP))
    return x + h, (c1, c2, c3, c4)


def block_backward(dy, cache):
    """Return dx (B, T, C) and grads. A sum passes its gradient to both of its terms."""
    c1, c2, c3, c4 = cache
    dh, mlp = mlp_backward(dy, c4)
    dh, ln_2 = layernorm_backward(dh, c3)
    dy = dy + dh
    dh, attn = self_attention_backward(dy, c2)
    dh, ln_1 = layernorm_backward(dh, c1)
    return dy + dh, {"ln_1": ln_1, "attn": attn, "ln_2": ln_2, "mlp": mlp}
