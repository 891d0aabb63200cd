"""Adapters in peft's files: what is written, what is read, what is refused."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.interchange.command import CheckpointConfig
from minigpt.interchange.peft import read_adapter, write_adapter
from minigpt.interchange.weights import read_tensors
from minigpt.model import checkpoint
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import init_params
from minigpt.model.lora import Lora, init_adapter

CONFIG = GPTConfig(5, 9, 2, 2, 4, bias=True, rotary=False, bigram=False, activation="gelu_tanh")
ALL = ("c_attn", "c_proj", "c_fc")


@pytest.fixture
def folder(tmp_path, rng):
    """Return a function that writes an adapter; the fields given replace those of its config."""

    def write(lora=None, **fields):
        lora = lora or Lora(3, 5.0, targets=ALL)
        adapter = init_adapter(CONFIG, lora, 1)
        adapter.flat[:] = rng.normal(size=adapter.flat.shape)
        write_adapter(tmp_path / "a", adapter, lora, CONFIG, "the/base")
        path = tmp_path / "a" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return tmp_path / "a", adapter

    return write


def change(folder, name, x):
    """Replace a tensor of an adapter by another; None takes it out."""
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors[name] = x
    tensors = {name: x for name, x in tensors.items() if x is not None}
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def peft_name(layer, factor):
    return f"base_model.model.transformer.{layer}.lora_{factor}.weight"


def test_files_have_the_names_and_shapes_of_peft(folder):
    path, adapter = folder(Lora(3, 5.0, 0.25, ("c_attn", "mlp.c_proj"), rslora=True))
    fields = json.loads((path / "adapter_config.json").read_text())
    assert fields == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "the/base",
        "r": 3,
        "lora_alpha": 5.0,
        "lora_dropout": 0.25,
        "target_modules": ["c_attn", "mlp.c_proj"],
        "use_rslora": True,
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
    }
    tensors = safetensors.numpy.load_file(path / "adapter_model.safetensors")
    assert len(tensors) == 8
    a, b = (tensors[peft_name("h.1.mlp.c_proj", factor)] for factor in "AB")
    assert (a.shape, b.shape) == ((3, 16), (4, 3))
    factors = adapter["h"][1]["mlp"]["c_proj"]
    np.testing.assert_array_equal(a, factors["lora_a"].T)
    np.testing.assert_array_equal(b, factors["lora_b"].T)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_comes_back_bit_for_bit(folder, rslora):
    path, adapter = folder(Lora(3, 5.0, 0.5, ALL, rslora))
    again, lora = read_adapter(path, CONFIG)
    assert (lora.rank, lora.alpha, lora.dropout, lora.rslora) == (3, 5.0, 0.5, rslora)
    assert dict(again.leaves()).keys() == dict(adapter.leaves()).keys()
    for name, x in adapter.leaves():
        np.testing.assert_array_equal(dict(again.leaves())[name], x)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_command_sees_the_merged_weights(folder, tmp_path, rslora):
    path, adapter = folder(Lora(4, 6.0, 0.0, ("attn.c_proj",), rslora))
    params = init_params(CONFIG, 1)
    file = tmp_path / "base.safetensors"
    checkpoint.save(file, params, CONFIG, tokenizer=CharTokenizer("abcde"), state={})
    found = CheckpointConfig(checkpoint=str(file), adapter=str(path)).load()
    for i in range(2):
        p, factors = params["h"][i]["attn"], adapter["h"][i]["attn"]["c_proj"]
        merged = found.params["h"][i]["attn"]
        wanted = p["c_proj"]["w"] + (3.0 if rslora else 1.5) * factors["lora_a"] @ factors["lora_b"]
        np.testing.assert_allclose(merged["c_proj"]["w"], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(merged["c_attn"]["w"], p["c_attn"]["w"])


@pytest.mark.parametrize(
    "targets",
    [
        ["c_attn", "attn.c_proj", "mlp.c_proj", "c_fc"],
        "all-linear",
        r"transformer\.h\.\d\.(attn|mlp)\.c_\w+",
        ["transformer.h.0.attn.c_attn", "h.1.attn.c_attn", "c_proj", "c_fc"],
    ],
    ids=["ends", "all-linear", "regular expression", "full names"],
)
def test_targets_are_ends_of_names_or_a_regular_expression(folder, targets):
    path, adapter = folder(target_modules=targets)
    again, _ = read_adapter(path, CONFIG)
    np.testing.assert_array_equal(again.flat, adapter.flat)


def test_layers_that_an_adapter_leaves_out_stay_as_they_are(folder):
    path, _ = folder(Lora(3, 5.0, targets=("h.1.attn.c_attn",)), target_modules=["c_attn"])
    with pytest.raises(UserError, match="lacks h.0.attn.c_attn"):
        read_adapter(path, CONFIG)
    path, adapter = folder_with(path, layers_to_transform=[1])
    again, lora = read_adapter(path, CONFIG)
    assert lora.targets == ("h.1.attn.c_attn",)
    assert {name for name, _ in again.leaves()} == {
        "h.1.attn.c_attn.lora_a",
        "h.1.attn.c_attn.lora_b",
    }


def folder_with(path, **fields):
    """Change fields of an adapter_config.json."""
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return path, None


@pytest.mark.parametrize(
    "name, value",
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"c_attn": 4}),
        ("alpha_pattern", {"c_attn": 4}),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["w"]),
        ("peft_type", "IA3"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("use_something_new", True),
        ("r", "3"),
        ("lora_alpha", None),
        ("target_modules", None),
        ("target_modules", "("),
    ],
)
def test_what_is_more_than_two_matrices_per_layer_is_refused_by_name(folder, name, value):
    path, _ = folder(**{name: value})
    word = {"r": "rank", "lora_alpha": "alpha"}.get(name, name)
    with pytest.raises(UserError, match=word):
        read_adapter(path, CONFIG)


def test_unknown_fields_that_say_nothing_are_ignored(folder):
    path, adapter = folder(something_new=None, another=False, third={}, init_lora_weights=True)
    again, _ = read_adapter(path, CONFIG)
    np.testing.assert_array_equal(again.flat, adapter.flat)


@pytest.mark.parametrize(
    "layer, x, said",
    [
        ("h.0.attn.c_attn", None, "h.0.attn.c_attn.lora_A.weight is missing"),
        ("h.1.mlp.c_fc", np.zeros((3, 8), "f4"), r"h.1.mlp.c_fc.lora_A.weight is \(3, 8\)"),
        ("h.1.mlp.c_fc", np.full((3, 4), np.nan, "f4"), "h.1.mlp.c_fc.lora_A.* not finite"),
        ("h.2.attn.c_attn", np.zeros((3, 4), "f4"), "h.2.attn.c_attn"),
        ("lm_head", np.zeros((3, 4), "f4"), "lm_head"),
    ],
)
def test_an_adapter_of_another_base_names_the_tensor(folder, layer, x, said):
    path, _ = folder()
    change(path, peft_name(layer, "A"), x)
    with pytest.raises(UserError, match=said):
        read_adapter(path, CONFIG)


def test_a_pickle_or_half_a_folder_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no adapter_config.json"):
        read_adapter(tmp_path, CONFIG)
    path, _ = folder()
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(UserError, match="pickle"):
        read_adapter(path, CONFIG)
    (path / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        read_adapter(path, CONFIG)


def test_a_rotary_model_has_no_adapters_of_peft(folder, tmp_path):
    path, _ = folder()
    config = GPTConfig(5, 9, 2, 2, 4, bigram=False)
    lora = Lora(3, 5.0)
    with pytest.raises(UserError, match="rotary.*merged model"):
        write_adapter(tmp_path / "b", init_adapter(config, lora, 1), lora, config)
    with pytest.raises(UserError, match="rotary"):
        read_adapter(path, config)


def test_half_precision_is_read_as_float32(tmp_path):
    x = np.array([[1.5, -0.0078125, 3.0]], "f4")
    bits = (x.view("u4") >> 16).astype("<u2").tobytes()
    head = json.dumps({"a": {"dtype": "BF16", "shape": [1, 3], "data_offsets": [0, 6]}}).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bits)
    safetensors.numpy.save_file({"a": x.astype("f2")}, tmp_path / "h.safetensors")
    for name in ("b", "h"):
        found = read_tensors(tmp_path / f"{name}.safetensors", "--adapter")["a"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, x)


def test_files_that_are_not_safetensors_are_named(tmp_path):
    (tmp_path / "a").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read_tensors(tmp_path / "a", "--adapter")
    (tmp_path / "a").write_bytes(b"\x08" + bytes(30))
    with pytest.raises(UserError, match="damaged"):
        read_tensors(tmp_path / "a", "--adapter")
    safetensors.numpy.save_file({"a": np.arange(3)}, tmp_path / "a")
    with pytest.raises(UserError, match="'a' is I64"):
        read_tensors(tmp_path / "a", "--adapter")
