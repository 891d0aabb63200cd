"""The KV cache against the full forward, the sampling rules against naive ones."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.backend import to_device, to_host
from minigpt.errors import UserError
from minigpt.model.gpt import gpt_forward, logits, shapes
from minigpt.params import Params
from minigpt.sample import generate as decoding
from minigpt.sample.generate import KVCache, draw, generate, next_probabilities
from tests.tools.options import gpt_config

CONFIG = gpt_config(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
OPTIONS = [{}, {"rotary": True}, {"bigram": True}, {"rotary": True, "bigram": True}]


def make_params(rng, config, xp=np):
    """Params in float64 with large weights, so that each token has its say."""
    params = Params(shapes(config), xp, "float64")
    params.flat[...] = to_device(0.5 * rng.standard_normal(params.size), xp)
    return params


def full_logits(context, p, config, xp=np):
    """Last logits (B, V) of the whole context, without a cache."""
    x, _ = gpt_forward(to_device(np.asarray(context, np.int32), xp), p, config)
    return to_host(logits(x, p))[:, -1]


def contexts(prompt, new, block_size):
    """The contexts that the documented rule gives each new token, as lists of rows."""
    context = prompt[:, -block_size:]
    for token in new:
        yield context
        if context.shape[1] == block_size:
            context = context[:, block_size - block_size // 2 :]
        context = np.concatenate([context, token[:, None]], axis=1)


@pytest.mark.cupy
@pytest.mark.parametrize("options", OPTIONS, ids=["", *map("-".join, OPTIONS[1:])])
@pytest.mark.parametrize(
    "block_size, T, B, prefill",
    [
        (6, 1, 1, 1024),
        (6, 3, 2, 1024),
        (6, 6, 2, 1024),
        (6, 20, 1, 1024),
        (6, 5, 3, 7),
        (5, 2, 2, 1),
        (1, 1, 2, 1024),
        (2, 1, 1, 1024),
    ],
)
def test_cached_decoding_is_the_full_forward(
    rng, xp, monkeypatch, block_size, T, B, prefill, options
):
    config = replace(CONFIG, block_size=block_size, **options)
    p = make_params(rng, config, xp).tree
    prompt = rng.integers(config.vocab_size, size=(B, T))
    seen = []

    def recording(z, *args):
        seen.append(z)
        return next_probabilities(z, *args)

    monkeypatch.setattr(decoding, "next_probabilities", recording)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", prefill)
    new = list(generate(p, config, prompt, 3 * block_size + 2, seed=1))
    assert len(new) == len(seen) == 3 * block_size + 2
    for context, z in zip(contexts(prompt, new, block_size), seen, strict=True):
        assert z.dtype == np.float64
        np.testing.assert_allclose(z, full_logits(context, p, config, xp), rtol=0, atol=1e-12)


def test_greedy_takes_the_largest_logit(rng):
    p = make_params(rng, CONFIG).tree
    prompt = rng.integers(CONFIG.vocab_size, size=(3, 4))
    runs = [list(generate(p, CONFIG, prompt, 20, temperature=0, seed=seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(*runs)
    for context, token in zip(contexts(prompt, runs[0], CONFIG.block_size), runs[0], strict=True):
        assert token.tolist() == full_logits(context, p, CONFIG).argmax(axis=1).tolist()


def test_a_row_does_not_depend_on_the_others(rng):
    p = make_params(rng, CONFIG).tree
    prompt = np.tile(rng.integers(CONFIG.vocab_size, size=4), (3, 1))
    together = np.array(list(generate(p, CONFIG, prompt, 40, seed=5)))
    for row in range(3):
        alone = list(generate(p, CONFIG, prompt[:1], 40, seed=5, rows=[row]))
        assert together[:, row].tolist() == np.array(alone)[:, 0].tolist()
    assert len({tuple(column) for column in together.T}) == 3
    other = np.array(list(generate(p, CONFIG, prompt, 40, seed=6)))
    assert (other != together).any(axis=0).all()


def test_longer_runs_begin_like_shorter_ones(rng):
    p = make_params(rng, CONFIG).tree
    short, long = (list(generate(p, CONFIG, [[3]], n, seed=2**64 - 1)) for n in (9, 30))
    assert np.array_equal(long[:9], short)
    assert list(generate(p, CONFIG, [[3]], 0)) == []


@pytest.mark.parametrize("ids", [[[]], [[0, 11]], [[-1]]])
def test_a_prompt_that_the_model_cannot_take(rng, ids):
    p = make_params(rng, CONFIG).tree
    with pytest.raises(UserError, match="a prompt needs one id or more, from 0 to 10"):
        next(generate(p, CONFIG, np.array(ids, int), 1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(rng, value):
    params = make_params(rng, CONFIG)
    params.tree["wte"][7] = value
    tokens = generate(params.tree, CONFIG, [[0]], 5)
    with pytest.raises(UserError, match="the model's logits are not finite, so its weights have"):
        next(tokens)


def test_the_cache_hands_out_views_and_counts_when_told():
    kv = KVCache(CONFIG, 2, np, np.float32)
    assert kv.store.dtype == np.float32 and kv.store.shape == (2, 2, 2, 2, 6, 4)
    for start, T in ((0, 4), (4, 1), (5, 1)):
        for layer in range(2):
            k = np.full((2, 2, T, 4), 10 * layer + start, np.float32)
            k_all, v_all = kv[layer].append(k, -k)
            assert k_all.shape == v_all.shape == (2, 2, start + T, 4)
            assert np.shares_memory(k_all, kv.store) and np.shares_memory(v_all, kv.store)
            assert k_all[0, 0, :, 0].tolist()[start:] == [10 * layer + start] * T
            assert (v_all == -k_all).all() and k_all[0, 0, 0, 0] == 10 * layer
            assert kv.length == start
        kv.advance(np.array([[1] * T, [2] * T]))
        assert kv.previous.tolist() == [1, 2]
    one = np.zeros((2, 2, 1, 4), np.float32)
    with pytest.raises(ValueError, match="7 tokens, but there is room for 6"):
        kv[0].append(one, one)
    kv.reset()
    assert (
        kv.previous is None and kv.length == 0 and kv[1].append(one, one)[0].shape == (2, 2, 1, 4)
    )


def test_a_step_allocates_little(rng):
    config = gpt_config(vocab_size=11, block_size=512, n_layer=4, n_head=2, n_embd=32)
    params = make_params(rng, config)
    tokens = generate(params.tree, config, np.zeros((4, 500), int), 9)
    next(tokens)
    next(tokens)
    tracemalloc.start()
    try:
        for _ in tokens:
            pass
        # Less than the keys of one layer: the cache is neither copied nor allocated again.
        assert tracemalloc.get_traced_memory()[1] < 4 * 512 * 32 * 8
    finally:
        tracemalloc.stop()


def naive_probabilities(row, temperature, top_k, top_p):
    """One row, in plain Python."""
    V = len(row)
    if temperature == 0:
        return [float(i == row.index(max(row))) for i in range(V)]
    kth = sorted(row, reverse=True)[min(top_k or V, V) - 1]
    weights = [math.exp((x - max(row)) / temperature) if x >= kth else 0.0 for x in row]
    probabilities = [w / sum(weights) for w in weights]
    kept, mass = [], 0.0
    for i in sorted(range(V), key=lambda i: (-probabilities[i], i)):
        if top_p < 1 and mass >= top_p:
            break
        kept.append(i)
        mass += probabilities[i]
    return [probabilities[i] / mass if i in kept else 0.0 for i in range(V)]


ROWS = st.integers(1, 12).flatmap(
    lambda V: st.lists(
        st.lists(st.integers(-6, 6).map(lambda i: i / 2), min_size=V, max_size=V),
        min_size=1,
        max_size=3,
    )
)


@settings(max_examples=3 * settings().max_examples)  # it is quick
@given(
    ROWS,
    st.sampled_from([0.8, 0.25, 3.0, 0.0]),
    st.integers(0, 14),
    st.sampled_from([1.0, 0.97, 0.77, 0.31, 1e-9]),
)
def test_probabilities_are_those_of_the_naive_rules(rows, temperature, top_k, top_p):
    found = next_probabilities(np.array(rows, np.float32), temperature, top_k, top_p)
    expected = [naive_probabilities(row, temperature, top_k, top_p) for row in rows]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    assert ((found > 0).sum(axis=1) >= 1).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-14)


def test_the_rules_at_their_edges():
    z = np.array([[1.0, 3.0, 3.0, 2.0]])
    assert next_probabilities(z, 0.0).tolist() == [[0, 1, 0, 0]]
    assert next_probabilities(z, 1.0, 1).tolist() == [[0, 0.5, 0.5, 0]]
    assert (next_probabilities(z, 1.0, 3) > 0).tolist() == [[False, True, True, True]]
    assert (next_probabilities(z, 1.0, 4) > 0).all()
    assert next_probabilities(z, 1.0, 0, 1e-9).tolist() == [[0, 1, 0, 0]]
    assert next_probabilities(z, 1.0, 1, 0.6).tolist() == [[0, 0.5, 0.5, 0]]
    assert next_probabilities(z, 1.0, 1, 0.5).tolist() == [[0, 1, 0, 0]]
    assert next_probabilities(z, math.inf).tolist() == [[0.25] * 4]
    assert next_probabilities(z, 5e-324).tolist() == [[0, 0.5, 0.5, 0]]
    assert next_probabilities(z * 1e300, 1.0).tolist() == [[0, 0.5, 0.5, 0]]


def test_draws_follow_the_probabilities():
    probabilities = np.array([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    n = 1000
    uniforms = (np.arange(n) + 0.5) / n
    ids = draw(np.repeat(probabilities, n, axis=0), uniforms)
    assert np.bincount(ids, minlength=6).tolist() == [0, 250, 0, 500, 250, 0]


@given(
    st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 0.3, 1.0]), min_size=1, max_size=9),
    st.one_of(st.sampled_from([0.0, 1 - 2**-53]), st.floats(0, 1, exclude_max=True)),
)
def test_what_has_no_probability_is_never_drawn(weights, u):
    weights = np.array([[*weights, 0.2, 0.0]])
    probabilities = weights / weights.sum()
    (i,) = draw(probabilities, np.array([u]))
    assert probabilities[0, i] > 0
