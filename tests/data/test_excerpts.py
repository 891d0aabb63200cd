"""Excerpts of data sets, against the data sets themselves."""

import numpy as np
import pytest

from minigpt.data import excerpts, token_files
from minigpt.data.datasets import PairData, TextData
from minigpt.data.dates import date_pairs
from minigpt.data.excerpts import pair_excerpt, text_excerpt
from minigpt.data.token_files import beginnings
from minigpt.data.tokenizers import PairTokenizer
from tests.tools.training import TEXT

PAIRS = [(f"number {i}", f"{i}") for i in range(200)]


@pytest.fixture
def text(tmp_path):
    """The path of a text."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    """The path of a file of pairs."""
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS), "utf-8")
    return str(path)


def test_the_excerpt_of_a_short_text_is_all_of_it(text):
    whole = TextData(text)
    found = text_excerpt(text, whole.tokenizer)
    np.testing.assert_array_equal(found.train, whole.train)
    np.testing.assert_array_equal(found.val, whole.val)
    assert (found.sha256, found.part, whole.part) == (whole.sha256, "", "")


def test_of_a_long_text_both_parts_have_their_first_characters(text, monkeypatch):
    whole = TextData(text)
    for most in (199, 1799):  # shorter than both parts, than one
        monkeypatch.setattr(excerpts, "CHARACTERS", most)
        found = text_excerpt(text, whole.tokenizer)
        np.testing.assert_array_equal(found.train, whole.train[:most])
        np.testing.assert_array_equal(found.val, whole.val[:most])
        assert found.part.startswith(f"the first {most:,} of 1,800 characters of the training part")
        assert found.sha256 == whole.sha256  # of all
        read = "the whole" if most > 200 else "the first 199 of 200 characters of the"
        assert f" and {read} validation part" in found.part
    assert found.part.endswith(" (200 characters)")


def test_parts_of_texts_end_after_so_many_characters():
    parts = ["ab", "cd", "", "e", "fgh", "i"]
    assert [*beginnings(parts, 3)] == ["ab", "c", "", "e", "fg"]
    assert [*beginnings(parts, 9)] == parts


def test_ids_that_are_kept_in_a_file_are_all_there(text, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(token_files, "LARGE", 0)
    monkeypatch.setattr(excerpts, "CHARACTERS", 50)
    tokenizer = TextData(text, name="text").tokenizer
    assert [*(tmp_path / "cache").glob("*.tokens")]
    found = text_excerpt(text, tokenizer)
    assert (len(found.train), len(found.val), found.part) == (1800, 200, "")
    for path in (tmp_path / "cache").glob("*.tokens"):
        path.unlink()
    assert len(text_excerpt(text, tokenizer).val) == 50
    assert not [*(tmp_path / "cache").glob("*.tokens")]  # a part is not kept


@pytest.mark.bpe
def test_of_subwords_so_many_characters_become_tokens(text, monkeypatch):
    whole = TextData(text, kind="bpe", vocab_size=280)
    monkeypatch.setattr(excerpts, "SUBWORDS", 100)
    found = text_excerpt(text, whole.tokenizer)
    decoded = [whole.tokenizer.decode(part.tolist()) for part in (found.train, found.val)]
    assert decoded == [TEXT[:100], TEXT[1800:1900]]


def test_of_many_pairs_some_are_there_at_even_distances(pairs, monkeypatch):
    whole = PairData(pairs)
    found = pair_excerpt(pairs, 0, whole.tokenizer, "source")
    assert (len(found.train), len(found.val), found.part) == (180, 20, "")
    monkeypatch.setattr(excerpts, "PAIRS", 60)
    found = pair_excerpt(pairs, 0, whole.tokenizer, "source")
    assert (len(found.train), found.val_pairs) == (60, whole.val_pairs)
    assert found.part == "60 of 180 pairs for training and 20 of 20 for validation"
    assert found.sha256 == whole.sha256
    for part, of in (
        (found.train.source, whole.train.source),
        (found.val.target, whole.val.target),
    ):
        every = np.arange(0, len(of.lengths), len(of.lengths) // len(part.lengths))
        np.testing.assert_array_equal(part.rows(np.arange(len(part.lengths))), of.rows(every))


def test_an_excerpt_of_the_dates_has_their_first_pairs():
    train, val = date_pairs(3, most=excerpts.PAIRS)
    tokenizer = PairTokenizer.from_pairs(train + val)
    found = pair_excerpt(None, 3, tokenizer, "source")
    assert (len(found.train), len(found.val), found.sha256) == (10_000, 2_000, None)
    assert found.val_pairs == val
    assert found.part == "10,000 of 213,147 pairs for training and 2,000 of 2,000 for validation"
