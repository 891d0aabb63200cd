"""Models that embed each pair of neighbouring tokens."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from minigpt.errors import UserError
from minigpt.model import count_parameters
from minigpt.model.encoder_decoder import Seq2SeqConfig, encoder_forward, seq2seq_forward, shapes
from minigpt.model.gpt import bigrams, gpt_backward, gpt_forward
from minigpt.model.init import init_params
from minigpt.train.config import check_size
from tests.tools.gradcheck import map_tree
from tests.tools.options import gpt_config

CONFIG = gpt_config(vocab_size=7, block_size=6, n_layer=1, n_head=2, n_embd=8, bigram=True)
READER = Seq2SeqConfig(7, 6, 1, 2, 8, source_vocab_size=5, bigram=True)
TOKENS = np.array([[3, 0, 3, 3], [1, 3, 5, 0]], np.int32)
IDS = np.array([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]], np.int32)


def drawn(rng, params):
    return map_tree(lambda x: rng.standard_normal(x.shape), params.tree)


@pytest.mark.parametrize("bigram", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_without_blocks_a_token_sees_itself_and_the_one_before_it(rng, rotary, bigram):
    config = replace(CONFIG, rotary=rotary, bigram=bigram)
    p = {**drawn(rng, init_params(config, 0, np)), "h": []}
    x, _ = gpt_forward(IDS, p, config)
    for t in range(5):
        changed = IDS.copy()
        changed[:, t] = (IDS[:, t] + 1) % 7
        seen = (gpt_forward(changed, p, config)[0] != x).any(axis=(0, 2))
        assert seen.nonzero()[0].tolist() == [t, t + 1][: 1 + (bigram and t < 4)]


def test_a_gradient_goes_to_the_pair_that_stands_there(rng):
    p = {**drawn(rng, init_params(CONFIG, 0, np)), "h": []}
    x, cache = gpt_forward(IDS, p, CONFIG)
    for t, before in enumerate([7, 3, 1, 4, 1]):
        dx = np.zeros_like(x)
        dx[0, t] = rng.standard_normal(8)
        grads = gpt_backward(dx, cache)
        (pair,) = grads["wbe"].any(axis=1).nonzero()[0]
        assert pair == 7 * before + IDS[0, t]
        np.testing.assert_array_equal(grads["wbe"][pair], grads["wte"][IDS[0, t]])


def test_pairs_beside_tokens_are_added(rng):
    p = drawn(rng, init_params(CONFIG, 0, np))
    without = {**p, "wbe": 0 * p["wbe"]}
    plain = {name: x for name, x in p.items() if name != "wbe"}
    x, _ = gpt_forward(IDS, without, CONFIG)
    np.testing.assert_array_equal(x, gpt_forward(IDS, plain, replace(CONFIG, bigram=False))[0])
    assert (gpt_forward(IDS, p, CONFIG)[0] != x).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_each_side_of_an_encoder_decoder_has_its_pairs(rng, rotary, shared):
    config = replace(READER, share_embedding=shared, rotary=rotary)
    found, n = shapes(config), 7 if shared else 5
    assert found["wbe"] == (56, 8) and found["encoder"]["wbe"] == (n * (n + 1), 8)
    for side in (found, found["encoder"]):
        assert ("wpe" in side) != rotary
    assert ("wte" in found["encoder"]) != shared
    p = drawn(rng, init_params(config, 0, np))
    source = IDS % 5
    memory, _, _ = encoder_forward(source, p, config)
    y, _ = seq2seq_forward(source, IDS, p, config)
    p["wbe"][7 * 3 + 1] += rng.standard_normal(8)  # a pair of the target alone
    assert (encoder_forward(source, p, config)[0] == memory).all()
    changed = (seq2seq_forward(source, IDS, p, config)[0] != y).any(axis=2)
    # The decoder reads END before the first token: it meets 3, 1 at its third.
    assert changed.tolist() == [[False, False, True, True, True], [False] * 5]


def test_the_table_is_counted_and_refused_where_it_has_no_room():
    plain = replace(CONFIG, bigram=False)
    assert count_parameters(CONFIG) - count_parameters(plain) == 56 * 8
    wide = replace(plain, vocab_size=46340, n_head=1, n_embd=16384, n_layer=1)
    check_size(wide)
    with pytest.raises(UserError, match="no machine holds so many"):
        check_size(replace(wide, bigram=True))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rotary": True, "n_head": 8}, "rotary turns pairs .* is 1, which is odd"),
        ({"rotary": True, "n_embd": 6, "n_head": 2}, "n_embd / n_head is 3, which is odd"),
        ({"vocab_size": 46341}, "pairs of 46341 tokens, .* vocabulary of at most 46340"),
        ({"source_vocab_size": 46341}, "pairs of 46341 tokens, .* vocabulary of at most 46340"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(wrong, message):
    with pytest.raises(UserError, match=message) as error:
        replace(READER, **wrong)
    assert "\n" not in str(error.value)


@pytest.mark.cupy
@pytest.mark.parametrize("previous", [None, [4, 0]])
@pytest.mark.parametrize("T", [0, 1, 4])
def test_bigrams_number_each_token_with_the_one_before_it(xp, T, previous):
    ids, V = xp.asarray(TOKENS[:, :T]), 6
    before = None if previous is None else xp.asarray(np.array(previous, np.int32))
    pairs = bigrams(ids, V, before)
    assert pairs.dtype == np.int32 and pairs.shape == (2, T)
    for row, found in enumerate(pairs.tolist()):
        read = [V if previous is None else previous[row], *TOKENS[row, :T].tolist()]
        assert found == [V * a + b for a, b in pairwise(read)]
        assert all(0 <= pair < V * (V + 1) for pair in found)
    assert ids.tolist() == TOKENS[:, :T].tolist()  # as they were


def test_no_two_pairs_have_one_number():
    pairs = [bigrams(np.array([[a, b]]), 5) for a in range(5) for b in range(5)]
    assert len({int(pair[0, 1]) for pair in pairs} | {int(p[0, 0]) for p in pairs}) == 5 * 6


@pytest.mark.parametrize("cut", range(1, 4))
def test_bigrams_in_parts_are_those_of_the_whole(cut):
    parts = bigrams(TOKENS[:, :cut], 6), bigrams(TOKENS[:, cut:], 6, TOKENS[:, cut - 1])
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), bigrams(TOKENS, 6))
