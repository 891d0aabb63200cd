from functools import partial, wraps

import numpy as np
import pytest

from minigpt.library.check import positional
from minigpt.model import blocks
from minigpt.model.blocks import (
    block_backward,
    block_forward,
    cross_attention_backward,
    cross_attention_forward,
    cross_block_backward,
    cross_block_forward,
    keys_values,
    mlp_backward,
    mlp_forward,
    project_activation_backward,
    project_activation_forward,
    project_backward,
    project_forward,
    self_attention_backward,
    self_attention_forward,
)
from minigpt.ops.dropout import Rng
from tests.tools.gradcheck import check_backends, check_backward, check_float32, joined

RNG = Rng.of(3, 1, 4)
N_HEAD, C = 2, 4
MASK = np.array([[True, False, True], [False, True, True]])

# Each two of three switches in all four positions: biases, dropout, whether the stream begins.
each_two = pytest.mark.parametrize(
    "bias, dropout, key, begins",
    [
        pytest.param(True, 0.0, None, False, marks=pytest.mark.slow),
        (True, 0.3, RNG, True),
        pytest.param(False, 0.0, None, True, marks=pytest.mark.slow),
        pytest.param(False, 0.3, RNG, False, marks=pytest.mark.slow),
    ],
)


def linear(rng, n_in, n_out, bias):
    p = {"w": rng.standard_normal((n_in, n_out)) * 0.5}
    return {**p, "b": rng.standard_normal(n_out)} if bias else p


def attention(rng, bias=True, qkv_bias=True):
    return {"c_attn": linear(rng, C, 3 * C, qkv_bias), "c_proj": linear(rng, C, C, bias)}


def mlp(rng, bias=True):
    return {"c_fc": linear(rng, C, 4 * C, bias), "c_proj": linear(rng, 4 * C, C, bias)}


def norm(rng, bias=True):
    return {name: rng.standard_normal(C) for name in ("w", "b")[: 1 + bias]}


def block(rng, bias=True):
    return {
        "ln_1": norm(rng, bias),
        "attn": attention(rng, bias, bias),
        "ln_2": norm(rng, bias),
        "mlp": mlp(rng, bias),
    }


def pending(rng, bias=True):
    """The bias of the h that goes into a block."""
    return {"b": rng.standard_normal(C)} if bias else {}


def cross(rng, bias=True):
    return {
        "c_q": linear(rng, C, C, bias),
        "c_kv": linear(rng, C, 2 * C, bias),
        "c_proj": linear(rng, C, C, bias),
    }


def cross_block(rng, bias=True):
    return {**block(rng, bias), "cross": cross(rng, bias), "ln_3": norm(rng, bias)}


def by_name(layer, *args):
    """Return `layer(*xs, p, *args)` as a function of xs and of the parts of p by name."""

    def forward(*xs, **p):
        return layer(*xs, p, *args)

    forward.inputs = positional(layer)
    return forward


def completed(forward, backward, begins=False):
    """Return the passes of a block as those of one y, of x and of h with the bias pending with it.

    That of the h which goes in is the parameter b, where it is given.
    """

    def forward_completed(x, h, *others, b=None, **p):
        x, h, b, cache = forward(x, h, b, *others, **p)
        return x, h if b is None else h + b, (cache, b is None)

    @wraps(backward)
    def backward_completed(dx, dh, cache):
        cache, alone = cache
        db = None if alone else dh.sum(axis=(0, 1))
        dx, dh, db, *others, grads = backward(dx, dh, db, cache)
        return dx, dh, *others, grads if db is None else {**grads, "b": db}

    return joined(forward_completed, backward_completed, begins)


def completed_block(*args, begins=False, **options):
    return completed(by_name(partial(block_forward, **options), *args), block_backward, begins)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_backward_of_a_linear_layer_frozen_or_not(rng, activation):
    args = (activation,) if activation else ()
    forward, backward = (
        (project_activation_forward, project_activation_backward)
        if activation
        else (project_forward, project_backward)
    )
    x, p = rng.standard_normal((2, 3, C)), linear(rng, C, 5, True)
    check_backward(by_name(forward, *args), backward, x, **p, rng=rng)
    factors = {"lora_a": rng.standard_normal((C, 2)), "lora_b": rng.standard_normal((2, 5))}

    def frozen(x, **factors):
        return forward(x, {**p, **factors, "scale": 0.5, "dropout": 0.3}, *args, RNG)

    check_backward(frozen, backward, x, **factors, rng=rng)
    check_backward(frozen, backward, x, rng=rng)


