"""Tokenizers and models of the hub, which a stand-in for its library fetches."""

import json
import sys
import types

import pytest

from minigpt.data import hub
from minigpt.data.tokenizers import new_tokenizer
from minigpt.errors import UserError


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A huggingface_hub whose repositories all have a table of characters; `asked` for those."""
    table = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokenizer.json").write_text(json.dumps(table))

    def fetch(name, allow_patterns):
        module.asked.append((name, allow_patterns))
        return str(tmp_path / "cache")

    module = types.SimpleNamespace(snapshot_download=fetch, asked=[])
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return module


@pytest.mark.parametrize(
    "name, known", [("someone/gpt", "someone/gpt"), ("gpt2", "openai-community/gpt2")]
)
def test_a_tokenizer_is_fetched_by_its_name_and_no_weights_with_it(library, name, known):
    assert new_tokenizer(name, []).chars == "ab"
    assert library.asked == [(known, [*hub.OF_TOKENIZERS])]
    assert not any("safetensors" in file for file in hub.OF_TOKENIZERS)


def test_a_folder_of_that_name_goes_first(library, tmp_path):
    (tmp_path / "someone").mkdir()
    (tmp_path / "cache").rename(tmp_path / "someone" / "gpt")
    assert new_tokenizer("someone/gpt", []).chars == "ab"
    with pytest.raises(UserError, match="no folder or tokenizer.json has that name"):
        new_tokenizer("someone/other", [])
    assert library.asked == []


def test_without_network_or_library_it_is_said_which_files_to_put_where(library, monkeypatch):
    def fail(name, allow_patterns):
        raise OSError("no\nnetwork")

    library.snapshot_download = fail
    said = "^--tokenizer openai-community/gpt2: .*put vocab.json and merges.txt of https://hugging"
    for reason in "no network", "pip install 'minigpt":
        with pytest.raises(UserError, match=said) as error:
            new_tokenizer("gpt2", [])
        assert reason in str(error.value) and "\n" not in str(error.value)
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="^model a/b: .*put config.json, model.safetensors, vocab"):
        hub.fetch("a/b", hub.OF_MODELS)
