"""Models that are exported and read by transformers, live: the same logits, gradients and text."""

import numpy as np
import pytest

from minigpt.data.tokenizers import CharTokenizer
from minigpt.interchange.export import export
from minigpt.model.gpt import gpt_forward, logits, loss_and_gradients
from minigpt.params import Params
from minigpt.sample.generate import generate
from tests.tools import reference
from tests.tools.gradcheck import assert_same, leaves
from tests.tools.options import gpt_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference

SIZES = 37, 70, 2, 3, 18  # vocab_size, block_size, n_layer, n_head, n_embd
TEXT = "Sí, señor: naïve\n\n  “quotes” and\ttabs — 3,141 😀 tokens.\n" * 3
LEARNT = {
    "GPT-2's options": {"bias": True, "activation": "gelu_tanh"},
    "nanoGPT's options": {"bias": False},
    "relu, no biases of q, k, v": {"bias": True, "qkv_bias": False, "activation": "relu"},
    "biases of q, k, v alone": {"bias": False, "qkv_bias": True},
    "untied": {"bias": True, "tie_head": False},
}
ROTARY = {
    "quality": {"bias": False, "activation": "relu"},
    "biases": {"bias": True, "activation": "gelu"},
    "tanh gelu, untied": {"bias": True, "activation": "gelu_tanh", "tie_head": False},
    "no biases of q, k, v": {"bias": True, "qkv_bias": False},
}


def random_params(config, seed=0):
    """Return float32 Params with no weight at its default."""
    rng = np.random.default_rng(seed)
    params = Params(config.shapes(), np, "float32")
    for name, w in params.leaves():
        w[...] = 0.3 * rng.standard_normal(w.shape) + ("ln_" in name and name.endswith("w"))
    return params


def by_transformers(folder):
    """Return the model that transformers reads from a folder, asserting that it finds all of it."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    torch.set_num_threads(1)
    return model.eval()


def exported(folder, config, params, tokenizer=None):
    export(folder, params, config, tokenizer)
    return by_transformers(folder)


def logits_of(model, ids):
    """Return the logits of a model of transformers, or of (params, config): (B, T, V)."""
    if isinstance(model, tuple):
        params, config = model
        return logits(gpt_forward(ids, params.tree, config)[0], params)
    with torch.no_grad():
        return model(torch.tensor(ids).long()).logits.numpy()


@pytest.mark.parametrize("options", LEARNT.values(), ids=LEARNT)
def test_gpt2_logits_and_every_gradient(tmp_path, options):
    config = gpt_config(*SIZES, **options)
    params = random_params(config)
    model = exported(tmp_path, config, params)
    ids, targets = reference.batch(config.vocab_size, 20)
    assert_same({"": logits_of((params, config), ids)}, {"": logits_of(model, ids)}, 1e-5)
    double = reference.as_float64(params)
    loss, grads = loss_and_gradients(ids, targets, double.tree, config)
    found = {"logits": logits_of((double, config), ids), "loss": loss, **dict(leaves(grads))}
    expected = reference.first_step(model, ids, targets)
    assert found.keys() <= expected.keys()  # biases that are missing here are zeros there
    assert_same(found, {name: expected[name] for name in found}, 1e-9)


@pytest.mark.parametrize("options", ROTARY.values(), ids=ROTARY)
def test_starcoder2_logits(tmp_path, options):
    config = gpt_config(*SIZES, rotary=True, **options)
    params = random_params(config)
    model = exported(tmp_path, config, params)
    assert isinstance(model, transformers.Starcoder2ForCausalLM)
    ids, _ = reference.batch(config.vocab_size, 70)
    assert_same({"": logits_of((params, config), ids)}, {"": logits_of(model, ids)}, 1e-5)


@pytest.mark.parametrize("rotary", [True, False])
def test_the_bias_of_a_head_moves_into_the_last_layernorm(tmp_path, rotary):
    options = {"tie_head": False, "head_bias": True, "rotary": rotary}
    config = gpt_config(17, 12, 2, 3, 18, **options)
    params = random_params(config)
    model = exported(tmp_path, config, params)
    ids, _ = reference.batch(17, 12)
    assert_same({"": logits_of((params, config), ids)}, {"": logits_of(model, ids)}, 1e-5)


@pytest.mark.parametrize("rotary", [True, False])
def test_fifty_greedy_tokens(tmp_path, rotary):
    config = gpt_config(*SIZES, bias=True, rotary=rotary, tie_head=False)
    params = random_params(config, seed=3)
    model = exported(tmp_path, config, params)
    ids, _ = reference.batch(config.vocab_size, 5, B=8)
    found = np.stack([*generate(params, config, ids, 50, temperature=0.0)], axis=1)
    assert len({*found.flat}) > 4  # not one token again and again
    np.testing.assert_array_equal(found, reference.greedy(model, ids, 50))


def assert_same_ids(folder, tokenizer, text):
    """Assert that AutoTokenizer gives a tokenizer's ids, and the text back."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text)
    assert theirs(text)["input_ids"] == ids.tolist()
    assert theirs.decode(ids) == text == tokenizer.decode(ids)
    assert len(theirs) == tokenizer.vocab_size


@pytest.mark.parametrize("rotary", [True, False])
def test_auto_tokenizer_gives_the_same_ids_of_characters(tmp_path, rotary):
    tokenizer = CharTokenizer.from_text(TEXT)
    config = gpt_config(tokenizer.vocab_size, 16, 1, 2, 8, rotary=rotary)
    exported(tmp_path, config, random_params(config), tokenizer)
    assert_same_ids(tmp_path, tokenizer, TEXT[::-1] + TEXT)


@pytest.mark.bpe
@pytest.mark.parametrize("rotary", [True, False])
def test_auto_tokenizer_gives_the_same_ids_of_subwords(tmp_path, rotary):
    from minigpt.data.subwords import BpeTokenizer

    tokenizer = BpeTokenizer.train([TEXT], 290)
    config = gpt_config(tokenizer.vocab_size, 16, 1, 2, 8, rotary=rotary)
    exported(tmp_path, config, random_params(config), tokenizer)
    assert_same_ids(tmp_path, tokenizer, TEXT[::-1] + TEXT + "什么 ничего")
