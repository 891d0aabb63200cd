"""Folders of transformers, written by hand: every form that GPT-2's files have, and every error."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

import minigpt
from minigpt.interchange import gpt2, load_model
from minigpt.interchange.architectures import full_name
from minigpt.interchange.export import export
from minigpt.interchange.gpt2 import config_of, describe, views
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import init_params
from minigpt.params import leaves

SMALL = {"vocab_size": 11, "block_size": 6, "n_layer": 2, "n_head": 2, "n_embd": 8}
CONFIG = GPTConfig(**SMALL, bias=True, rotary=False, bigram=False, activation="gelu_tanh")
RAW = {"F32": lambda x: x.astype("<f4"), "F16": lambda x: x.astype("<f2")}
RAW["BF16"] = lambda x: (x.astype("<f4").view("<u4") >> 16).astype("<u2")


def hf_name(name):
    """Return the name of a tensor in transformers' files."""
    (short,) = views({name: None}, CONFIG)
    return full_name(gpt2, short)


def weights(config=CONFIG):
    """Return {minigpt's name: array}, no two numbers the same."""
    rng = np.random.default_rng(3)
    return {
        name: rng.standard_normal(s).astype("f4")
        for name, s in dict(leaves(config.shapes())).items()
    }


def write(path, tensors, dtype="F32"):
    """Write a safetensors file of arrays that have the bytes of `dtype`."""
    raw = {name: RAW[dtype](x) for name, x in tensors.items()}
    entries, start = {}, 0
    for name, x in raw.items():
        offsets = start, start + x.nbytes
        entries[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": offsets}
        start += x.nbytes
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(map(bytes, raw.values())))


def folder(path, *, named=hf_name, dtype="F32", extra=None, **fields):
    """Write a folder of transformers, and return it."""
    (path / "config.json").write_text(json.dumps(describe(CONFIG) | fields))
    found = {named(name): x for name, x in weights().items()} | (extra or {})
    write(path / "model.safetensors", found, dtype)
    return path


def refusal(path):
    """Return the one line that says why a folder is not loaded; it stays as it was."""
    before = sorted(path.rglob("*"))
    with pytest.raises(minigpt.UserError) as error:
        load_model(path)
    assert "\n" not in str(error.value) and sorted(path.rglob("*")) == before
    return str(error.value)


def same(params, expected):
    """Assert that parameters are those of a dict."""
    found = dict(params.leaves())
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_weights_come_in_under_names_with_a_prefix_and_without(tmp_path, prefix):
    def named(name):
        return prefix + hf_name(name).removeprefix("transformer.")

    found = load_model(folder(tmp_path, named=named))
    same(found.params, weights())
    assert (found.config, found.tokenizer) == (CONFIG, None)


def test_masks_are_no_parameters_whatever_their_type(tmp_path):
    extra = {
        "h.0.attn.bias": np.ones((1, 1, 6, 6)),
        "transformer.h.1.attn.masked_bias": np.ones(()),
    }
    same(load_model(folder(tmp_path, extra=extra)).params, weights())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_numbers_of_16_bits_become_float32(tmp_path, dtype):
    found = dict(load_model(folder(tmp_path, dtype=dtype)).params.leaves())
    for name, x in weights().items():
        if dtype == "F16":
            rounded = x.astype("f2").astype("f4")
        else:
            rounded = (x.view("u4") & 0xFFFF0000).view("f4")
        np.testing.assert_array_equal(found[name], rounded)


@pytest.mark.parametrize("named, tied", [("same", True), ("other", False)])
def test_a_head_is_tied_where_its_numbers_are_those_of_the_embedding(tmp_path, named, tied):
    head = weights()["wte"] + (named == "other")
    found = load_model(folder(tmp_path, extra={"lm_head.weight": head}))
    assert found.config.tie_head is tied
    same(found.params, weights() | ({} if tied else {"lm_head.w": head}))


def test_shards_are_one_model(tmp_path):
    folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = {hf_name(name): x for name, x in weights().items()}
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in {*files.values()}:
        write(tmp_path / file, {n: x for n, x in tensors.items() if files[n] == file})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    same(load_model(tmp_path).params, weights())
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../x.safetensors"}}))
    assert "not in its folder" in refusal(tmp_path)
    index.write_text(json.dumps({"weight_map": {"wte.weight": "x.safetensors"}}))
    assert "x.safetensors', which is missing" in refusal(tmp_path)


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu", "gelu"),
        ("relu",) * 2,
    ],
)
def test_activations_have_their_names(theirs, ours):
    fields = describe(CONFIG) | {"activation_function": theirs}
    assert config_of(fields, "x").activation == ours


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "llama"),
        ("n_inner", 33),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("activation_function", "silu"),
        ("n_embd", "8"),
    ],
)
def test_what_is_of_another_architecture_is_named(tmp_path, field, value):
    assert field in refusal(folder(tmp_path, **{field: value}))


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_key_value_heads", 1),
        ("intermediate_size", 33),
        ("norm_epsilon", 1e-6),
        ("use_bias", False),
        ("sliding_window", 4096),
        ("hidden_act", "silu"),
        ("rope_parameters", {"rope_type": "yarn"}),
        ("rope_parameters", {"rope_theta": 10000.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rope_scaling", [1]),
        ("rope_theta", "high"),
        ("num_attention_heads", 8),
    ],
)
def test_what_no_rotary_model_here_is_like_is_named(tmp_path, field, value):
    config = dataclasses.replace(CONFIG, rotary=True)
    export(tmp_path / "m", init_params(config, 1), config)
    path = tmp_path / "m" / "config.json"
    fields = json.loads(path.read_text())
    fields |= {"rope_parameters": None} if field == "rope_theta" else {}
    path.write_text(json.dumps(fields | {field: value}))
    said = {"rope_parameters": "rope_t", "num_attention_heads": "n_head"}.get(field, field)
    assert said in refusal(tmp_path / "m")


