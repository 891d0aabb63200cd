"""Byte-level BPE beside tiktoken and transformers, live: the same ids of any text.

GPT-2's table is OpenAI's; see tests/tools/reference.py for where its two files come from.
"""

import functools
import json

import numpy as np
import pytest

from minigpt.data.datasets import TextData
from minigpt.data.subwords import BpeTokenizer
from tests.tools import reference

tiktoken = pytest.importorskip("tiktoken")
pytestmark = [pytest.mark.reference, pytest.mark.bpe]

# All kinds of white space, also what only Python takes for it (\x1c-\x1f) and what only looks it.
SPACES = " \n\t\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u200b\u2028\u2029\u202f\u3000\ufeff"
SNIPPETS = (
    *("'s", "'ll", "'VE", "'", "’s", "don't", "'tis", "“", "”", "«", '"', "`", "--", "...", "?!"),
    *(
        "  ",
        "\n\n",
        " \n",
        "\r\n",
        "\t\t ",
        "<|endoftext|>",
        " <|endoftext|>",
        "<|",
        "0x1F",
        "3.14",
    ),
    *(
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "👍🏽",
        "e\u0301",
        "ﬁ",
        "İ",
        "ß",
        "½",
        "Ⅷ",
        "²",
        "١٢٣",
        "१२",
        "𝟘",
    ),
)
SCRIPTS = (  # first and last code point
    *((0x20, 0x7E), (0x20, 0x7E), (0xA1, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x531, 0x5F4)),
    *((0x600, 0x6FF), (0x900, 0x97F), (0xE01, 0xE5B), (0x10A0, 0x10FF), (0x1200, 0x137C)),
    *((0x2000, 0x206F), (0x2070, 0x218B), (0x2190, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF)),
    *((0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0x10330, 0x1034A), (0x1D400, 0x1D7FF)),
    *((0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0, 0xD7FF), (0xE000, 0x10FFFF)),
)
IDS = {
    "Hello world": [15496, 995],
    " Hello world": [18435, 995],
    "Mary had a little lamb": [24119, 550, 257, 1310, 19343],
    "First Citizen:\nBefore we": [5962, 22307, 25, 198, 8421, 356],
    "hello!!!??? (安安) 😀": [31373, 10185, 28358, 357, 22522, 231, 22522, 231, 8, 30325, 222],
    "Hello, world! <|endoftext|>": [15496, 11, 995, 0, 1279, 91, 437, 1659, 5239, 91, 29],
    "": [],
}


def random_text(rng):
    """Return up to some 100 characters: runs of one script each, white space, special snippets."""
    parts = []
    for _ in range(rng.integers(1, 13)):
        kind, n = rng.integers(4), rng.integers(1, 9)
        if kind == 0:
            parts += [SNIPPETS[i] for i in rng.integers(0, len(SNIPPETS), rng.integers(1, 4))]
        elif kind == 1:
            parts += [SPACES[i] for i in rng.integers(0, len(SPACES), rng.integers(1, 4))]
        else:
            first, last = SCRIPTS[rng.integers(len(SCRIPTS))]
            parts += [chr(i) for i in rng.integers(first, last, n, endpoint=True)]
            parts += [" "] * rng.integers(2)
    return "".join(parts)


@functools.cache
def texts(n=10_000):
    rng = np.random.default_rng(1337)
    return [random_text(rng) for _ in range(n)]


@pytest.fixture(scope="module")
def gpt2():
    """The tokenizer made of OpenAI's two files."""
    return BpeTokenizer.read(reference.vocabulary())


@pytest.fixture(scope="module")
def trained():
    """A tokenizer of 1,000 tokens, of texts of all scripts."""
    return BpeTokenizer.train(texts()[:2_000], 1_000)


