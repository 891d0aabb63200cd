"""The gradient checks are checked: each of these bugs is planted, and must be found."""

import math

import numpy as np
import pytest

from minigpt.backend import _override, overridable
from minigpt.backend.cpu import softmax as cpu_softmax
from minigpt.ops import cross_entropy
from minigpt.ops.activation import activation_backward, activation_forward
from minigpt.ops.attention import AttentionCache, attention_backward, attention_forward
from minigpt.ops.dropout import Rng, dropout_backward, dropout_forward
from minigpt.ops.embedding import embedding_backward, embedding_forward
from minigpt.ops.layernorm import LayerNormCache, layernorm_backward, layernorm_forward
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.ops.softmax import softmax_backward, softmax_forward
from tests.ops.test_attention import check_causal
from tests.tools.gradcheck import check_backward, check_float32


def check(test, faulty, match=None):
    """Run `test`, which must fail where a bug is planted and pass where none is."""
    if faulty:
        with pytest.raises((AssertionError, ValueError), match=match):
            test()
    else:
        test()


def changed(backward, change):
    """Return `backward` with a bug: `change(gradients, dy, cache)` returns the wrong ones."""
    return lambda dy, cache: change(backward(dy, cache), dy, cache)


def write(gradients, dy, cache):
    dy *= 1
    return gradients


def write_into_x(gradients, dy, cache):
    cache[0][...] = 0
    return gradients


def layernorm_without(term):
    """Return layernorm's backward pass with one term left out."""

    def backward(dy, cache):
        x, w, b, mu, rstd = cache
        xhat = (x - mu) * (1.0 if term == "rstd in xhat" else rstd)
        dxhat = dy if term == "gain" else w * dy
        dx = dxhat
        if term != "mean":
            dx = dx - dxhat.mean(axis=-1, keepdims=True)
        if term != "projection":
            dx = dx - xhat * (xhat * dxhat).mean(axis=-1, keepdims=True)
        dx = dx * (1.0 if term == "rstd" else rstd)
        axes = tuple(range(dy.ndim - 1))
        return dx, {"w": (dy * xhat).sum(axis=axes), "b": dy.sum(axis=axes)}

    return backward


def softmax_vacuous(dy, cache):
    """-17 times the right formula: with dy = 1 both are 0."""
    return -17 * softmax_backward(dy, cache)


def attention_with(fault):
    """Return attention's backward pass with a bug in it; the weights are not dropped."""

    def backward(dy, cache):
        q, k, v, w = cache.q, cache.k, cache.v, cache.w
        scale = 1.0 if fault == "no scale" else 1 / math.sqrt(q.shape[-1])
        dw = dy @ v.swapaxes(-1, -2)
        ds = softmax_backward(dw, (w,)) * scale
        if fault == "mask off by one":
            ds = np.tril(ds, -1)
        if fault == "k for q":
            return ds @ k, ds.swapaxes(-1, -2) @ k, w.swapaxes(-1, -2) @ dy
        if fault == "w not transposed":
            return ds @ k, ds.swapaxes(-1, -2) @ q, w @ dy
        return ds @ k, ds.swapaxes(-1, -2) @ q, w.swapaxes(-1, -2) @ dy

    return backward


def arrays(rng, *shapes):
    return [rng.standard_normal(shape) for shape in shapes]


LAYERNORM = {
    name: (layernorm_forward, layernorm_without(name))
    for name in ("mean", "projection", "rstd", "rstd in xhat", "gain")
}


@pytest.mark.parametrize("name", [None, *LAYERNORM])
def test_a_lost_term_of_layernorm_is_found(rng, name):
    x, w, b = arrays(rng, (2, 3, 4), 4, 4)
    pair = LAYERNORM.get(name, (layernorm_forward, layernorm_without(None)))
    check(lambda: check_backward(*pair, x, w=w, b=b, rng=rng), faulty=name is not None)


