"""The parts of a transformer, made of ops: attention layers, MLP, blocks. Pairs of passes again.

Every backward pass is its forward pass read upwards. `p` is a subtree of the parameters and
`grads` comes back with the same nesting; biases that are not in `p` are not there.

A block of the lecture and of nanoGPT is two lines:

    x = x + attn(ln_1(x))
    x = x + mlp(ln_2(x))

Here the same sums are taken, each one op later. A sublayer returns its output h, which is not yet
added; the next add_norm adds it and normalizes the sum, in one pass over memory:

    x, y = x + h, ln_1(x + h);  h = attn(y)
    x, y = x + h, ln_2(x + h);  h = mlp(y)

So blocks take and return the stream x and h, the pending output; the final layernorm adds the last
one. What passes over h can add the bias of the linear layer that ends a sublayer, too: so this b is
pending with h (None where there is none). In the backward passes dx is the gradient of the stream,
which goes past a sublayer, dh that of its output, which goes through it, and db that of b.

Linear layers go through `project_*`: a layer whose p has a "scale" is frozen, perhaps with a
low-rank adapter, and is ops/lora.py's; model/lora.py makes such trees.
"""

from typing import Any, NamedTuple

from minigpt.model.recompute import whole_cache
from minigpt.ops.activation import activation_backward, activation_forward
from minigpt.ops.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.attention import (
    attention_backward,
    attention_forward,
    merge_heads,
    split_heads,
)
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.ops.linear_activation import linear_activation_backward, linear_activation_forward
from minigpt.ops.lora import LoraCache, lora_backward, lora_forward
from minigpt.ops.rotary import rotary_qkv_backward, rotary_qkv_forward

# The sites of a block where dropout draws bits of its own: the weights of its attention layers, and
# the h that each of its add_norms adds to the stream; of the MLP only the adapters do. Below the
# site of attention or MLP: the adapters of its first and of its last linear layer.
SITE_ATTN_WEIGHTS, SITE_CROSS_WEIGHTS = 0, 1
SITE_RESIDUAL_1, SITE_RESIDUAL_2, SITE_RESIDUAL_3 = 2, 3, 4
SITE_MLP = 5
FIRST, LAST = 0, 1


def fold_key(rng, place):
    """Return the key one level down: of a layer, or of a site in it; None is no dropout."""
    return None if rng is None else rng.fold(place)


def project_forward(x, p, rng=None, place=FIRST):
    """A linear layer, or a frozen one: as linear_forward or lora_forward, for whose dropout rng is,
    the key of the part of the block whose first or last linear layer it is.
    """
    if "scale" not in p:
        return linear_forward(x, **p)
    return lora_forward(x, **p, rng=fold_key(rng, place))


def project_backward(dy, cache):
    """Return dx and grads, of which a frozen layer has those of its adapter alone, if any."""
    if isinstance(cache, LoraCache):
        return lora_backward(dy, cache)
    return linear_backward(dy, cache)


def without_last_bias(p):
    """Return the parameters of a sublayer without the bias that it ends with, and that bias.

    It is None where there is no such bias, or where it is frozen with its layer: then p is whole.
    """
    last = p["c_proj"]
    if "b" not in last or "scale" in last:
        return p, None
    return {**p, "c_proj": {"w": last["w"]}}, last["b"]


def put_last_bias(grads, db):
    """Put the gradient of the bias that a sublayer ends with, if any, into its gradients."""
    if db is not None:
        grads["c_proj"]["b"] = db


class SelfAttentionCache(NamedTuple):
    """The caches of the ops in self-attention; `rotary` is None without rotation."""

    n_head: int
    qkv: Any
    rotary: Any
    attention: Any
    proj: Any


class CrossAttentionCache(NamedTuple):
    """The caches of the ops in cross attention; `kv` is None where k and v were given."""

    n_head: int
    q: Any
    kv: Any
    attention: Any
    proj: Any


class BlockCache(NamedTuple):
    """The caches of the parts of a block, under the names of their parameters."""

    ln_1: Any
    attn: SelfAttentionCache
    ln_2: Any
    mlp: Any


