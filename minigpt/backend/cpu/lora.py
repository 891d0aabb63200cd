"""Frozen linear layers and their adapters on the CPU: the adapter's share is added by blocks."""

from minigpt.backend.cpu.blocking import row_blocks, rows_of
from minigpt.backend.cpu.crew import product
from minigpt.backend.cpu.linear import linear_forward
from minigpt.backend.cpu.pool import empty
from minigpt.ops.dropout import dropout_backward, dropout_forward
from minigpt.ops.lora import LoraCache, check_factors


def lora_forward(x, w, b=None, lora_a=None, lora_b=None, scale=1.0, dropout=0.0, rng=None):
    """As the op."""
    check_factors(w, lora_a, lora_b)
    y, _ = linear_forward(x, w, b)
    if lora_a is None:
        return y, LoraCache(None, None, w, None, None, scale, None)
    dropped, dropout_cache = dropout_forward(x, dropout, rng)
    u, _ = linear_forward(dropped, lora_a)
    add_product(rows_of(y, w.shape[1]), scale * rows_of(u, len(lora_b)), lora_b)
    return y, LoraCache(dropped, u, w, lora_a, lora_b, scale, dropout_cache)


def lora_backward(dy, cache):
    """As the op."""
    dropped, u, w, lora_a, lora_b, scale, dropout_cache = cache
    dy2 = rows_of(dy, w.shape[1])
    dx = empty((*dy.shape[:-1], len(w)), w.dtype)
    dx2 = rows_of(dx, len(w))
    product(dy2, w.T, dx2)
    if lora_a is None:
        return dx, {}
    du = dy2 @ lora_b.T
    du *= scale
    grads = {
        "lora_a": rows_of(dropped, len(w)).T @ du,
        "lora_b": scale * (rows_of(u, len(lora_b)).T @ dy2),
    }
    if dropout_cache[1] is None:  # no dropout
        add_product(dx2, du, lora_a.T)
    else:
        dx += dropout_backward((du @ lora_a.T).reshape(dx.shape), dropout_cache)
    return dx, grads


def add_product(y, u, w):
    """Add u (N, r) @ w (r, C) to y (N, C), which is read and written once."""
    for _, yr, ur in row_blocks(y, u):
        yr += ur @ w
