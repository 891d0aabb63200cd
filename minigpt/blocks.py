"""The parts of a transformer, made of ops: attention layers, MLP, blocks. Pairs of passes again.

Every backward pass is its forward pass read upwards. `p` is a subtree of the parameters and
`grads` comes back with the same nesting; biases that are not in `p` are not there.
"""

from minigpt.ops.activation import activation_backward, activation_forward
from minigpt.ops.attention import (
    attention_backward,
    attention_forward,
    attention_weights,
    merge_heads,
    split_heads,
)
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.ops.residual import add

WEIGHTS, ATTENTION, MLP, CROSS = range(4)  # the places of a block where dropout draws its own bits


def at(rng, place):
    """Return the key for one place, or None where there is no dropout."""
    return None if rng is None else rng.fold(place)


def self_attention_forward(
    x, p, n_head, dropout=0.0, rng=None, kv=None, causal=True, key_mask=None
):
    """Self-attention: q, k and v in one product, attention by head, projection, dropout.

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
    causal : bool
        The tril mask; False lets every token see all others, as in an encoder.
    key_mask : (B, T) bool, optional
        True where a token may be seen; False is padding.

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
        q, k, v, causal, key_mask, dropout=dropout, rng=at(rng, WEIGHTS)
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


def keys_values(memory, p, n_head):
    """Return (k, v), each (B, H, Tk, D), that cross attention makes of memory, and a cache."""
    kv, cache = linear_forward(memory, **p["c_kv"])
    return split_heads(kv, 2, n_head), cache


def cross_attention_forward(x, memory, p, n_head, key_mask=None, dropout=0.0, rng=None, kv=None):
    """Cross attention: q from x, k and v from memory, attention by head, projection, dropout.

    Parameters
    ----------
    x : (B, Tq, C) float
    memory : (B, Tk, C), dtype of x
        What an encoder made of another sequence.
    p : {"c_q": {"w" (C, C)[, "b"]}, "c_kv": {"w" (C, 2C)[, "b"]}, "c_proj": {"w" (C, C)[, "b"]}}
    n_head : int
    key_mask : (B, Tk) bool, optional
        True where memory may be seen; False is padding.
    dropout : float
        For the attention weights and for the output.
    rng : Rng, optional
        None is no dropout.
    kv : (k, v), optional
        What `keys_values` makes of memory, kept from an earlier call; memory is not looked at.

    Returns
    -------
    y : (B, Tq, C)
    cache : tuple
    """
    q, q_cache = linear_forward(x, **p["c_q"])
    (q,) = split_heads(q, 1, n_head)
    (k, v), kv_cache = keys_values(memory, p, n_head) if kv is None else (kv, None)
    y, attention_cache = attention_forward(
        q, k, v, key_mask=key_mask, dropout=dropout, rng=at(rng, WEIGHTS)
    )
    y, proj_cache = linear_forward(merge_heads(y), **p["c_proj"])
    y, dropout_cache = dropout_forward(y, dropout, at(rng, ATTENTION))
    return y, (n_head, q_cache, kv_cache, attention_cache, proj_cache, dropout_cache)


def cross_attention_backward(dy, cache):
    """Return dx (B, Tq, C), dmemory (B, Tk, C) and grads. Not for a forward pass with `kv`."""
    n_head, q_cache, kv_cache, attention_cache, proj_cache, dropout_cache = cache
    dy = dropout_backward(dy, dropout_cache)
    dy, c_proj = linear_backward(dy, proj_cache)
    (dy,) = split_heads(dy, 1, n_head)
    dq, dk, dv = attention_backward(dy, attention_cache)
    dmemory, c_kv = linear_backward(merge_heads(dk, dv), kv_cache)
    dx, c_q = linear_backward(merge_heads(dq), q_cache)
    return dx, dmemory, {"c_q": c_q, "c_kv": c_kv, "c_proj": c_proj}


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


def block_forward(
    x, p, n_head, activation, dropout=0.0, rng=None, kv=None, causal=True, key_mask=None
):
    """x + attention(layernorm(x)), then x + mlp(layernorm(x)): GPT-2's pre-norm block.

    Radford et al. 2019 (GPT-2), section 2.3. With causal=False it is the block of an encoder.

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    h, c1 = layernorm_forward(x, **p["ln_1"])
    h, c2 = self_attention_forward(h, p["attn"], n_head, dropout, rng, kv, causal, key_mask)
    x = add(x, h)
    h, c3 = layernorm_forward(x, **p["ln_2"])
    h, c4 = mlp_forward(h, p["mlp"], activation, dropout, at(rng, MLP))
    return add(x, h), (c1, c2, c3, c4)


def block_backward(dy, cache):
    """Return dx (B, T, C) and grads. A sum passes its gradient to both of its terms."""
    c1, c2, c3, c4 = cache
    dh, mlp = mlp_backward(dy, c4)
    dh, ln_2 = layernorm_backward(dh, c3)
    dy = add(dy, dh)
    dh, attn = self_attention_backward(dy, c2)
    dh, ln_1 = layernorm_backward(dh, c1)
    return add(dy, dh), {"ln_1": ln_1, "attn": attn, "ln_2": ln_2, "mlp": mlp}


def cross_block_forward(
    x, memory, p, n_head, activation, key_mask=None, dropout=0.0, rng=None, kv=None, memory_kv=None
):
    """The block of a decoder that also reads memory: self-attention, cross attention, MLP.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.1, but pre-norm as the other blocks.

    Parameters
    ----------
    x : (B, T, C) float
    memory : (B, Tk, C), dtype of x
    p : {"ln_1", "attn", "ln_2", "cross", "ln_3", "mlp"}
    key_mask : (B, Tk) bool, optional
        True where memory may be seen.
    kv, memory_kv : optional
        As `kv` of self_attention_forward and of cross_attention_forward.

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    h, c1 = layernorm_forward(x, **p["ln_1"])
    h, c2 = self_attention_forward(h, p["attn"], n_head, dropout, rng, kv)
    x = add(x, h)
    h, c3 = layernorm_forward(x, **p["ln_2"])
    h, c4 = cross_attention_forward(
        h, memory, p["cross"], n_head, key_mask, dropout, at(rng, CROSS), memory_kv
    )
    x = add(x, h)
    h, c5 = layernorm_forward(x, **p["ln_3"])
    h, c6 = mlp_forward(h, p["mlp"], activation, dropout, at(rng, MLP))
    return add(x, h), (c1, c2, c3, c4, c5, c6)


def cross_block_backward(dy, cache):
    """Return dx (B, T, C), dmemory (B, Tk, C) and grads."""
    c1, c2, c3, c4, c5, c6 = cache
    g = {}
    dh, g["mlp"] = mlp_backward(dy, c6)
    dh, g["ln_3"] = layernorm_backward(dh, c5)
    dy = add(dy, dh)
    dh, dmemory, g["cross"] = cross_attention_backward(dy, c4)
    dh, g["ln_2"] = layernorm_backward(dh, c3)
    dy = add(dy, dh)
    dh, g["attn"] = self_attention_backward(dy, c2)
    dh, g["ln_1"] = layernorm_backward(dh, c1)
    return add(dy, dh), dmemory, g


def block_weights(cache):
    """Return what the tokens looked at in the forward pass of a block, cross or not.

    Returns
    -------
    weights : {"self": (B, H, T, T)}, and of a cross block "cross": (B, H, T, Tk)
    """
    _, (_, _, attention_cache, *_), _, cross_cache, *rest = cache
    weights = {"self": attention_weights(attention_cache)}
    return {**weights, "cross": attention_weights(cross_cache[3])} if rest else weights
