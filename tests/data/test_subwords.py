"""Byte-level BPE: what comes back, in parts and whole, the same every time."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.bpe_files import BYTE_OF, END_OF_TEXT, Table
from minigpt.data.subwords import BpeTokenizer, separate
from minigpt.data.tokenizers import tokenizer_from_json
from minigpt.errors import UserError

TEXT = (
    "The cat sat on the mat; the hat isn't the cat's: 12 + 345 = 357.\nNaïve café, 漢字, 😀!\n" * 9
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CHARS = "a\n \t'sß1.,\x1c\x85\xa0\u2003é😀"  # of what words are cut at
SPACED = st.text(st.sampled_from(CHARS))


def table_of_bytes(merges=(), special=()):
    """Return the Table of the bytes and of merges, with special tokens at the end."""
    tokens = [*BYTE_OF, *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    ids = {token: len(vocab) + i for i, token in enumerate(special)}
    return Table(vocab, [*merges], ids, END_OF_TEXT if END_OF_TEXT in ids else None)


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("tokenizers")
    return BpeTokenizer.train([TEXT], 320)


@pytest.fixture(scope="module")
def dense():
    """A tokenizer with merges of all that SPACED draws."""
    pytest.importorskip("tokenizers")
    text = "".join(np.random.default_rng(0).choice([*CHARS], 20_000))
    return BpeTokenizer.train([text], 700)


def ids_of(parts):
    return [i for ids in parts for i in ids.tolist()]


def test_the_bytes_have_an_alphabet_of_printable_characters():
    assert sorted(BYTE_OF.values()) == [*range(256)]
    assert all(char.isprintable() and not char.isspace() for char in BYTE_OF)
    assert BYTE_OF["a"] == ord("a") and BYTE_OF["Ġ"] == ord(" ") and BYTE_OF["Ċ"] == ord("\n")


@pytest.mark.bpe
@given(text=ANY_TEXT)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.bpe
@given(text=SPACED, other=SPACED, sizes=st.lists(st.integers(1, 5), min_size=1))
def test_a_text_in_parts_has_the_ids_of_the_whole(dense, text, other, sizes):
    tokenizer = dense

    def cut(text):
        parts, start = [], 0
        while start < len(text):
            parts.append(text[start : start + sizes[len(parts) % len(sizes)]])
            start += len(parts[-1])
        return parts

    whole = tokenizer._model.encode(text).ids
    assert ids_of(tokenizer.encode_parts(cut(text))) == whole == tokenizer.encode(text).tolist()
    both = [*tokenizer.encode_parts([*cut(text), "", *cut(other)])]
    (border,) = (i for i, ids in enumerate(both) if not len(ids))
    assert ids_of(both[:border]) == whole
    assert ids_of(both[border:]) == tokenizer.encode(other).tolist()


def test_parts_are_cut_before_white_space_after_a_word():
    def parts(*parts):
        return [*separate(parts)]

    assert parts("ab cd", " ef\n\ng") == ["ab", " cd ef", "\n\ng"]
    assert parts("ab", "cd", "  e") == ["abcd  e"]  # a part may end in a word
    assert parts("a \n", " b") == ["a", " \n b"]
    assert parts("ab", "", "cd") == ["ab", "", "cd"]
    assert parts("", "ab", "", "") == ["", "ab", "", ""]
    assert parts() == []


@pytest.mark.bpe
def test_a_large_text_is_never_encoded_as_a_whole(tokenizer, monkeypatch):
    sizes, encode = [], BpeTokenizer._encode
    monkeypatch.setattr(
        BpeTokenizer, "_encode", lambda *args: sizes.append(len(args[1])) or encode(*args)
    )
    text = TEXT * 300
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and max(sizes) < 1 << 17 < len(text)


@pytest.mark.bpe
@given(texts=st.lists(ANY_TEXT, max_size=4))
def test_many_texts_at_once_are_those_one_by_one(tokenizer, texts):
    ids, lengths = tokenizer.encode_each(texts)
    rows = [tokenizer.encode(text).tolist() for text in texts]
    assert ids.tolist() == sum(rows, []) and lengths.tolist() == [*map(len, rows)]
    assert ids.dtype == np.int32


@given(raw=st.binary() | ANY_TEXT.map(str.encode))
def test_a_stream_shows_whole_characters_and_in_the_end_all_of_the_text(raw):
    tokenizer = BpeTokenizer(table_of_bytes())
    ids = [tokenizer.vocab[token] for byte in raw for token in BYTE_OF if BYTE_OF[token] == byte]
    decoder = tokenizer.decoder()
    pieces = [decoder.push([i]) for i in ids]
    end = decoder.flush()
    assert "".join(pieces) + end == tokenizer.decode(ids) == raw.decode("utf-8", "replace")
    if end == "" and "\ufffd" not in raw.decode("utf-8", "replace"):
        assert [piece for piece in pieces if piece] == [*raw.decode()]


def test_special_tokens_are_no_text_but_are_shown():
    tokenizer = BpeTokenizer(table_of_bytes([("a", "b")], [END_OF_TEXT, "<漢>"]))
    assert tokenizer.vocab_size == 259 and tokenizer.end_of_text == 257
    assert tokenizer.byte_lengths.tolist() == [1] * 256 + [2, 0, 0]
    assert tokenizer.byte_lengths.dtype == np.int64
    assert tokenizer.decode([256, 257, 258]) == f"ab{END_OF_TEXT}<漢>"
    half = tokenizer.vocab["æ"]  # a byte that begins a character
    assert tokenizer.decode([half, 258]) == "\ufffd<漢>"
    assert tokenizer.default_prompt().tolist() == [257]
    assert tokenizer.default_prompt().dtype == np.int32


@pytest.mark.bpe
def test_text_that_looks_like_a_special_token_is_text():
    tokenizer = BpeTokenizer(table_of_bytes([("a", "b")], [END_OF_TEXT]))
    ids = tokenizer.encode(f"ab{END_OF_TEXT}")
    assert len(ids) == 1 + len(END_OF_TEXT) and ids.max() == 256
    assert tokenizer.decode(ids) == f"ab{END_OF_TEXT}"


def test_labels_can_be_read():
    tokenizer = BpeTokenizer(table_of_bytes([("Ġ", "a"), ("Ã", "©"), ("a", "Ã")], [END_OF_TEXT]))
    labels = [tokenizer.label(i) for i in range(256, 260)]
    assert labels == [" a", "é", r"a\xc3", END_OF_TEXT]
    assert tokenizer.label(tokenizer.vocab["Ã"]) == r"\xc3"


@pytest.mark.bpe
def test_without_an_end_of_text_the_default_prompt_is_a_new_line(tokenizer):
    assert tokenizer.end_of_text is None
    assert tokenizer.decode(tokenizer.default_prompt()) == "\n"


@pytest.mark.bpe
def test_a_merge_joins_the_most_frequent_neighbours_first():
    tokenizer = BpeTokenizer.train(["abab abab abab xy xy"], 258)
    assert tokenizer.merges == [("a", "b"), ("ab", "ab")]
    assert sorted(tokenizer.vocab, key=tokenizer.vocab.get) == [*BYTE_OF, "ab", "abab"]
    assert tokenizer.encode("abab").tolist() == [257]


@pytest.mark.bpe
def test_training_in_parts_is_training_on_the_whole(tokenizer):
    parts = [TEXT[i : i + 7] for i in range(0, len(TEXT), 7)]
    assert BpeTokenizer.train(parts, 320).to_json() == tokenizer.to_json()


@pytest.mark.bpe
def test_training_ends_when_no_neighbours_come_twice():
    tokenizer = BpeTokenizer.train(["ab ab cd"], 1000)
    assert tokenizer.merges == [("a", "b")]
    assert tokenizer.vocab_size == 257


@pytest.mark.bpe
def test_training_is_the_same_for_any_hash_seed_and_number_of_threads(tokenizer):
    code = (
        "import sys; from minigpt.data.subwords import BpeTokenizer\n"
        "print(BpeTokenizer.train([sys.stdin.buffer.read().decode()], 320).to_json())"
    )
    for seed, threads in (("0", "1"), ("1", "3")):
        env = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", code], input=TEXT.encode(), env=env, capture_output=True
        )
        assert done.stdout.decode().strip() == tokenizer.to_json(), done.stderr.decode()


def test_a_vocabulary_below_the_bytes_and_a_merge_is_refused():
    with pytest.raises(UserError, match="^vocab_size is 256, but bpe needs at least 257: a token"):
        BpeTokenizer.train(["text"], 256)


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    made = BpeTokenizer(table_of_bytes())
    for use in (lambda: made.encode("a"), lambda: BpeTokenizer.train(["a"], 257)):
        with pytest.raises(UserError, match=r"pip install 'minigpt\[bpe\]'$"):
            use()
    assert made.decode([0]) == "!"  # a model's ids become text without it


@pytest.mark.bpe
def test_what_has_no_token_is_named():
    with pytest.raises(UserError, match=r"position 3, counted .*: it is half of a character"):
        BpeTokenizer(table_of_bytes()).encode("abc\ud800")
    table = table_of_bytes()
    last = list(table.vocab)[-1]
    lacks = BpeTokenizer(table._replace(vocab={t: i for t, i in table.vocab.items() if t != last}))
    assert lacks.decode(lacks.encode("abc é")) == "abc é"
    with pytest.raises(UserError, match=r"^'\\xad' .* position 2, .* one of its bytes has no tok"):
        lacks.encode("ab\xadc")


def test_the_table_comes_back_from_a_checkpoint():
    tokenizer = BpeTokenizer(table_of_bytes([("Ġ", "a"), ("Ġa", "Ã")], ["<pad>", END_OF_TEXT]))
    again = tokenizer_from_json(tokenizer.to_json())
    assert type(again) is BpeTokenizer and again.to_json() == tokenizer.to_json()
    assert (again.vocab, again.merges) == (tokenizer.vocab, tokenizer.merges)
    assert (again.special, again.end_of_text) == ({"<pad>": 258, END_OF_TEXT: 259}, 259)


@pytest.mark.parametrize(
    "table", ['{"kind": "bpe"}', '{"kind": "bpe", "tokenizer": {}, "end_of_text": null}']
)
def test_a_damaged_table_is_refused(table):
    with pytest.raises(UserError, match="the table of a BPE tokenizer"):
        tokenizer_from_json(table)
    fields = json.loads(BpeTokenizer(table_of_bytes()).to_json())
    fields["tokenizer"]["model"]["merges"] = 7
    with pytest.raises(UserError, match="the table of a BPE tokenizer"):
        tokenizer_from_json(json.dumps(fields))
