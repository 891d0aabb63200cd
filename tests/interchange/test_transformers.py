"""GPT-2s of transformers read here, live: the same numbers, gradients and greedy text.

The weights are the same float32 numbers on both sides; what is computed with them in float64 must
agree to 1e-9.
"""

import numpy as np
import pytest

from minigpt.interchange.export import export
from minigpt.interchange.loading import load_model
from minigpt.model.gpt import gpt_forward, logits, loss_and_gradients
from minigpt.sample.generate import generate
from tests.tools import reference
from tests.tools.gradcheck import assert_same, leaves

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference

MODELS = {
    "GPT-2's options": {},
    "exact gelu": {"activation_function": "gelu"},
    "relu, n_inner": {"activation_function": "relu", "n_inner": 60},
    "another name of tanh gelu": {"activation_function": "gelu_pytorch_tanh"},
    "untied": {"tie_word_embeddings": False, "n_layer": 1},
    "untied, one head": {"tie_word_embeddings": False, "n_head": 1, "n_embd": 7, "vocab_size": 5},
    "deep and narrow": {"n_layer": 5, "n_head": 5, "n_embd": 5, "n_positions": 9},
    "wide": {"n_embd": 64, "n_head": 2, "vocab_size": 131},
}
FORMS = {
    "saved": {},
    "no prefix": {"prefix": False},
    "masks": {"buffers": "float32"},
    "no prefix, masks of bytes": {"prefix": False, "buffers": "uint8"},
    "masks of bits": {"buffers": "bool"},
    "head in the file": {"head": True},
    "no prefix, head in the file": {"prefix": False, "head": True},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, masks, no prefix": {"dtype": "bfloat16", "buffers": "bool", "prefix": False},
}


def by_transformers(folder):
    """Return what transformers reads from a folder, in float32."""
    return transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)


def assert_same_bits(checkpoint, model):
    """Assert that a checkpoint has exactly the weights of a model of transformers."""
    expected = reference.our_names(model)
    found = dict(checkpoint.params.leaves())
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_logits_and_every_gradient_are_those_of_transformers(tmp_path, options):
    model = reference.random_gpt2(**options)
    reference.save(model, tmp_path)
    checkpoint = load_model(tmp_path, np)
    config, params = checkpoint.config, reference.as_float64(checkpoint.params)
    ids, targets = reference.batch(config.vocab_size, min(config.block_size, 20))
    x, _ = gpt_forward(ids, checkpoint.params.tree, config)
    with torch.no_grad():
        expected = {"logits": reference.torch_loss(model, ids, targets)[0].numpy()}
    assert np.abs(expected["logits"]).max() > 1
    assert_same({"logits": logits(x, checkpoint.params)}, expected, 1e-5)
    loss, grads = loss_and_gradients(ids, targets, params, config)
    x, _ = gpt_forward(ids, params, config)
    found = {"logits": logits(x, params), "loss": loss, **dict(leaves(grads))}
    assert_same(found, reference.first_step(model, ids, targets), 1e-9)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_form_of_the_files_gives_the_same_weights(tmp_path, form):
    reference.save(reference.random_gpt2(), tmp_path, **form)
    checkpoint = load_model(tmp_path, np)
    assert checkpoint.config.tie_head and checkpoint.tokenizer is None
    assert_same_bits(checkpoint, by_transformers(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["5KB", "20KB"])
def test_shards_are_read_as_one_file(tmp_path, size, tied):
    model = reference.random_gpt2(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert len([*tmp_path.glob("model-*.safetensors")]) > 1
    checkpoint = load_model(tmp_path, np)
    assert checkpoint.config.tie_head == tied
    assert_same_bits(checkpoint, by_transformers(tmp_path))
    assert_same_bits(checkpoint, model)


@pytest.mark.parametrize("tied", [True, False])
def test_fifty_greedy_tokens_are_those_of_transformers(tmp_path, tied):
    model = reference.random_gpt2(tie_word_embeddings=tied)
    reference.save(model, tmp_path)
    checkpoint = load_model(tmp_path, np)
    ids, _ = reference.batch(checkpoint.config.vocab_size, 5, B=8)
    p, config = checkpoint.params, checkpoint.config
    found = np.stack([*generate(p, config, ids, 50, temperature=0.0)], axis=1)
    expected = reference.greedy(model, ids, 50)
    assert len({*expected.flat}) > 4  # not one token again and again
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saved_goes_back_bit_for_bit(tmp_path, tied):
    model = reference.random_gpt2(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = load_model(tmp_path / "theirs", np)
    export(tmp_path / "ours", checkpoint.params, checkpoint.config)
    found, expected = by_transformers(tmp_path / "ours").state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], w) for name, w in expected.items())


@pytest.mark.bpe
def test_the_ids_of_a_tokenizer_that_transformers_saved(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    table = tokenizers.ByteLevelBPETokenizer()
    text = "To be, or not to be: that is the question. " * 3 + "naïve  “señor”\n\n\t😀 "
    special = {"special_tokens": ["<|endoftext|>"], "show_progress": False}
    table.train_from_iterator([text], vocab_size=300, **special)
    table.save_model(str(tmp_path))
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).rename(tmp_path / f"of-{name}")
    theirs.save_pretrained(tmp_path)
    reference.save(reference.random_gpt2(vocab_size=len(theirs)), tmp_path)
    found = load_model(tmp_path, np).tokenizer
    assert found.encode(text).tolist() == theirs(text)["input_ids"]
    assert found.decode(theirs(text)["input_ids"]) == text
    assert found.end_of_text == theirs.eos_token_id