class CrossBlockCache(NamedTuple):
    """The caches of the parts of a cross block, under the names of their parameters."""

    ln_1: Any
    attn: SelfAttentionCache
    ln_2: Any
    cross: CrossAttentionCache
    ln_3: Any
    mlp: Any


def self_attention_forward(
    x, p, n_head, dropout=0.0, rng=None, kv=None, causal=True, key_mask=None, rotary=False
):
    """Self-attention: q, k and v in one product, rotation, attention by head, projection.

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
        Whether q and k are rotated by their positions.

    Returns
    -------
    y : (B, T, C)
    cache : SelfAttentionCache
    """
    qkv, qkv_cache = project_forward(x, p["c_attn"], rng, FIRST)
    rotary_cache = None
    if rotary:
        qkv, rotary_cache = rotary_qkv_forward(qkv, n_head, 0 if kv is None else kv.length)
    q, k, v = split_heads(qkv, 3, n_head)
    if kv is not None:
        k, v = kv.append(k, v)
    y, attention_cache = attention_forward(q, k, v, causal, key_mask, dropout=dropout, rng=rng)
    y, proj_cache = project_forward(merge_heads(y), p["c_proj"], rng, LAST)
    return y, SelfAttentionCache(n_head, qkv_cache, rotary_cache, attention_cache, proj_cache)


def self_attention_backward(dy, cache):
    """Return dx (B, T, C) and grads. Not for a forward pass with a KV cache."""
    dy, c_proj = project_backward(dy, cache.proj)
    (dy,) = split_heads(dy, 1, cache.n_head)
    dqkv = merge_heads(*attention_backward(dy, cache.attention))
    if cache.rotary is not None:
        dqkv = rotary_qkv_backward(dqkv, cache.rotary)
    dx, c_attn = project_backward(dqkv, cache.qkv)
    return dx, {"c_attn": c_attn, "c_proj": c_proj}


def keys_values(memory, p, n_head):
    """Return the keys and values of memory, (k, v), each (B, H, Tk, D), and a cache."""
    kv, cache = linear_forward(memory, **p["c_kv"])
    return split_heads(kv, 2, n_head), cache


def cross_attention_forward(x, memory, p, n_head, key_mask=None, dropout=0.0, rng=None, kv=None):
    """Cross attention: q from x, k and v from memory, attention by head, projection.

    Parameters
    ----------
    x : (B, Tq, C) float
    memory : (B, Tk, C), dtype of x
        An encoder's output for another sequence.
    p : {"c_q": {"w" (C, C)[, "b"]}, "c_kv": {"w" (C, 2C)[, "b"]}, "c_proj": {"w" (C, C)[, "b"]}}
    n_head : int
    key_mask : (B, Tk) bool, optional
        True where memory may be seen; False is padding.
    dropout : float
        For the attention weights.
    rng : Rng, optional
        None is no dropout.
    kv : (k, v), optional
        `keys_values` of memory, kept from an earlier call; memory is not looked at.

    Returns
    -------
    y : (B, Tq, C)
    cache : CrossAttentionCache
    """
    q, q_cache = linear_forward(x, **p["c_q"])
    (q,) = split_heads(q, 1, n_head)
    (k, v), kv_cache = keys_values(memory, p, n_head) if kv is None else (kv, None)
    y, attention_cache = attention_forward(q, k, v, key_mask=key_mask, dropout=dropout, rng=rng)
    y, proj_cache = linear_forward(merge_heads(y), **p["c_proj"])
    return y, CrossAttentionCache(n_head, q_cache, kv_cache, attention_cache, proj_cache)


def cross_attention_backward(dy, cache):
    """Return dx (B, Tq, C), dmemory (B, Tk, C) and grads. Not for a forward pass with `kv`."""
    dy, c_proj = linear_backward(dy, cache.proj)
    (dy,) = split_heads(dy, 1, cache.n_head)
    dq, dk, dv = attention_backward(dy, cache.attention)
    dmemory, c_kv = linear_backward(merge_heads(dk, dv), cache.kv)
    dx, c_q = linear_backward(merge_heads(dq), cache.q)
    return dx, dmemory, {"c_q": c_q, "c_kv": c_kv, "c_proj": c_proj}