@pytest.mark.parametrize("dropout, key", [(0.0, None), (0.3, RNG), (0.3, RNG._replace(row=5))])
@pytest.mark.parametrize("bias, qkv_bias", [(True, True), (False, False), (True, False)])
def test_backward_of_self_attention(rng, bias, qkv_bias, dropout, key):
    forward = by_name(self_attention_forward, N_HEAD, dropout, key)
    x, p = rng.standard_normal((2, 3, C)), attention(rng, bias, qkv_bias)
    check_backward(forward, self_attention_backward, x, **p, rng=rng)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_backward_of_mlp(rng, activation, bias):
    forward = by_name(mlp_forward, activation)
    x, p = rng.standard_normal((2, 3, C)), mlp(rng, bias)
    check_backward(forward, mlp_backward, x, **p, rng=rng)


def test_backward_of_mlp_with_relu(rng):
    x, p = rng.standard_normal((2, 3, C)), mlp(rng)
    h = x @ p["c_fc"]["w"] + p["c_fc"]["b"]
    assert abs(h).min() > 5e-3  # farther from the kink than the stencil reaches
    check_backward(by_name(mlp_forward, "relu"), mlp_backward, x, **p, rng=rng)


@each_two
@pytest.mark.parametrize("shape", [(2, 3, C), (1, 1, C), (0, 3, C)], ids=str)
def test_backward_of_block(rng, shape, bias, dropout, key, begins):
    pair = completed_block(N_HEAD, "gelu", dropout, key, begins=begins)
    xs, p = rng.standard_normal((2 - begins, *shape)), pending(rng, bias) | block(rng, bias)
    check_backward(*pair, *xs, **p, rng=rng)


def test_backward_of_the_block_of_an_encoder(rng):
    pair = completed_block(N_HEAD, "gelu", causal=False, key_mask=MASK)
    xs, p = rng.standard_normal((2, 2, 3, C)), block(rng)
    check_backward(*pair, *xs, **p, rng=rng)


