"""One token in few calls against the models' own passes, which are the definition."""

import numpy as np
import pytest

from minigpt.backend import plain
from minigpt.model.encoder_decoder import Seq2SeqConfig, decoder_forward
from minigpt.model.gpt import gpt_forward
from minigpt.model.lora import Lora, adapter_shapes, join
from minigpt.params import Params
from minigpt.sample import beam, generate
from minigpt.sample.beam import DecoderCache
from minigpt.sample.kv_cache import KVCache
from minigpt.sample.step import step
from tests.tools.options import gpt_config, rows

SIZES = {"vocab_size": 11, "block_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 8}
CONFIGS = {k: gpt_config(**SIZES, **options) for k, options in rows("share_embedding").items()}
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


def draw(rng, shapes, dtype="float64"):
    """Params with weights so large that each has its say."""
    params = Params(shapes, np, dtype)
    params.flat[...] = 0.5 * rng.standard_normal(params.size)
    return params


def in_turns(ids, kvs, one, other):
    """Run the columns of ids but the first through both, and compare what they return and keep."""
    tolerance = TOLERANCE[kvs[0].store.dtype.name]
    for t in range(1, ids.shape[1]):
        length, new = t + 1, ids[:, t : t + 1]
        y, expected = one(new, kvs[0]), other(new, kvs[1])
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)
        assert kvs[0].length == length and (kvs[0].previous == ids[:, t]).all()
        stored, right = (kv.store[..., :length, :] for kv in kvs)
        np.testing.assert_allclose(stored, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("adapted", [False, True])
def test_a_step_is_the_forward_pass_of_one_token(rng, config, dtype, adapted):
    p = draw(rng, config.shapes(), dtype).tree
    if adapted:
        lora = Lora(rank=2, alpha=3.0, targets=("c_attn", "c_proj", "c_fc"), dropout=0.5)
        p = join(p, draw(rng, adapter_shapes(config, lora), dtype).tree, lora)
    ids = rng.integers(config.vocab_size, size=(3, config.block_size))
    kvs = [KVCache(config, 3, np, dtype) for _ in range(2)]
    for kv in kvs:
        gpt_forward(ids[:, :1], p, config, kv=kv)
    in_turns(
        ids,
        kvs,
        lambda new, kv: step(new, p, config, kv),
        lambda new, kv: gpt_forward(new, p, config, kv=kv)[0][:, 0],
    )
    with pytest.raises(ValueError, match="8 tokens|positions 7 to 7"):
        step(ids[:, :1], p, config, kvs[0])


@pytest.mark.parametrize("turned", [False, True])
def test_a_step_of_a_decoder_reads_what_it_may_of_the_memory(rng, turned):
    config = Seq2SeqConfig(7, 5, 2, 2, 8, source_vocab_size=5, rotary=turned, bigram=turned)
    p = draw(rng, config.shapes()).tree
    memory, seen = rng.standard_normal((3, 4, 8)), np.arange(4) < np.array([[4], [2], [0]])
    kvs = [DecoderCache(memory, p, config, 1) for _ in range(2)]
    ids = rng.integers(config.vocab_size, size=(3, 5))
    for kv in kvs:
        decoder_forward(ids[:, :1], None, seen, p, config, kv=kv)
    in_turns(
        ids,
        kvs,
        lambda new, kv: step(new, p, config, kv, seen),
        lambda new, kv: decoder_forward(new, None, seen, p, config, kv=kv)[0][:, 0],
    )
    unseen = memory + 100.0 * ~seen[..., None]
    caches = (DecoderCache(m, p, config, 1) for m in (memory, unseen))
    np.testing.assert_array_equal(*(step(ids[:, :1], p, config, kv, seen) for kv in caches))


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu"])
def test_many_rows_go_through_the_activation_in_blocks(rng, kind):
    config = gpt_config(11, 2, 1, 2, 32, activation=kind)
    p = draw(rng, config.shapes(), "float32").tree
    ids = rng.integers(11, size=(1100, 1))
    kvs = [KVCache(config, len(ids), np, "float32") for _ in range(2)]
    y, expected = step(ids, p, config, kvs[0]), gpt_forward(ids, p, config, kv=kvs[1])[0][:, 0]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    some = step(ids[-9:], p, config, KVCache(config, 9, np, "float32"))
    np.testing.assert_allclose(y[-9:], some, rtol=0, atol=1e-5)


def test_decoding_takes_steps_but_not_in_plain_mode(rng, monkeypatch):
    config, calls = gpt_config(**SIZES), []
    p = draw(rng, config.shapes()).tree
    for module in (generate, beam):
        monkeypatch.setattr(module, "step", lambda *args: calls.append(args) or step(*args))
    list(generate.generate(p, config, [[1, 2, 3]], 4))
    assert len(calls) == 3  # the prompt is read in one pass
    with plain():
        list(generate.generate(p, config, [[1, 2, 3]], 4))
    assert len(calls) == 3
    config = Seq2SeqConfig(7, 5, 1, 2, 8, source_vocab_size=5)
    p = draw(rng, config.shapes()).tree
    search = beam.search(np.array([[1, 2]], np.int32), p, config, 2)
    assert search and len(calls) > 3