def tiktoken_of(tokenizer):
    """Return tiktoken's encoding of the table of a BpeTokenizer."""
    from tiktoken_ext.openai_public import r50k_pat_str

    table = json.loads(tokenizer.tokenizer_json())
    special = {token["content"]: token["id"] for token in table["added_tokens"]}
    ranks = {
        reference.token_bytes(token): i
        for token, i in table["model"]["vocab"].items()
        if token not in special
    }
    return tiktoken.Encoding(
        "of one text", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )


def assert_same_ids(tokenizer, expected):
    for text, ids in zip(texts(), expected, strict=True):
        found = tokenizer.encode(text)
        assert found.tolist() == list(ids), repr(text)
        assert tokenizer.decode(found) == text


def test_the_random_texts_try_what_they_should():
    found = {*"".join(texts())}
    assert len(texts()) == 10_000 and len(found) > 20_000 and found.issuperset(SPACES)
    assert min(sum(s in text for text in texts()) for s in SNIPPETS) > 50


def test_ids_of_gpt2_are_those_of_tiktoken(gpt2):
    encoding = reference.tiktoken_encoding()
    assert gpt2.vocab_size == encoding.n_vocab == 50257
    assert_same_ids(gpt2, encoding.encode_ordinary_batch(texts(), num_threads=1))


def test_ids_of_gpt2_are_those_of_transformers(gpt2, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(gpt2.tokenizer_json(), "utf-8")
    table, merges = (reference.vocabulary() / name for name in reference.SHA256)
    (tmp_path / "vocab.json").write_bytes(table.read_bytes())
    (tmp_path / "merges.txt").write_bytes(merges.read_bytes())
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    assert_same_ids(gpt2, theirs(texts(), split_special_tokens=True)["input_ids"])


def test_ids_of_a_trained_table_are_those_of_tiktoken(trained):
    encoding = tiktoken_of(trained)
    assert trained.vocab_size == encoding.n_vocab == 1_000
    assert_same_ids(trained, encoding.encode_ordinary_batch(texts(), num_threads=1))


@pytest.mark.parametrize("text", IDS)
def test_ids_that_are_known(gpt2, text):
    assert gpt2.encode(text).tolist() == IDS[text]


def test_the_bytes_of_each_token_are_those_of_tiktoken(gpt2):
    encoding = reference.tiktoken_encoding()
    expected = [len(encoding.decode_single_token_bytes(i)) for i in range(encoding.n_vocab)]
    assert expected[gpt2.end_of_text] > 0  # there; here it stands for no text
    expected[gpt2.end_of_text] = 0
    assert gpt2.byte_lengths.tolist() == expected


def test_text_that_comes_token_by_token_is_the_same_text(gpt2):
    for text in texts()[:1_000]:
        decoder, pieces = gpt2.decoder(), []
        for i in gpt2.encode(text):
            pieces.append(decoder.push([i]))
            assert "\ufffd" not in pieces[-1] or "\ufffd" in text
        assert "".join(pieces) + decoder.flush() == text


def test_a_text_that_comes_in_parts_has_the_ids_of_the_whole(gpt2):
    rng, whole = np.random.default_rng(0), "".join(texts()[:2_000])
    cuts = [0, *np.sort(rng.integers(0, len(whole), 500)), len(whole)]
    parts = [whole[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
    found = np.concatenate([*gpt2.encode_parts(parts)])
    np.testing.assert_array_equal(found, reference.tiktoken_encoding().encode_ordinary(whole))


def test_tiny_shakespeare_is_301966_and_36059_tokens(gpt2, corpus, tmp_path):
    (tmp_path / "text").write_text(corpus, "utf-8", newline="")
    data, cut = TextData(str(tmp_path / "text"), gpt2), int(0.9 * len(corpus))
    for ids, part, n in ((data.train, corpus[:cut], 301_966), (data.val, corpus[cut:], 36_059)):
        assert len(ids) == n
        np.testing.assert_array_equal(ids, reference.tiktoken_encoding().encode_ordinary(part))
