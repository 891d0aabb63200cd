"""Starcoder2s of transformers read here, live: the same numbers, gradients and greedy text.

Of random ones, those that a GPT can be: their theta is the one of a head's channels here. Their
rotation is computed in float32 whatever the model is; where float64 is compared, in float64.
"""

import numpy as np
import pytest

from minigpt.interchange import starcoder2
from minigpt.interchange.architectures import flattened, full_name
from minigpt.interchange.export import export
from minigpt.interchange.loading import load_model
from minigpt.model.gpt import gpt_forward, logits, loss_and_gradients
from minigpt.sample.generate import generate
from tests.tools import reference
from tests.tools.gradcheck import assert_same, leaves

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference

SIZES = {
    "vocab_size": 37,
    "max_position_embeddings": 70,
    "hidden_size": 18,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
MODELS = {
    "as it comes": {},
    "exact gelu": {"hidden_act": "gelu"},
    "relu": {"hidden_act": "relu"},
    "another name of tanh gelu": {"hidden_act": "gelu_new"},
    "untied": {"tie_word_embeddings": False, "num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 5},
    "a pair a head": {"num_attention_heads": 9, "num_key_value_heads": 9},
}


def random_starcoder2(**options):
    """Return a Starcoder2ForCausalLM of SIZES and options, with no weight at its default."""
    sizes = SIZES | options
    D = sizes["hidden_size"] // sizes["num_attention_heads"]
    rope = {"rope_type": "default", "rope_theta": 1024 ** (D / (D - 2)) if D > 2 else 5.0}
    names = dict.fromkeys(("bos_token_id", "eos_token_id"))
    config = transformers.Starcoder2Config(
        rope_theta=rope["rope_theta"], rope_parameters=rope, **names, **sizes
    )
    torch.set_num_threads(1)
    return reference.randomize(transformers.Starcoder2ForCausalLM(config))


def rotate_in_float64(model):
    """Have a model compute its rotation in float64."""

    def forward(x, position_ids):
        half = torch.arange(0, 1, 2 / D, dtype=torch.float64)
        angle = (
            position_ids[..., None]
            * model.config.to_dict()["rope_parameters"]["rope_theta"] ** -half
        )
        both = torch.cat((angle, angle), -1)
        return both.cos(), both.sin()

    D = model.config.hidden_size // model.config.num_attention_heads
    model.model.rotary_emb.forward = forward


def their_names(model, get=lambda w: w.detach()):
    """Return {name: array} of the parameters of a model; `get` as in reference.our_names."""
    return {name: get(w).numpy() for name, w in model.named_parameters()}


def in_their_names(tree, config):
    """Return {name in transformers: array} of a tree of weights or gradients."""
    found = starcoder2.views(dict(leaves(tree)), config)
    return {full_name(starcoder2, name): flattened(x) for name, x in found.items()}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_logits_and_every_gradient_are_those_of_transformers(tmp_path, options):
    model = random_starcoder2(**options)
    model.save_pretrained(tmp_path)
    checkpoint = load_model(tmp_path, np)
    config, params = checkpoint.config, reference.as_float64(checkpoint.params)
    ids, targets = reference.batch(config.vocab_size, 70)
    x, _ = gpt_forward(ids, checkpoint.params.tree, config)
    with torch.no_grad():
        expected = {"logits": reference.torch_loss(model, ids, targets)[0].numpy()}
    assert np.abs(expected["logits"]).max() > 1
    assert_same({"logits": logits(x, checkpoint.params)}, expected, 1e-5)
    rotate_in_float64(model)
    loss, grads = loss_and_gradients(ids, targets, params, config)
    x, _ = gpt_forward(ids, params, config)
    found = {"logits": logits(x, params), "loss": loss, **in_their_names(grads, config)}
    assert_same(found, reference.first_step(model, ids, targets, their_names), 1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_fifty_greedy_tokens_are_those_of_transformers(tmp_path, tied):
    model = random_starcoder2(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    checkpoint = load_model(tmp_path, np)
    ids, _ = reference.batch(checkpoint.config.vocab_size, 5, B=8)
    p, config = checkpoint.params, checkpoint.config
    found = np.stack([*generate(p, config, ids, 50, temperature=0.0)], axis=1)
    expected = reference.greedy(model, ids, 50)
    assert len({*expected.flat}) > 4  # not one token again and again
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", ["5KB", "1GB"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saved_goes_back_bit_for_bit(tmp_path, tied, size):
    model = random_starcoder2(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    checkpoint = load_model(tmp_path / "theirs", np)
    assert checkpoint.config.tie_head is tied
    export(tmp_path / "ours", checkpoint.params, checkpoint.config)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    found, expected = back.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], w) for name, w in expected.items())


@pytest.mark.parametrize(
    "field, value", [("num_key_value_heads", 1), ("intermediate_size", 60), ("sliding_window", 8)]
)
def test_what_a_gpt_cannot_be_is_named(tmp_path, field, value):
    random_starcoder2(**{field: value}).save_pretrained(tmp_path)
    with pytest.raises(Exception, match=f"{field} is {value}"):
        load_model(tmp_path, np)
