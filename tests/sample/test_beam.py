"""Decoding of the encoder-decoder: against the full forward, and against all there is."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from minigpt.backend import to_device, to_host
from minigpt.data.pairs import padded
from minigpt.errors import UserError
from minigpt.model.encoder_decoder import (
    Seq2SeqConfig,
    encoder_forward,
    loss_forward,
    seq2seq_forward,
    shapes,
)
from minigpt.model.gpt import logits
from minigpt.params import Params
from minigpt.sample import beam
from minigpt.sample.beam import DecoderCache, next_logits, search

CONFIG = Seq2SeqConfig(7, 8, 2, 2, 8, source_vocab_size=5)
TURNED = replace(CONFIG, rotary=True, bigram=True)
configs = pytest.mark.parametrize("config", [CONFIG, TURNED], ids=["", "rotary with bigrams"])
END = CONFIG.vocab_size - 1
SOURCES = padded([[0, 1, 2, 3], [3], [1, 1, 4], [2, 0]])


def make_params(rng, config, xp=np, scale=0.5):
    """Params in float64 with large weights, so that each token has its say."""
    params = Params(shapes(config), xp, "float64")
    params.flat[...] = to_device(scale * rng.standard_normal(params.size), xp)
    return params


def full_logits(source, ids, p, config, xp=np):
    """Logits after END and each of ids, as far as there is room, without a cache."""
    rows = source, [*ids, 0][: config.block_size]
    arrays = (to_device(np.array([row], np.int32), xp) for row in rows)
    return to_host(logits(seq2seq_forward(*arrays, p, config)[0], p))[0]


def log_probs(z):
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def score(source, target, p, config):
    """Log-probability of a target, END included where it has one."""
    z = log_probs(full_logits(source, target, p, config))
    return sum(z[t, i] for t, i in enumerate(target))


@pytest.mark.cupy
@configs
@pytest.mark.parametrize("width", [1, 3])
def test_cached_decoding_is_the_full_forward(rng, xp, monkeypatch, width, config):
    p, seen = make_params(rng, config, xp).tree, []
    real = beam.next_logits

    def recording(ids, *args):
        seen.append((ids[:, 0], real(ids, *args)))
        return seen[-1][1]

    monkeypatch.setattr(beam, "next_logits", recording)
    found = search(SOURCES, p, config, width)
    assert len(seen) > 2
    for row, (source, hypotheses) in enumerate(zip(SOURCES, found, strict=True)):
        rows = slice(row * width, row * width + width)
        for best in hypotheses:
            z = full_logits(source[source >= 0], best.ids, p, config, xp)
            for t in range(len(best.ids)):
                # of the rows in this step, one had seen this hypothesis
                distances = [abs(one - z[t]).max() for one in seen[t][1][rows]]
                assert min(distances) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed):
    p = make_params(np.random.default_rng(seed), CONFIG).tree
    for source, (best,) in zip(SOURCES, search(SOURCES, p, CONFIG, 1), strict=True):
        ids, total = [], 0.0
        while len(ids) < CONFIG.block_size:
            z = log_probs(full_logits(source[source >= 0], ids, p, CONFIG)[-1])
            ids.append(int(z.argmax()))
            total += z.max()
            if ids[-1] == END:
                break
        assert best.ids == ids[: len(ids) - best.ended] and best.ended == (ids[-1] == END)
        np.testing.assert_allclose(best.log_prob, total, rtol=1e-12)
        np.testing.assert_allclose(best.score, total / len(ids), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"rotary": True, "bigram": True}], ids=["", "turned"])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_of_all(seed, options):
    config = Seq2SeqConfig(3, 4, 1, 2, 8, source_vocab_size=5, **options)
    p = make_params(np.random.default_rng(seed), config).tree
    complete = [
        [*ids, 2] for n in range(config.block_size) for ids in itertools.product((0, 1), repeat=n)
    ]
    everything = complete + [list(ids) for ids in itertools.product((0, 1), repeat=4)]
    for source, found in zip(SOURCES, search(SOURCES, p, config, 31), strict=True):
        source = source[source >= 0]
        scores = sorted((score(source, t, p, config) / len(t), t) for t in everything)[::-1]
        assert len(found) == len(everything) == 31
        for best, (expected, target) in zip(found, scores, strict=True):
            assert best.ids + [2] * best.ended == target
            np.testing.assert_allclose(best.score, expected, rtol=1e-10)
            np.testing.assert_allclose(best.log_prob, expected * len(target), rtol=1e-10)


def test_a_wider_beam_finds_better_ones(rng):
    found = {1: [], 2: [], 8: []}
    for _ in range(20):
        p = make_params(rng, CONFIG, scale=0.2).tree
        for width, scores in found.items():
            scores += [row[0].score for row in search(SOURCES, p, CONFIG, width)]
    assert np.mean(found[1]) < np.mean(found[2]) < np.mean(found[8])


def test_hypotheses_are_sorted_and_all_different(rng):
    p = make_params(rng, CONFIG).tree
    for row in search(SOURCES, p, CONFIG, 5):
        assert len({tuple(h.ids) + (h.ended,) for h in row}) == len(row) == 5
        assert [h.score for h in row] == sorted((h.score for h in row), reverse=True)
        assert all(END not in h.ids and len(h.ids) <= CONFIG.block_size for h in row)


def test_the_log_probability_is_what_training_maximises(rng):
    p = make_params(rng, CONFIG).tree
    for source, row in zip(SOURCES, search(SOURCES, p, CONFIG, 3), strict=True):
        for best in row:
            target = np.array([best.ids + [END] * best.ended])
            loss, _ = loss_forward(source[None, source >= 0], target, p, CONFIG, count=1)
            np.testing.assert_allclose(best.log_prob, -loss, rtol=1e-11)


def test_a_source_alone_is_as_among_others(rng):
    p = make_params(rng, CONFIG).tree
    for source, row in zip(SOURCES, search(SOURCES, p, CONFIG, 3), strict=True):
        (alone,) = search(source[None, source >= 0], p, CONFIG, 3)
        assert [h.ids for h in alone] == [h.ids for h in row]
        np.testing.assert_allclose([h.score for h in alone], [h.score for h in row], rtol=1e-11)


def test_fewer_hypotheses_than_the_beam(rng):
    config = Seq2SeqConfig(2, 1, 1, 2, 8, source_vocab_size=5)  # END or the one token, and no more
    for row in search(SOURCES[:, :1], make_params(rng, config).tree, config, 4):
        assert sorted((h.ids, h.ended) for h in row) == [([], True), ([0], False)]


def test_weights_that_have_diverged_are_an_error(rng):
    params = make_params(rng, CONFIG)
    params.tree["ln_f"]["b"][0] = np.nan
    with pytest.raises(UserError, match="logits are not finite"):
        search(SOURCES, params.tree, CONFIG)


@pytest.mark.cupy
def test_a_row_that_is_taken_goes_on_as_the_other_did(rng, xp):
    p = make_params(rng, TURNED, xp).tree
    memory, seen, _ = encoder_forward(
        to_device(np.array([[0, 1], [0, 1]], np.int32), xp), p, TURNED
    )
    kv = DecoderCache(memory, p, TURNED, 1)
    next_logits(np.array([[END], [END]]), seen, p, TURNED, kv)
    next_logits(np.array([[2], [3]]), seen, p, TURNED, kv)
    kv.take(np.array([1, 1]))
    z = next_logits(np.array([[4], [4]]), seen, p, TURNED, kv)
    np.testing.assert_array_equal(z[0], z[1])
    expected = full_logits([0, 1], [3, 4], p, TURNED, xp)[2]
    np.testing.assert_allclose(z[0], expected, rtol=0, atol=1e-12)
