"""The parts of a transformer, made of ops: attention layers, MLP, blocks. Pairs of passes again.

Every backward pass is its forward pass read upwards. `p` is a subtree of the parameters and
`grads` comes back with the same nesting; biases that are not in `p` are not there.

Blocks carry two arrays: the stream x, and h, what the layer before has found and not yet added.
Each layer begins with a residual op: it adds h to x, and the layernorm of the sum is what the layer
reads.
"""

from minigpt.ops.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.attention import (
    attention_backward,
    attention_forward,
    attention_weights,
    merge_heads,
    split_heads,
)
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.ops.linear_activation import linear_activation_backward, linear_activation_forward
from minigpt.ops.rotary import rotary_backward, rotary_forward

# The places of a block where dropout draws its own bits: the weights of its attention layers, and
# what each of its residual ops adds.
WEIGHTS, CROSS_WEIGHTS, LN_1, LN_2, LN_3 = range(5)


def at(rng, place):
    """Return the key for one place, or None where there is no dropout."""
    return None if rng is None else rng.fold(place)


def self_attention_forward(
    x, p, n_head, dropout=0.0, rng=None, kv=None, causal=True, key_mask=None, rotary=False
):
    """Self-attention: q, k and v in one product, turned by position, attention by head, projection.

    Parameters
    ----------
    x : (B, T, C) float
    p : {"c_attn": {"w" (C, 3C)[, "b"]}, "c_proj": {"w" (C, C)[, "b"]}}
    n_head : int
    dropout : float
        For the attention weights.
    rng : Rng, optional
        None is no dropout.
    kv : optional
        One layer of a KV cache: its append(k, v) returns all keys and values so far.
    causal : bool
        The tril mask; False lets every token see all others, as in an encoder.
    key_mask : (B, T) bool, optional
        True where a token may be seen; False is padding.
    rotary : bool
        Whether q and k know their positions by rotation.

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    qkv, qkv_cache = linear_forward(x, **p["c_attn"])
    rotary_cache = None
    if rotary:
        qkv, rotary_cache = rotary_forward(qkv, n_head, 0 if kv is None else kv.length)
    q, k, v = split_heads(qkv, 3, n_head)
    if kv is not None:
        k, v = kv.append(k, v)
    y, attention_cache = attention_forward(q, k, v, causal, key_mask, dropout=dropout, rng=rng)
    y, proj_cache = linear_forward(merge_heads(y), **p["c_proj"])
    return y, (n_head, qkv_cache, rotary_cache, attention_cache, proj_cache)


def self_attention_backward(dy, cache):
    """Return dx (B, T, C) and grads. Not for a forward pass with a KV cache."""
    n_head, qkv_cache, rotary_cache, attention_cache, proj_cache = cache
    dy, c_proj = linear_backward(dy, proj_cache)
    (dy,) = split_heads(dy, 1, n_head)
    dqkv = merge_heads(*attention_backward(dy, attention_cache))
    if rotary_cache is not None:
        dqkv = rotary_backward(dqkv, rotary_cache)
    dx, c_attn = linear_backward(dqkv, qkv_cache)
    return dx, {"c_attn": c_attn, "c_proj": c_proj}


def keys_values(memory, p, n_head):
    """Return (k, v), each (B, H, Tk, D), that cross attention makes of memory, and a cache."""
    kv, cache = linear_forward(memory, **p["c_kv"])
    return split_heads(kv, 2, n_head), cache


def cross_attention_forward(x, memory, p, n_head, key_mask=None, dropout=0.0, rng=None, kv=None):
    """Cross attention: q from x, k and v from memory, attention by head, projection.

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
        For the attention weights.
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
    y, attention_cache = attention_forward(q, k, v, key_mask=key_mask, dropout=dropout, rng=rng)
    y, proj_cache = linear_forward(merge_heads(y), **p["c_proj"])
    return y, (n_head, q_cache, kv_cache, attention_cache, proj_cache)


def cross_attention_backward(dy, cache):
    """Return dx (B, Tq, C), dmemory (B, Tk, C) and grads. Not for a forward pass with `kv`."""
    n_head, q_cache, kv_cache, attention_cache, proj_cache = cache
    dy, c_proj = linear_backward(dy, proj_cache)
    (dy,) = split_heads(dy, 1, n_head)
    dq, dk, dv = attention_backward(dy, attention_cache)
    dmemory, c_kv = linear_backward(merge_heads(dk, dv), kv_cache)
    dx, c_q = linear_backward(merge_heads(dq), q_cache)
    return dx, dmemory, {"c_q": c_q, "c_kv": c_kv, "c_proj": c_proj}