def project_activation_forward(x, p, activation, rng=None, place=FIRST):
    """project_forward and the activation after it: one op, where the layer is trained itself."""
    if "scale" not in p:
        return linear_activation_forward(x, **p, kind=activation)
    h, lora_cache = project_forward(x, p, rng, place)
    y, activation_cache = activation_forward(h, activation)
    return y, (lora_cache, activation_cache)


def project_activation_backward(dy, cache):
    """Return dx and grads, as project_backward."""
    if not isinstance(cache[0], LoraCache):
        return linear_activation_backward(dy, cache)
    lora_cache, activation_cache = cache
    return lora_backward(activation_backward(dy, activation_cache), lora_cache)


def mlp_forward(x, p, activation, rng=None):
    """Two linear layers with an activation between them.

    Parameters
    ----------
    x : (B, T, C) float
    p : {"c_fc": {"w" (C, 4C)[, "b"]}, "c_proj": {"w" (4C, C)[, "b"]}}
    activation : str
        "gelu", "gelu_tanh" or "relu".
    rng : Rng, optional
        For the dropout of adapters.

    Returns
    -------
    y : (B, T, C)
    cache : tuple
    """
    h, fc_cache = project_activation_forward(x, p["c_fc"], activation, rng, FIRST)
    y, proj_cache = project_forward(h, p["c_proj"], rng, LAST)
    return y, (fc_cache, proj_cache)


def mlp_backward(dy, cache):
    """Return dx (B, T, C) and grads."""
    fc_cache, proj_cache = cache
    dh, c_proj = project_backward(dy, proj_cache)
    dx, c_fc = project_activation_backward(dh, fc_cache)
    return dx, {"c_fc": c_fc, "c_proj": c_proj}


