"""Decoding with a KV cache against the full forward pass."""

import math
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from minigpt.backend import to_device, to_host
from minigpt.backend.cpu import crew
from minigpt.backend.cpu.crew import size
from minigpt.backend.cpu.threads import Threads
from minigpt.errors import UserError
from minigpt.model.gpt import gpt_forward, logits, shapes
from minigpt.params import Params
from minigpt.sample import generate as decoding
from minigpt.sample.generate import generate, threads_of
from minigpt.sample.sampling import next_probabilities
from tests.tools.options import gpt_config

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("options", OPTIONS[::3], ids=["", "rotary-bigram"])
@pytest.mark.parametrize(
    "threads, reading, stepping", [(1, 1, 1), (2, 2, 2), (3, 3, 2), (12, 1, 9)]
)
def test_rows_are_the_same_over_threads(rng, monkeypatch, options, threads, reading, stepping):
    config = replace(CONFIG, **options)
    p = make_params(rng, config).tree
    prompt = rng.integers(config.vocab_size, size=(9, 5))
    expected = list(generate(p, config, prompt, 20, seed=1, threads=1))
    monkeypatch.setattr(decoding, "PART_WORK", 1)
    seen, run = [], decoding.next_logits

    def recording(ids, *args):
        seen.append((ids.shape[1], len(ids), size()))
        return run(ids, *args)

    monkeypatch.setattr(decoding, "next_logits", recording)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 18)  # two of each of nine rows
    monkeypatch.setattr(decoding, "gpt_forward", passes := mock.Mock(side_effect=gpt_forward))
    tokens = generate(p, config, prompt, 20, seed=1, threads=threads)
    new = [next(tokens)]
    assert [n for n, *_ in seen] == [5] * reading and sum(rows for _, rows, _ in seen) == 9
    assert {lent for *_, lent in seen} == {threads if reading == 1 else 1}
    assert {call.args[0].shape[1] for call in passes.call_args_list} == {1, 2}
    seen.clear()
    new.append(next(tokens))
    assert [n for n, *_ in seen] == [1] * stepping and sum(rows for _, rows, _ in seen) == 9
    np.testing.assert_array_equal(new + list(tokens), expected)


def test_threads_have_enough_to_do():
    config = gpt_config(vocab_size=8, block_size=64, n_layer=1, n_head=1, n_embd=1024, bigram=True)
    # The layer's products are three eighths of PART_WORK.
    assert [threads_of(config, 1, n, 99) for n in (2, 5, 6, 20, 64)] == [1, 1, 2, 7, 24]
    assert [threads_of(config, 20, n, 4) for n in (1, 2)] == [4, 4]
    assert [threads_of(config, n, 1, 4) for n in (1, 3, 4, 7, 8, 12, 99)] == [1, 1, 1, 1, 2, 3, 4]
    assert [threads_of(config, n, 1, 9) for n in (6, 8, 9, 10)] == [2, 3, 3, 2]
    large = replace(config, vocab_size=2**20, bigram=False)  # a head: 32 times PART_WORK
    assert [threads_of(large, 1, n, 99) for n in (1, 2, 20)] == [1, 32, 39]
    assert [threads_of(large, n, 1, 4) for n in (2, 3, 4, 5, 7, 8)] == [2, 3, 4, 1, 1, 2]
    few = replace(config, n_embd=64)
    assert [threads_of(few, n, 1, 4) for n in (20, 4 * 2**25 // (12 * 64**2))] == [1, 4]


def new_threads(before):
    return set(threading.enumerate()) - before


def test_an_iterator_has_threads_for_its_prompts_and_for_many_rows(rng, monkeypatch):
    p, before, made = make_params(rng, CONFIG).tree, set(threading.enumerate()), []
    monkeypatch.setattr(decoding, "PART_WORK", 1)
    monkeypatch.setattr(decoding, "usable_cores", lambda: 3)
    monkeypatch.setattr(decoding, "Threads", lambda n: made.append(n) or Threads(n))
    for rows, counts in (5, [1, 3]), (8, [2, 3]), (2, [2, 3]):
        tokens = generate(p, CONFIG, [[3, 4]] * rows, 3)
        next(tokens)
        assert made == counts and len(new_threads(before)) == counts[0] - 1
        tokens.close()
        assert not new_threads(before)
        made.clear()
    list(generate(p, CONFIG, [[3]] * 5, 3))  # there is nothing to read
    assert made == [1]


@pytest.mark.report("16")
def test_where_threads_cannot_be_started_one_does_it_all(rng, monkeypatch):
    p = make_params(rng, CONFIG).tree
    expected = list(generate(p, CONFIG, [[3, 4]] * 8, 9, threads=1))
    monkeypatch.setattr(decoding, "PART_WORK", 1)
    monkeypatch.setattr(threading.Thread, "start", mock.Mock(side_effect=RuntimeError("no more")))
    np.testing.assert_array_equal(list(generate(p, CONFIG, [[3, 4]] * 8, 9, threads=4)), expected)


@pytest.mark.filterwarnings("error")
def test_threads_that_read_overflow_without_a_word(rng, monkeypatch):
    monkeypatch.setattr(decoding, "PART_WORK", 1)
    monkeypatch.setattr(crew, "PART", 1)
    params = make_params(rng, CONFIG)
    params.flat[...] *= 1e300
    with np.errstate(all="raise"), pytest.raises(UserError, match="logits are not finite"):
        next(generate(params.tree, CONFIG, [[3, 4, 5]], 1, threads=2))


@pytest.mark.parametrize("rows", [1, 8])
def test_python_ends_with_an_iterator_that_is_left(rows):
    code = f"""
        import numpy as np
        from minigpt.model.init import init_params
        from minigpt.sample import generate
        from tests.sample.test_generate import CONFIG
        generate.PART_WORK = 1
        p = init_params(CONFIG, 1, np).tree
        tokens = generate.generate(p, CONFIG, [[3, 4]] * {rows}, 9, threads=2)
        print(len(next(tokens)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout, done.stderr, done.returncode) == (f"{rows}\n", "", 0)


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
