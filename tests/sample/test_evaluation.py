"""The mean loss over a split, and even parts of it."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.bpe_files import END_OF_TEXT, Table
from minigpt.data.pairs import Pairs
from minigpt.data.subwords import BpeTokenizer
from minigpt.data.tokenizers import PairTokenizer
from minigpt.model.init import init_params
from minigpt.model.recompute import Again
from minigpt.sample.evaluation import (
    GROUP,
    bits_per_byte,
    count_bytes,
    even_part,
    mean_loss,
    spread,
)
from minigpt.sample.tasks import TASKS
from tests.tools.options import gpt_config


@given(st.integers(1, 10**9), st.integers(1, 1000))
def test_a_part_is_spread_evenly_over_the_whole(n, k):
    which = spread(n, min(k, n))
    gaps = np.diff(which, append=n)
    assert len(which) == min(k, n) and which[0] == 0 and which[-1] < n
    assert gaps.min() >= 1 and gaps[:-1].max(initial=0) - gaps.min() <= 1


def test_a_split_within_the_limit_is_evaluated_whole():
    assert even_part(10, 100, 100) is None
    assert even_part(10, 100, 50).tolist() == [0, 2, 4, 6, 8]
    assert even_part(3, 10**9, 1).tolist() == [0]


def test_a_part_and_the_rest_have_the_mean_of_the_whole():
    config = gpt_config(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=8)
    params, task = init_params(config, 0, np), TASKS["text"]
    ids, done = np.random.default_rng(0).integers(0, 5, 3000).astype(np.int32), []

    def mean(which, show=None):
        batches = task.eval_batches(ids, config, 4, which)
        return mean_loss(task, params, config, batches, show=show)

    items, targets = task.eval_size(ids, config)
    part = even_part(items, targets, 700)
    rest = np.delete(np.arange(items), part)
    (one, n), (other, m), (whole, count) = mean(part), mean(rest), mean(None, done.append)
    assert n + m == count == targets == len(ids) - 1 and abs(n - 700) <= 8
    assert (n * one + m * other) / count == pytest.approx(whole, rel=1e-6)
    assert done[-1] == count and len(done) == -(-items // (4 * GROUP))


@pytest.mark.parametrize("name", TASKS)
def test_an_evaluation_keeps_no_caches_of_blocks(name):
    config = TASKS[name].config(vocab_size=11, block_size=4, n_layer=2, n_head=1, n_embd=8)
    ids, caches = np.arange(8, dtype=np.int32).reshape(2, 4), []

    def loss_forward(*args, **kwargs):
        loss, cache = TASKS[name].loss_forward(*args, **kwargs)
        caches.append(cache[0])
        return loss, cache

    task = dataclasses.replace(TASKS[name], loss_forward=loss_forward)
    mean_loss(task, init_params(config, 0, np), config, [(ids, ids)])
    stacks = caches if name == "text" else caches[0][:2]  # encoder and decoder
    kept = [cache for _, blocks, _ in stacks for cache in blocks]
    assert len(kept) == 2 * len(stacks) and all(isinstance(cache, Again) for cache in kept)


def test_a_uniform_guess_of_bytes_takes_eight_bits_for_each():
    assert bits_per_byte(math.log(256), 10, 10) == pytest.approx(8)
    assert bits_per_byte(math.log(65536), 5, 10) == pytest.approx(8)  # tokens of two bytes
    assert bits_per_byte(1.0, 3, 0) is None


@pytest.mark.parametrize("where", ["numpy", pytest.param("cupy", marks=pytest.mark.cupy)])
def test_bytes_are_those_of_the_targets_of_the_items_that_are_meant(where):
    xp = pytest.importorskip(where)
    config = gpt_config(vocab_size=5, block_size=4)
    ids, lengths = (
        xp.asarray([4, 0, 1, 2, 3, 4, 0, 1, 2, 2, 3], np.uint8),
        np.array([1, 2, 3, 4, 7]),
    )
    size = {0: 1 + 2 + 3 + 4, 1: 7 + 1 + 2 + 3, 2: 3 + 4}  # by window; the first id is no target
    for which in (None, [0], [1], [2], [0, 2]):
        items = range(3) if which is None else which
        part = None if which is None else np.array(which)
        count = sum({0: 4, 1: 4, 2: 2}[i] for i in items)
        found = count_bytes(TASKS["text"], ids, config, lengths, part)
        assert found == (count, sum(size[i] for i in items))


def test_the_end_of_a_target_and_its_padding_have_no_bytes():
    pairs = [("a", "é"), ("b", "漢字x"), ("c", "y" * 5), ("d", "😀")]
    tokenizer = PairTokenizer.from_pairs(pairs)
    split = Pairs(pairs, tokenizer)
    found = count_bytes(TASKS["seq2seq"], split, None, tokenizer.byte_lengths)
    assert found == (sum(len(t) + 1 for _, t in pairs), sum(len(t.encode()) for _, t in pairs))
    which = np.array([0, 3])  # in the order of evaluations, short ones first
    chosen = [pairs[i][1] for i in split.order[which]]
    found = count_bytes(TASKS["seq2seq"], split, None, tokenizer.byte_lengths, which)
    assert found == (sum(len(t) + 1 for t in chosen), sum(len(t.encode()) for t in chosen))


def test_special_tokens_have_no_bytes_and_are_no_targets_of_plain_text():
    pytest.importorskip("tokenizers")
    text = f"Wörter: 漢字, 😀! {END_OF_TEXT} " * 20
    plain = BpeTokenizer.train([text], 290)
    end = {END_OF_TEXT: plain.vocab_size}
    tokenizer = BpeTokenizer(Table(plain.vocab, plain.merges, end, END_OF_TEXT))
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.byte_lengths[tokenizer.end_of_text] == 0
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    config = gpt_config(vocab_size=tokenizer.vocab_size, block_size=8)
    first = int(tokenizer.byte_lengths[ids[0]])
    found = count_bytes(TASKS["text"], ids, config, tokenizer.byte_lengths)
    assert found == (len(ids) - 1, len(text.encode()) - first)