@pytest.mark.parametrize("field", ["vocab_size", "n_positions", "n_embd"])
def test_sizes_that_no_array_has_are_refused(tmp_path, field):
    said = refusal(folder(tmp_path, **{field: 10**20}))
    assert "sizes in its config.json are too large" in said


def test_the_theta_of_one_pair_of_channels_is_of_no_account(tmp_path):
    config = dataclasses.replace(CONFIG, rotary=True, n_head=4)
    export(tmp_path / "m", init_params(config, 1), config)
    path = tmp_path / "m" / "config.json"
    fields = json.loads(path.read_text()) | {"rope_theta": 10000.0, "rope_parameters": None}
    path.write_text(json.dumps(fields))
    assert load_model(tmp_path / "m").config == config


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("transformer.wpe.weight"), "transformer.wpe.weight is missing"),
        (lambda t: t.update(score=np.ones(2)), "unexpected tensor 'score'"),
        (
            lambda t: t.update({"transformer.ln_f.bias": np.ones(7)}),
            r"ln_f.bias is (7,) and not (8,)",
        ),
        (lambda t: t.update({"transformer.ln_f.bias": np.full(8, np.nan)}), "not finite"),
        (lambda t: t.update({"wte.weight": np.ones((11, 8))}), "twice"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    folder(tmp_path)
    tensors = {hf_name(name): x for name, x in weights().items()}
    change(tensors)
    write(tmp_path / "model.safetensors", tensors)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("model.safetensors", b"version https://git-lfs.github.com", "git lfs pull"),
        ("config.json", b"version https://git-lfs.github.com", "git lfs pull"),
        ("model.safetensors", b"short", "damaged"),
        ("config.json", b"[1]", "no JSON object"),
        ("config.json", None, "config.json"),
        ("model.safetensors", None, "has no model.safetensors"),
    ],
)
def test_files_that_are_missing_or_damaged_are_named(tmp_path, file, content, message):
    path = folder(tmp_path) / file
    path.unlink() if content is None else path.write_bytes(content)
    assert message in refusal(tmp_path)


def test_numbers_of_another_type_are_named(tmp_path):
    folder(tmp_path)
    safetensors.numpy.save_file({"wte.weight": np.ones(2)}, tmp_path / "model.safetensors")
    assert "'wte.weight' is F64; it must be one of F32, F16, BF16" in refusal(tmp_path)


@pytest.mark.parametrize(
    "table, said",
    [
        (
            {chr(97 + i): i for i in range(12)},
            "its tokenizer has 12 tokens, but its config.js",
        ),
        (b"version https://git-lfs.github.com", "a pointer of Git LFS, not the file itself"),
        ([["a", 0.0]], "is a tokenizer of type Unigram; byte-level BPE is needed"),
        (b"{", "is not JSON"),
    ],
)
def test_a_tokenizer_of_another_model_or_kind_is_named(tmp_path, table, said):
    path = folder(tmp_path) / "tokenizer.json"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        model = {"type": "BPE" if isinstance(table, dict) else "Unigram", "vocab": table}
        path.write_text(json.dumps({"model": {**model, "merges": []}}))
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt.index", "tf_model.h5"])
def test_files_that_may_run_code_are_never_opened(tmp_path, name):
    (folder(tmp_path) / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    said = refusal(tmp_path)
    assert f"{name} is a pickle" in said or f"{name} is of a format that is not read" in said
    with pytest.raises(minigpt.UserError) as error:
        load_model(tmp_path / name)
    assert str(error.value) == said


def test_a_model_without_a_tokenizer_takes_ids_and_is_saved(tmp_path):
    model = minigpt.load(folder(tmp_path))
    new = model.generate_ids([[1, 2], [3, 4]], 9, temperature=0)
    assert new.shape == (2, 9)
    assert new[0, 0] == model.logits([1, 2])[0, -1].argmax()
    for call in (model.generate, lambda: model.attention("a"), lambda: model.logits("a")):
        with pytest.raises(minigpt.UserError, match="no tokenizer"):
            call()
    model.save(tmp_path / "x.safetensors")
    again = minigpt.load(tmp_path / "x.safetensors")
    assert again.tokenizer is None
    same(again.params, weights())


def test_a_model_of_the_hub_is_fetched_where_no_folder_has_its_name(tmp_path, monkeypatch):
    asked = []
    fetch = lambda name, allow_patterns: asked.append(name) or str(folder(tmp_path))  # noqa: E731
    module = types.SimpleNamespace(snapshot_download=fetch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    same(load_model("someone/gpt").params, weights())
    assert asked == ["someone/gpt"]

    def fail(name, allow_patterns):
        raise OSError("no network")

    module.snapshot_download = fail
    with pytest.raises(minigpt.UserError, match=r"no network.*model.safetensors.*huggingface.co"):
        load_model("someone/gpt")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(minigpt.UserError, match="pip install 'minigpt"):
        load_model("someone/gpt")
    (tmp_path / "someone" / "gpt").mkdir(parents=True)
    folder(tmp_path / "someone" / "gpt")
    same(load_model("someone/gpt").params, weights())
