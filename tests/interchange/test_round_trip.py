"""A model that is exported and loaded again is the same, to the bit."""

import numpy as np
import pytest

from minigpt.data.tokenizers import CharTokenizer
from minigpt.interchange.export import export
from minigpt.interchange.loading import load_model
from minigpt.params import Params
from tests.tools.options import gpt_config

TEXT = "Sí, señor: naïve\n\n  “quotes” and\ttabs — 3,141 😀 tokens.\n" * 3
OPTIONS = {
    "GPT-2's options": {"bias": True, "activation": "gelu_tanh", "dropout": 0.1},
    "nanoGPT's options": {"bias": False},
    "relu, no biases of q, k, v": {"bias": True, "qkv_bias": False, "activation": "relu"},
    "biases of q, k, v alone": {"bias": False, "qkv_bias": True},
    "untied": {"bias": True, "tie_head": False},
}


def random_params(config):
    rng = np.random.default_rng(0)
    params = Params(config.shapes(), np, "float32")
    params.flat[...] = rng.standard_normal(params.size)
    return params


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_exported_comes_back_bit_for_bit(tmp_path, options, rotary):
    config = gpt_config(37, 12, 2, 3, 18, rotary=rotary, **options)
    params = random_params(config)
    export(tmp_path / "a", params, config)
    back = load_model(tmp_path / "a", np)
    found = dict(back.params.leaves())
    for name, w in params.leaves():
        np.testing.assert_array_equal(found.pop(name), w, err_msg=name)
    assert not any(w.any() for w in found.values())  # biases that it had not
    for name in ("rotary", "activation", "tie_head", "dropout", "block_size", "n_head"):
        assert getattr(back.config, name) == getattr(config, name)
    export(tmp_path / "b", back.params, back.config)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()


def same_tokenizer(folder, tokenizer):
    config = gpt_config(tokenizer.vocab_size, 12, 1, 2, 8, bias=True)
    export(folder, random_params(config), config, tokenizer)
    back = load_model(folder, np).tokenizer
    assert type(back) is type(tokenizer) and back.vocab_size == tokenizer.vocab_size
    assert back.end_of_text == tokenizer.end_of_text
    np.testing.assert_array_equal(back.encode(TEXT), tokenizer.encode(TEXT))
    assert back.to_json() == tokenizer.to_json()


def test_a_table_of_characters_comes_back(tmp_path):
    same_tokenizer(tmp_path, CharTokenizer.from_text(TEXT))


@pytest.mark.bpe
def test_a_table_of_subwords_comes_back(tmp_path):
    from minigpt.data.subwords import BpeTokenizer

    same_tokenizer(tmp_path, BpeTokenizer.train([TEXT], 290))
