from functools import partial

import numpy as np
import pytest

from minigpt import blocks
from minigpt.blocks import (
    block_backward,
    block_forward,
    cross_attention_backward,
    cross_attention_forward,
    cross_block_backward,
    cross_block_forward,
    keys_values,
    mlp_backward,
    mlp_forward,
    self_attention_backward,
    self_attention_forward,
)
from minigpt.ops.dropout import Rng
from tests.gradcheck import check_backends, check_backward, check_float32

RNG = Rng.of(3, 1, 4)
N_HEAD, C = 2, 4
RTOL = 1e-7  # of gradients through several ops
MASK = np.array([[True, False, True], [False, True, True]])


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


def cross(rng, bias=True):
    return {
        "c_q": linear(rng, C, C, bias),
        "c_kv": linear(rng, C, 2 * C, bias),
        "c_proj": linear(rng, C, C, bias),
    }


def cross_block(rng, bias=True):
    return {**block(rng, bias), "cross": cross(rng, bias), "ln_3": norm(rng, bias)}


def by_name(layer, *args):
    """Return `layer(x, p, *args)` as a function of x and of the parts of p by name."""
    return lambda x, **p: layer(x, p, *args)


@pytest.mark.parametrize("dropout, key", [(0.0, None), (0.3, RNG), (0.3, RNG._replace(row=5))])
@pytest.mark.parametrize("bias, qkv_bias", [(True, True), (False, False), (True, False)])
def test_backward_of_self_attention(rng, bias, qkv_bias, dropout, key):
    forward = by_name(self_attention_forward, N_HEAD, dropout, key)
    x, p = rng.standard_normal((2, 3, C)), attention(rng, bias, qkv_bias)
    check_backward(forward, self_attention_backward, x, **p, rng=rng, rtol=RTOL)


@pytest.mark.parametrize("dropout, key", [(0.0, None), (0.3, RNG)])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_backward_of_mlp(rng, activation, bias, dropout, key):
    forward = by_name(mlp_forward, activation, dropout, key)
    x, p = rng.standard_normal((2, 3, C)), mlp(rng, bias)
    check_backward(forward, mlp_backward, x, **p, rng=rng, rtol=RTOL)


def test_backward_of_mlp_with_relu(rng):
    x, p = rng.standard_normal((2, 3, C)), mlp(rng)
    h = x @ p["c_fc"]["w"] + p["c_fc"]["b"]
    assert abs(h).min() > 5e-3  # farther from the kink than the stencil reaches
    check_backward(by_name(mlp_forward, "relu"), mlp_backward, x, **p, rng=rng, rtol=RTOL)


@pytest.mark.parametrize("dropout, key", [(0.0, None), (0.3, RNG)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, C), (1, 1, C), (0, 3, C)], ids=str)
def test_backward_of_block(rng, shape, bias, dropout, key):
    forward = by_name(block_forward, N_HEAD, "gelu", dropout, key)
    x, p = rng.standard_normal(shape), block(rng, bias)
    check_backward(forward, block_backward, x, **p, rng=rng, rtol=RTOL)


def test_backward_of_the_block_of_an_encoder(rng):
    forward = by_name(partial(block_forward, causal=False, key_mask=MASK), N_HEAD, "gelu")
    x, p = rng.standard_normal((2, 3, C)), block(rng)
    check_backward(forward, block_backward, x, **p, rng=rng, rtol=RTOL)