@pytest.mark.parametrize(
    "fault", [None, "no scale", "mask off by one", "k for q", "w not transposed"]
)
def test_a_fault_in_attention_is_found(rng, fault):
    qkv = arrays(rng, *[(1, 2, 4, 3)] * 3)
    pair = attention_forward, attention_with(fault)
    options = {"causal": True}
    check(lambda: check_backward(*pair, *qkv, rng=rng, options=options), fault is not None)


FAULTS = {
    "none": lambda g, dy, cache: g,
    "one part in a million": lambda g, dy, cache: (g[0] * (1 + 1e-6), g[1]),
    "two in a million million": lambda g, dy, cache: (g[0], {**g[1], "w": g[1]["w"] * (1 + 2e-12)}),
    "wrong sign": lambda g, dy, cache: (-g[0], g[1]),
    "transposed": lambda g, dy, cache: (g[0], {**g[1], "w": g[1]["w"].T}),
    "one element": lambda g, dy, cache: (
        g[0] + 1e-6 * (np.arange(g[0].size) == 3).reshape(2, 4),
        g[1],
    ),
    "mean, not sum": lambda g, dy, cache: (g[0], {**g[1], "b": g[1]["b"] / 2}),
    "a parameter forgotten": lambda g, dy, cache: (g[0], {"w": g[1]["w"]}),
    "a name too many": lambda g, dy, cache: (g[0], {**g[1], "c": g[0]}),
    "another shape": lambda g, dy, cache: (g[0], {**g[1], "b": g[1]["b"][None]}),
    "rounded to float32": lambda g, dy, cache: (g[0].astype(np.float32), g[1]),
    "rounded on the way": lambda g, dy, cache: (g[0].astype(np.float32).astype(float), g[1]),
    "not a number": lambda g, dy, cache: (g[0] * np.nan, g[1]),
    "a constant added": lambda g, dy, cache: (g[0] + 1e-9, g[1]),
    "square of dy": lambda g, dy, cache: (g[0] * np.abs(dy).sum(), g[1]),
    "dy written to": write,
    "x written to": write_into_x,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_any_gradient_is_found(rng, name):
    x, w, b = arrays(rng, (2, 4), (4, 4), 4)
    backward = changed(linear_backward, FAULTS[name])
    check(lambda: check_backward(linear_forward, backward, x, w=w, b=b, rng=rng), name != "none")


@pytest.mark.parametrize(
    "name", ["none", "two in a million million", "mean, not sum", "transposed"]
)
def test_a_fault_is_found_where_arrays_are_large(rng, name):
    x, w, b = arrays(rng, (3, 131, 5), (5, 5), 5)
    backward = changed(linear_backward, FAULTS[name])
    check(lambda: check_backward(linear_forward, backward, x, w=w, b=b, rng=rng), name != "none")


def test_a_gradient_that_differs_from_time_to_time_is_found(rng):
    def add_noise(gradients, dy, cache):
        return gradients[0] + 1e-16 * rng.standard_normal(gradients[0].shape), gradients[1]

    x, w = arrays(rng, (2, 4), (4, 4))
    pair = linear_forward, changed(linear_backward, add_noise)
    check(lambda: check_backward(*pair, x, w=w, rng=rng), True, "array 0|x: not repeatable")


@pytest.mark.parametrize("form", [None, "an override", "the definition"])
def test_a_fault_in_one_form_alone_is_found(rng, form, monkeypatch):
    def faulty(dy, cache):
        return 1.01 * softmax_backward.reference(dy, cache)

    if form == "an override":
        monkeypatch.setattr(cpu_softmax, "softmax_backward", faulty)
        _override.cache_clear()
    backward = softmax_backward
    if form == "the definition":
        backward = overridable(faulty)
        backward.__name__ = "softmax_backward"
    (x,) = arrays(rng, (3, 4))
    try:
        check(lambda: check_backward(softmax_forward, backward, x, rng=rng), form is not None)
    finally:
        _override.cache_clear()


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_the_slope_of_another_activation_is_found(rng, kind):
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[kind]

    def forward(x):
        return activation_forward(x, kind)[0], activation_forward(x, other)[1]

    (x,) = arrays(rng, (3, 4))
    check(lambda: check_backward(forward, activation_backward, x, rng=rng), faulty=True)


def test_a_vacuous_softmax_is_found(rng):
    (x,) = arrays(rng, (3, 4))
    check(lambda: check_backward(softmax_forward, softmax_vacuous, x, rng=rng), faulty=True)


def test_another_dropout_mask_in_the_backward_pass_is_found(rng):
    def backward(dy, cache):
        p, key = cache
        return dropout_backward(dy, (p, key.fold(0)))

    (x,), options = arrays(rng, (4, 5)), {"p": 0.5, "rng": Rng(0)}
    test = lambda: check_backward(dropout_forward, backward, x, rng=rng, options=options)  # noqa: E731
    check(test, faulty=True)


def test_repeated_ids_that_overwrite_are_found(rng):
    def backward(dy, cache):
        ids, _, wte, _ = cache
        dwte = np.zeros(wte.shape)
        dwte[ids] = dy  # the last one wins
        return {**embedding_backward(dy, cache), "wte": dwte}

    wte, wpe = arrays(rng, (5, 3), (4, 3))
    options = {"ids": np.array([[1, 2, 1]])}
    check(
        lambda: check_backward(
            embedding_forward, backward, wte=wte, wpe=wpe, rng=rng, options=options
        ),
        faulty=True,
        match="wte",
    )


def test_a_mean_over_ignored_targets_is_found(rng):
    x, w = arrays(rng, (4, 3), (5, 3))
    options = {"targets": np.array([1, -1, 0, -1])}

    def backward(dy, cache):
        return cross_entropy.cross_entropy_backward(dy, cache._replace(count=4))

    forward = cross_entropy.cross_entropy_forward
    check(lambda: check_backward(forward, backward, x, w=w, rng=rng, options=options), faulty=True)


def test_a_numpy_scalar_that_promotes_float32_is_found(rng):
    def forward(x):
        return x * np.float64(2), ()

    (x,) = arrays(rng, (3, 4))
    check(lambda: check_float32(forward, lambda dy, cache: 2 * dy, x, rng=rng), faulty=True)


def test_a_variance_in_one_pass_is_found(rng):
    def forward(x, w):
        mu, eps = x.mean(axis=-1, keepdims=True), 1e-5
        rstd = (abs((x * x).mean(axis=-1, keepdims=True) - mu * mu) + eps) ** -0.5
        return w * ((x - mu) * rstd), LayerNormCache(x, w, None, mu, rstd)

    x, w = arrays(rng, (3, 16), 16)
    test = lambda: check_float32(forward, layernorm_backward, 100 + 0.1 * x, w=w, rng=rng)  # noqa: E731
    check(test, faulty=True, match="Mismatch")


MASKS = {
    "a finite number": lambda s, seen: np.where(seen, s, -1e4),
    "a finite number added": lambda s, seen: np.where(seen, s, s - 1e4),
    "off by one": lambda s, seen: np.where(np.roll(seen, 1, axis=0) | seen, s, -np.inf),
    "none": lambda s, seen: s,
    "exact": lambda s, seen: np.where(seen, s, -np.inf),
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_that_leaks_is_found(rng, mask):
    def forward(q, k, v, causal):
        s = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        w = softmax_forward(MASKS[mask](s, np.tril(np.ones(s.shape[-2:], dtype=bool))))[0]
        return w @ v, AttentionCache(q, k, v, w @ v, w, causal, None, 0.0, None)

    check(lambda: check_causal(forward, attention_backward, rng), mask != "exact", "the future")
