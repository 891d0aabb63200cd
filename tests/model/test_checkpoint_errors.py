"""Files that are no checkpoint, or not a whole one: each is told apart, in one line."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.model.checkpoint import load, save
from minigpt.model.init import init_params
from tests.tools.options import gpt_config

TOKENIZER = CharTokenizer.from_text("Bee3\n")
CONFIG = gpt_config(vocab_size=4, block_size=6, n_layer=2, n_head=2, n_embd=4)


@pytest.fixture
def path(tmp_path):
    """A good checkpoint."""
    path = tmp_path / "last.safetensors"
    save(path, init_params(CONFIG, 0, np), CONFIG, tokenizer=TOKENIZER, state={"step": 7})
    return path


def rewrite(path, metadata=(), tensors=()):
    """Write the file again by the safetensors library, changed; a value of None is left out."""
    with safetensors.safe_open(path, framework="np") as file:
        old = file.metadata()
    metadata = {k: v for k, v in {**old, **dict(metadata)}.items() if v is not None}
    tensors = {**safetensors.numpy.load_file(path), **dict(tensors)}
    tensors = {k: v for k, v in tensors.items() if v is not None}
    safetensors.numpy.save_file(tensors, path, metadata)


def config_json(**changes):
    return json.dumps({**vars(CONFIG), **changes})


def test_a_path_that_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"none: there is no such file; name a \.safetensors file"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match=r"is a folder; name a \.safetensors file"):
        load(tmp_path)
    for raw in (b"", b"text", b"PK\x03\x04" + bytes(100), struct.pack("<Q", 2**63) + b"{}"):
        (tmp_path / "a").write_bytes(raw)
        with pytest.raises(
            UserError, match=r"a: damaged, or not a safetensors file \(.*\); take anot"
        ):
            load(tmp_path / "a")


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_truncated_file(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match="damaged, or not a safetensors file"):
        load(path)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"format": None}, "not a minigpt checkpoint: it has no minigpt metadata"),
        ({"format": "pt"}, "not a minigpt checkpoint"),
        ({"format": "minigpt 2"}, "its format is 'minigpt 2', but this version reads 'minigpt 1'"),
        ({"config": None}, "its metadata 'config' is missing or not an object"),
        ({"config": "{"}, "its metadata 'config' is missing or not an object"),
        ({"config": "[" * 100_000}, "its metadata 'config' is missing or not an object"),
        ({"state": "[1]"}, "its metadata 'state' is missing or not an object"),
        ({"state": None}, "its metadata 'state' is missing or not an object"),
        ({"config": config_json(n_heads=2)}, "unknown option 'n_heads'; did you mean 'n_head'"),
        ({"config": config_json(n_embd="4")}, "n_embd is '4'; it must be a whole number"),
        ({"config": config_json(dropout=10**400)}, "dropout is 10*; it must be a number"),
        ({"config": config_json(n_embd=3)}, "n_embd is 3, not a multiple of n_head 2"),
        ({"config": config_json(n_layer=10**9)}, "1000000000 layers, but 28 tensors"),
        ({"config": config_json(n_layer=3)}, "h.2.ln_1.w is missing, .* and 9 more"),
        ({"config": config_json(n_layer=1)}, "unexpected tensor 'h.1.attn.c_attn.b', .* 9 more"),
        ({"config": config_json(block_size=9)}, r"wpe is F32 \(6, 4\) and not F32 \(9, 4\);"),
        ({"config": config_json(n_embd=10**15)}, r"wte is F32 \(4, 4\) and not F32 \(4, 10{15}\)"),
        ({"tokenizer": None}, "not the table of a character tokenizer"),
        (
            {"tokenizer": '{"kind": "words"}'},
            "the kind of tokenizer is 'words'; choose from char",
        ),
        ({"tokenizer": "[" * 100_000}, "its tokenizer is not readable JSON"),
        (
            {"tokenizer": CharTokenizer("abcde").to_json()},
            "its tokenizer has 5 tokens, but its config has vocab_size 4",
        ),
    ],
)
def test_metadata_that_does_not_fit(path, metadata, message):
    rewrite(path, metadata)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"wte": None}, "tensors do not fit the config: wte is missing;"),
        ({"extra": np.zeros(1, np.float32)}, "config: unexpected tensor 'extra';"),
        ({"a\nb": np.zeros(1, np.float32)}, r"unexpected tensor 'a\\nb'"),
        ({"wte": np.zeros((4, 4))}, r"wte is F64 \(4, 4\) and not F32 \(4, 4\);"),
        ({"wte": np.zeros((4, 4), np.int32)}, r"wte is I32 \(4, 4\) and not F32"),
        ({"wte": np.zeros(16, np.float32)}, r"wte is F32 \(16,\) and not F32 \(4, 4\);"),
        ({"wte": np.full((4, 4), np.nan, np.float32)}, "wte holds numbers that are not finite"),
        ({"wpe": np.full((6, 4), np.inf, np.float32)}, "wpe holds numbers that are not finite"),
        ({"optimizer.m.wte": np.zeros((4, 4), np.float32)}, "optimizer.m.wpe is missing"),
    ],
)
def test_tensors_that_do_not_fit(path, tensors, message):
    rewrite(path, tensors=tensors)
    with pytest.raises(UserError, match=message):
        load(path)


def test_a_forged_file_takes_no_memory(path):
    huge = {"n_layer": 20, "n_embd": 2**20, "vocab_size": 4, "block_size": 2**30}
    rewrite(path, {"config": config_json(**huge)})
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="tensors do not fit the config"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_random_damage_is_a_user_error_or_harmless(path, rng):
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    refused = 0
    for i in range(400):
        raw, at = bytearray(good), rng.integers(header)
        if i % 4 == 0:
            raw = raw[: rng.integers(len(raw))]
        elif i % 4 == 1:
            raw[at : at + rng.integers(1, 9)] = rng.bytes(rng.integers(9))
        elif i % 4 == 2:
            raw[at] = rng.choice(list(b'0123456789[]{}",:.eE-'))
        else:
            raw[rng.integers(8)] = rng.integers(256)
        path.write_bytes(raw)
        try:
            load(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused > 300