@pytest.mark.parametrize("mask", [None, MASK], ids=["", "padding"])
@pytest.mark.parametrize("dropout, key", [(0.0, None), (0.3, RNG)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("Tq", [1, 3, 5])
def test_backward_of_cross_attention(rng, Tq, bias, dropout, key, mask):
    def forward(x, memory, **p):
        return cross_attention_forward(x, memory, p, N_HEAD, mask, dropout, key)

    x, memory = rng.standard_normal((2, Tq, C)), rng.standard_normal((2, 3, C))
    p = cross(rng, bias)
    check_backward(forward, cross_attention_backward, x, memory, **p, rng=rng, rtol=RTOL)


@pytest.mark.parametrize("dropout, key", [(0.0, None), (0.3, RNG)])
@pytest.mark.parametrize("bias", [True, False])
def test_backward_of_cross_block(rng, bias, dropout, key):
    def forward(x, memory, **p):
        return cross_block_forward(x, memory, p, N_HEAD, "gelu", MASK, dropout, key)

    x, memory = rng.standard_normal((2, 4, C)), rng.standard_normal((2, 3, C))
    p = cross_block(rng, bias)
    check_backward(forward, cross_block_backward, x, memory, **p, rng=rng, rtol=RTOL)


def test_float32_stays_float32(rng):
    forward = by_name(block_forward, N_HEAD, "gelu", 0.3, RNG)
    x, p = rng.standard_normal((2, 3, C)), block(rng)
    check_float32(forward, block_backward, x, **p, rng=rng, rtol=1e-5)


def reading(x, memory, key_mask, **p):
    return cross_block_forward(x, memory, p, N_HEAD, "gelu_tanh", key_mask, 0.3, RNG)


def test_float32_stays_float32_in_a_cross_block(rng):
    x, memory = rng.standard_normal((2, 4, C)), rng.standard_normal((2, 3, C))
    options = {"key_mask": MASK}
    p = cross_block(rng)
    check_float32(
        reading, cross_block_backward, x, memory, **p, rng=rng, rtol=1e-5, options=options
    )


@pytest.mark.cupy
def test_backends_agree(rng, xp):
    forward = by_name(block_forward, N_HEAD, "gelu_tanh", 0.3, RNG)
    x, p = rng.standard_normal((2, 3, C)), block(rng)
    check_backends(forward, block_backward, x, **p, rng=rng, xp=xp)


@pytest.mark.cupy
def test_backends_agree_on_a_cross_block(rng, xp):
    x, memory = rng.standard_normal((2, 4, C)), rng.standard_normal((2, 3, C))
    options, p = {"key_mask": MASK}, cross_block(rng)
    check_backends(reading, cross_block_backward, x, memory, **p, rng=rng, xp=xp, options=options)


def test_no_token_of_a_cross_block_sees_the_future(rng):
    x, memory, p = rng.standard_normal((2, 6, C)), rng.standard_normal((2, 3, C)), cross_block(rng)
    y, cache = cross_block_forward(x, memory, p, N_HEAD, "gelu")
    for t in range(6):
        x2 = x.copy()
        x2[:, t + 1 :] = rng.standard_normal(x2[:, t + 1 :].shape)
        y2, _ = cross_block_forward(x2, memory, p, N_HEAD, "gelu")
        np.testing.assert_array_equal(y2[:, : t + 1], y[:, : t + 1])
        dy = np.zeros_like(y)
        dy[:, t] = rng.standard_normal((2, C))
        dx, dmemory, _ = cross_block_backward(dy, cache)
        assert not dx[:, t + 1 :].any() and dx[:, : t + 1].all() and dmemory.all()


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
    x, p = rng.standard_normal((2, 6, C)), block(rng)
    run = partial(block_forward, p=p, n_head=N_HEAD, activation="gelu")
    y, cache = run(x)
    for t in range(6):
        x2 = x.copy()
        x2[:, t + 1 :] = 100 * rng.standard_normal(x2[:, t + 1 :].shape)
        np.testing.assert_array_equal(run(x2)[0][:, : t + 1], y[:, : t + 1])
        dy = np.zeros_like(y)
        dy[:, t] = rng.standard_normal((2, C))
        dx, _ = block_backward(dy, cache)
        assert not dx[:, t + 1 :].any() and dx[:, : t + 1].all()


def test_a_block_of_zeros_passes_its_input_on(rng):
    p = block(rng)
    for name in ("attn", "mlp"):
        p[name]["c_proj"] = {k: 0 * v for k, v in p[name]["c_proj"].items()}
    x = rng.standard_normal((2, 3, C))
    y, cache = block_forward(x, p, N_HEAD, "gelu")
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(block_backward(x, cache)[0], x)


def test_the_places_of_a_block_draw_different_masks():
    places = (blocks.WEIGHTS, blocks.ATTENTION, blocks.MLP, blocks.CROSS)
    assert len({blocks.at(RNG, place).key for place in places}) == 4
    assert blocks.at(None, blocks.MLP) is None


def test_dropout_of_a_block_depends_on_the_place_in_the_batch_alone(rng):
    x, p = rng.standard_normal((4, 3, C)), block(rng)
    run = partial(block_forward, p=p, n_head=N_HEAD, activation="gelu", dropout=0.5)
    whole, _ = run(x, rng=RNG)
    parts = [run(x[a:b], rng=RNG._replace(row=a))[0] for a, b in ((0, 1), (1, 4))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12)