def mlp_forward(x, p, activation):
    """Two linear layers with an activation between them.

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
    h, fc_cache = linear_activation_forward(x, **p["c_fc"], kind=activation)
    y, proj_cache = linear_forward(h, **p["c_proj"])
    return y, (fc_cache, proj_cache)


def mlp_backward(dy, cache):
    """Return dx (B, T, C) and grads."""
    fc_cache, proj_cache = cache
    dh, c_proj = linear_backward(dy, proj_cache)
    dx, c_fc = linear_activation_backward(dh, fc_cache)
    return dx, {"c_fc": c_fc, "c_proj": c_proj}


def block_forward(
    x,
    h,
    p,
    n_head,
    activation,
    dropout=0.0,
    rng=None,
    kv=None,
    causal=True,
    key_mask=None,
    rotary=False,
):
    """Attention, then MLP, each of the layernorm of the stream so far: GPT-2's pre-norm block.

    Radford et al. 2019 (GPT-2), section 2.3. With causal=False it is the block of an encoder.

    Parameters
    ----------
    x : (B, T, C) float or None
        The stream; None before the first block.
    h : (B, T, C)
        What the block before has found, or the embedding.
    p : {"ln_1", "attn", "ln_2", "mlp"}
    dropout : float
        For the attention weights, and for what is added to the stream.

    Returns
    -------
    x, h : (B, T, C)
        The stream, and what the MLP has found.
    cache : tuple
    """
    (x, h), c1 = add_norm_forward(x, h, **p["ln_1"], dropout=dropout, rng=at(rng, LN_1))
    h, c2 = self_attention_forward(
        h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, causal, key_mask, rotary
    )
    (x, h), c3 = add_norm_forward(x, h, **p["ln_2"], dropout=dropout, rng=at(rng, LN_2))
    h, c4 = mlp_forward(h, p["mlp"], activation)
    return x, h, (c1, c2, c3, c4)


def block_backward(dx, dh, cache):
    """Return dx (B, T, C), None if x was None, dh (B, T, C) and grads."""
    c1, c2, c3, c4 = cache
    g = {}
    dh, g["mlp"] = mlp_backward(dh, c4)
    dx, dh, g["ln_2"] = add_norm_backward(dx, dh, c3)
    dh, g["attn"] = self_attention_backward(dh, c2)
    dx, dh, g["ln_1"] = add_norm_backward(dx, dh, c1)
    return dx, dh, g


def cross_block_forward(
    x,
    h,
    memory,
    p,
    n_head,
    activation,
    dropout=0.0,
    rng=None,
    kv=None,
    key_mask=None,
    rotary=False,
):
    """The block of a decoder that also reads memory: self-attention, cross attention, MLP.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.1, but pre-norm as the other blocks.

    Parameters
    ----------
    x, h : as in block_forward
    memory : (B, Tk, C), dtype of h
    p : {"ln_1", "attn", "ln_2", "cross", "ln_3", "mlp"}
    kv : pair, optional
        `kv` of self_attention_forward and of cross_attention_forward.
    key_mask : (B, Tk) bool, optional
        True where memory may be seen.

    Returns
    -------
    x, h : (B, T, C)
    cache : tuple
    """
    kv, memory_kv = kv or (None, None)
    (x, h), c1 = add_norm_forward(x, h, **p["ln_1"], dropout=dropout, rng=at(rng, LN_1))
    h, c2 = self_attention_forward(
        h, p["attn"], n_head, dropout, at(rng, WEIGHTS), kv, rotary=rotary
    )
    (x, h), c3 = add_norm_forward(x, h, **p["ln_2"], dropout=dropout, rng=at(rng, LN_2))
    h, c4 = cross_attention_forward(
        h, memory, p["cross"], n_head, key_mask, dropout, at(rng, CROSS_WEIGHTS), memory_kv
    )
    (x, h), c5 = add_norm_forward(x, h, **p["ln_3"], dropout=dropout, rng=at(rng, LN_3))
    h, c6 = mlp_forward(h, p["mlp"], activation)
    return x, h, (c1, c2, c3, c4, c5, c6)


def cross_block_backward(dx, dh, cache):
    """Return dx, dh (B, T, C), dmemory (B, Tk, C) and grads; dx is None if x was None."""
    c1, c2, c3, c4, c5, c6 = cache
    g = {}
    dh, g["mlp"] = mlp_backward(dh, c6)
    dx, dh, g["ln_3"] = add_norm_backward(dx, dh, c5)
    dh, dmemory, g["cross"] = cross_attention_backward(dh, c4)
    dx, dh, g["ln_2"] = add_norm_backward(dx, dh, c3)
    dh, g["attn"] = self_attention_backward(dh, c2)
    dx, dh, g["ln_1"] = add_norm_backward(dx, dh, c1)
    return dx, dh, dmemory, g


def block_weights(cache):
    """Return what the tokens looked at in the forward pass of a block, cross or not.

    Returns
    -------
    weights : {"self": (B, H, T, T)}, and of a cross block "cross": (B, H, T, Tk)
    """
    _, (*_, attention_cache, _), _, cross_cache, *rest = cache
    weights = {"self": attention_weights(attention_cache)}
    return {**weights, "cross": attention_weights(cross_cache[3])} if rest else weights
