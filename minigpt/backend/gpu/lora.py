"""Frozen linear layers and their adapters on a GPU: products without copies."""

import cupy

from minigpt.backend.gpu.linear import linear_forward, weight_gradient
from minigpt.backend.gpu.product import product
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
    y += linear_forward(times(scale, u), lora_b)[0]
    return y, LoraCache(dropped, u, w, lora_a, lora_b, scale, dropout_cache)


def lora_backward(dy, cache):
    """As the op."""
    dropped, u, w, lora_a, lora_b, scale, dropout_cache = cache
    dx = product(dy, w, flip_b=True)
    if lora_a is None:
        return dx, {}
    du = product(dy, lora_b, flip_b=True)
    du *= scale
    grads = {
        "lora_a": weight_gradient(lora_a, dropped, du),
        "lora_b": weight_gradient(lora_b, times(scale, u), dy),
    }
    dx += dropout_backward(product(du, lora_a, flip_b=True), dropout_cache)
    return dx, grads


def times(scale, x):
    """Return scale * x, of the dtype of x: without one, CuPy makes float32 of a bfloat16 array."""
    return cupy.multiply(x, scale, dtype=x.dtype)