def block_forward(
    x,
    h,
    b,
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

        x = x + (h + b);  h, b = attn(ln_1(x))
        x = x + (h + b);  h, b = mlp(ln_2(x))

    Radford et al. 2019 (GPT-2), section 2.3. With causal=False it is the block of an encoder.

    Parameters
    ----------
    x : (B, T, C) float or None
        The stream; None before the first block, where it is 0.
    h : (B, T, C)
        The output of the MLP before, still to be added; before the first block the embedding.
    b : (C,) or None
        The bias of that output, to be added with it.
    p : {"ln_1", "attn", "ln_2", "mlp"}
    dropout : float
        For the attention weights, and for each h + b that is added to the stream.

    Returns
    -------
    x, h : (B, T, C)
        The stream, and the output of the MLP.
    b : (C,) or None
        The bias of h.
    cache : BlockCache
    """
    key = fold_key(rng, SITE_RESIDUAL_1)
    (x, y), ln_1 = add_norm_forward(x, h, **p["ln_1"], h_b=b, dropout=dropout, rng=key)
    key = fold_key(rng, SITE_ATTN_WEIGHTS)
    p_attn, b = without_last_bias(p["attn"])
    h, attn = self_attention_forward(y, p_attn, n_head, dropout, key, kv, causal, key_mask, rotary)
    key = fold_key(rng, SITE_RESIDUAL_2)
    (x, y), ln_2 = add_norm_forward(x, h, **p["ln_2"], h_b=b, dropout=dropout, rng=key)
    p_mlp, b = without_last_bias(p["mlp"])
    h, mlp = mlp_forward(y, p_mlp, activation, fold_key(rng, SITE_MLP))
    return x, h, b, BlockCache(ln_1, attn, ln_2, mlp)


def block_backward(dx, dh, db, cache):
    """The four lines of the forward pass in reverse: dx goes past a sublayer, dh through it.

    Parameters
    ----------
    dx, dh : (B, T, C)
    db : (C,) or None
        The gradients of the three that block_forward returned.
    cache : BlockCache

    Returns
    -------
    dx : (B, T, C), None if x was None
    dh : (B, T, C)
    db : (C,), None if b was None
    grads : tree, as p
    """
    grads, cache = {}, whole_cache(cache)
    dy, grads["mlp"] = mlp_backward(dh, cache.mlp)
    put_last_bias(grads["mlp"], db)
    dx, dh, grads["ln_2"] = add_norm_backward(dx, dy, cache.ln_2)
    db = grads["ln_2"].pop("h_b", None)
    dy, grads["attn"] = self_attention_backward(dh, cache.attn)
    put_last_bias(grads["attn"], db)
    dx, dh, grads["ln_1"] = add_norm_backward(dx, dy, cache.ln_1)
    db = grads["ln_1"].pop("h_b", None)
    return dx, dh, db, grads


def cross_block_forward(
    x,
    h,
    b,
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

        x = x + (h + b);  h, b = attn(ln_1(x))
        x = x + (h + b);  h, b = cross(ln_2(x), memory)
        x = x + (h + b);  h, b = mlp(ln_3(x))

    Vaswani et al. 2017, arXiv:1706.03762, section 3.1, but pre-norm as the other blocks.

    Parameters
    ----------
    x, h, b : as in block_forward
    memory : (B, Tk, C), dtype of h
    p : {"ln_1", "attn", "ln_2", "cross", "ln_3", "mlp"}
    kv : pair, optional
        `kv` of self_attention_forward and of cross_attention_forward.
    key_mask : (B, Tk) bool, optional
        True where memory may be seen.

    Returns
    -------
    x, h, b : as from block_forward
    cache : CrossBlockCache
    """
    kv, memory_kv = kv or (None, None)
    key = fold_key(rng, SITE_RESIDUAL_1)
    (x, y), ln_1 = add_norm_forward(x, h, **p["ln_1"], h_b=b, dropout=dropout, rng=key)
    key = fold_key(rng, SITE_ATTN_WEIGHTS)
    p_attn, b = without_last_bias(p["attn"])
    h, attn = self_attention_forward(y, p_attn, n_head, dropout, key, kv, rotary=rotary)
    key = fold_key(rng, SITE_RESIDUAL_2)
    (x, y), ln_2 = add_norm_forward(x, h, **p["ln_2"], h_b=b, dropout=dropout, rng=key)
    key = fold_key(rng, SITE_CROSS_WEIGHTS)
    p_cross, b = without_last_bias(p["cross"])
    h, cross = cross_attention_forward(
        y, memory, p_cross, n_head, key_mask, dropout, key, memory_kv
    )
    key = fold_key(rng, SITE_RESIDUAL_3)
    (x, y), ln_3 = add_norm_forward(x, h, **p["ln_3"], h_b=b, dropout=dropout, rng=key)
    p_mlp, b = without_last_bias(p["mlp"])
    h, mlp = mlp_forward(y, p_mlp, activation)
    return x, h, b, CrossBlockCache(ln_1, attn, ln_2, cross, ln_3, mlp)


def cross_block_backward(dx, dh, db, cache):
    """Return dx, dh, db, dmemory (B, Tk, C) and grads; otherwise as block_backward."""
    grads, cache = {}, whole_cache(cache)
    dy, grads["mlp"] = mlp_backward(dh, cache.mlp)
    put_last_bias(grads["mlp"], db)
    dx, dh, grads["ln_3"] = add_norm_backward(dx, dy, cache.ln_3)
    db = grads["ln_3"].pop("h_b", None)
    dy, dmemory, grads["cross"] = cross_attention_backward(dh, cache.cross)
    put_last_bias(grads["cross"], db)
    dx, dh, grads["ln_2"] = add_norm_backward(dx, dy, cache.ln_2)
    db = grads["ln_2"].pop("h_b", None)
    dy, grads["attn"] = self_attention_backward(dh, cache.attn)
    put_last_bias(grads["attn"], db)
    dx, dh, grads["ln_1"] = add_norm_backward(dx, dy, cache.ln_1)
    db = grads["ln_1"].pop("h_b", None)
    return dx, dh, db, dmemory, grads


def block_weights(cache):
    """Return the attention weights of the forward pass of a block, cross or not.

    Returns
    -------
    weights : {"self": (B, H, T, T)}, and of a cross block "cross": (B, H, T, Tk)
    """
    weights = {"self": cache.attn.attention.w}
    if isinstance(cache, CrossBlockCache):
        weights["cross"] = cache.cross.attention.w
    return weights