@pytest.mark.parametrize("mask", [None, MASK], ids=["", "padding"])
@pytest.mark.parametrize("dropout, key", [(0.0, None), (0.3, RNG)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("Tq", [1, pytest.param(3, marks=pytest.mark.slow), 5])
def test_backward_of_cross_attention(rng, Tq, bias, dropout, key, mask):
    def forward(x, memory, **p):
        return cross_attention_forward(x, memory, p, N_HEAD, mask, dropout, key)

    x, memory = rng.standard_normal((2, Tq, C)), rng.standard_normal((2, 3, C))
    p = cross(rng, bias)
    check_backward(forward, cross_attention_backward, x, memory, **p, rng=rng)


def reading(*xs, key_mask=MASK, dropout=0.3, rng=RNG, activation="gelu_tanh", **p):
    """A cross block on x, h, b and memory."""
    return cross_block_forward(
        *xs, p, N_HEAD, activation, dropout=dropout, rng=rng, key_mask=key_mask
    )


READING = completed(reading, cross_block_backward)


def streams_and_memory(rng, Tq=4):
    return [*rng.standard_normal((2, 2, Tq, C)), rng.standard_normal((2, 3, C))]


@each_two
def test_backward_of_cross_block(rng, bias, dropout, key, begins):
    pair = completed(partial(reading, dropout=dropout, rng=key), cross_block_backward, begins)
    xs, p = streams_and_memory(rng)[begins:], pending(rng, bias) | cross_block(rng, bias)
    check_backward(*pair, *xs, **p, rng=rng)


def test_float32_stays_float32(rng):
    pair = completed_block(N_HEAD, "gelu", 0.3, RNG)
    xs, p = rng.standard_normal((2, 2, 3, C)), pending(rng) | block(rng)
    check_float32(*pair, *xs, **p, rng=rng, rtol=1e-5)


def test_float32_stays_float32_in_a_cross_block(rng):
    xs, p = streams_and_memory(rng), pending(rng) | cross_block(rng)
    check_float32(*READING, *xs, **p, rng=rng, rtol=1e-5, options={"key_mask": MASK})


@pytest.mark.cupy
def test_backends_agree(rng, xp):
    pair = completed_block(N_HEAD, "gelu_tanh", 0.3, RNG)
    xs, p = rng.standard_normal((2, 2, 3, C)), pending(rng) | block(rng)
    check_backends(*pair, *xs, **p, rng=rng, xp=xp)


@pytest.mark.cupy
def test_backends_agree_on_a_cross_block(rng, xp):
    xs, p = streams_and_memory(rng), pending(rng) | cross_block(rng)
    check_backends(*READING, *xs, **p, rng=rng, xp=xp, options={"key_mask": MASK})


def check_causal(forward, backward, *xs, rng):
    """Assert that (x, h) of a token depend on those of no later one, in both passes.

    Parameters
    ----------
    xs : x, h (B, T, C), and what else goes in and gets a gradient
    """
    (x, h, *others), T = xs, xs[0].shape[1]
    y, cache = forward(*xs)  # (2, B, T, C)
    for t in range(T):
        changed = np.stack([x, h])
        changed[:, :, t + 1 :] = 100 * rng.standard_normal(changed[:, :, t + 1 :].shape)
        y2, _ = forward(*changed, *others)
        np.testing.assert_array_equal(y2[:, :, : t + 1], y[:, :, : t + 1])
        dy = np.zeros_like(y)
        dy[:, :, t] = rng.standard_normal(dy[:, :, t].shape)
        dx, dh, *dothers, _ = backward(dy, cache)
        for g in (dx, dh):
            assert not g[:, t + 1 :].any() and g[:, : t + 1].all()
        assert all(g.all() for g in dothers)


def test_no_token_of_a_cross_block_sees_the_future(rng):
    forward = partial(READING[0], key_mask=None, rng=None, **cross_block(rng))
    check_causal(forward, READING[1], *streams_and_memory(rng, 6), rng=rng)


def test_padding_of_memory_is_as_if_it_were_not_there(rng):
    x, memory, p = rng.standard_normal((1, 4, C)), rng.standard_normal((1, 3, C)), cross(rng)
    expected, _ = cross_attention_forward(x, memory[:, MASK[0]], p, N_HEAD)
    y, cache = cross_attention_forward(x, memory, p, N_HEAD, MASK[:1])
    np.testing.assert_allclose(y, expected, rtol=1e-13)
    _, dmemory, _ = cross_attention_backward(rng.standard_normal(y.shape), cache)
    assert not dmemory[:, ~MASK[0]].any() and dmemory[:, MASK[0]].all()


def test_keys_and_values_of_memory_may_be_kept(rng):
    x, memory, p = rng.standard_normal((2, 4, C)), rng.standard_normal((2, 3, C)), cross(rng)
    kv, _ = keys_values(memory, p, N_HEAD)
    y, _ = cross_attention_forward(x, None, p, N_HEAD, kv=kv)
    np.testing.assert_array_equal(y, cross_attention_forward(x, memory, p, N_HEAD)[0])


def test_no_token_sees_the_future(rng):
    forward, backward = completed_block(N_HEAD, "gelu")
    check_causal(
        partial(forward, **block(rng)), backward, *rng.standard_normal((2, 2, 6, C)), rng=rng
    )


def test_a_block_of_zeros_passes_its_input_on(rng):
    p = block(rng)
    for name in ("attn", "mlp"):
        p[name]["c_proj"] = {k: 0 * v for k, v in p[name]["c_proj"].items()}
    x, h = rng.standard_normal((2, 2, 3, C))
    stream, found, b, cache = block_forward(x, h, None, p, N_HEAD, "gelu")
    np.testing.assert_array_equal(stream, x + h)
    assert not found.any() and not b.any()
    for gradient in block_backward(x, h, b, cache)[:2]:
        np.testing.assert_array_equal(gradient, x)


def test_dropout_of_a_block_depends_on_the_place_in_the_batch_alone(rng):
    (x, h), p = rng.standard_normal((2, 4, 3, C)), block(rng)

    def run(rows):
        key = RNG._replace(row=rows.start)
        args = x[rows], h[rows], None, p, N_HEAD, "gelu", 0.5, key
        return np.stack(block_forward(*args)[:2], axis=1)

    parts = [run(slice(a, b)) for a, b in ((0, 1), (1, 4))]
    np.testing.assert_allclose(np.concatenate(parts), run(slice(0, 4)), rtol=1e-12)


def test_without_a_key_there_is_no_place_that_draws():
    assert blocks.fold_key(None, blocks.SITE_RESIDUAL_1) is None
