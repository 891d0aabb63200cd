import json
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.characters import CharTokenizer
from minigpt.data.tokenizer import Tokenizer
from minigpt.data.tokenizers import tokenizer_from_json
from minigpt.errors import UserError

ANY_TEXT = st.text(st.characters())  # lone surrogates too


@given(ANY_TEXT)
def test_any_text_comes_back(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert (ids.dtype, ids.shape) == (np.dtype(np.int32), (len(text),))
    assert ids.tolist() == [tokenizer.chars.index(c) for c in text]
    assert sorted(set(ids)) == list(range(tokenizer.vocab_size))
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


@given(st.lists(ANY_TEXT, max_size=5))
def test_many_texts_at_once_are_those_one_by_one(texts):
    tokenizer = CharTokenizer.from_text("".join(texts))
    for encode_each in (
        tokenizer.encode_each,
        lambda texts: Tokenizer.encode_each(tokenizer, texts),
    ):
        ids, lengths = encode_each(texts)
        assert ids.dtype == np.int32 and lengths.dtype == int
        assert lengths.tolist() == [len(text) for text in texts]
        assert ids.tolist() == tokenizer.encode("".join(texts)).tolist()


@given(ANY_TEXT)
def test_a_text_is_decoded_piece_by_piece(text):
    tokenizer = CharTokenizer.from_text(text)
    decoder = tokenizer.decoder()
    assert "".join(decoder.push([i]) for i in tokenizer.encode(text)) == text
    assert decoder.flush() == ""


def test_the_default_prompt_is_a_new_line_or_the_first_token():
    for text, prompt in (("ab\n", "\n"), ("\tb\n", "\n"), ("ba", "a")):
        tokenizer = CharTokenizer.from_text(text)
        ids = tokenizer.default_prompt()
        assert ids.dtype == np.int32 and tokenizer.decode(ids) == prompt


@pytest.mark.parametrize(
    "table, message",
    [
        (
            '{"kind": "word", "chars": ["a"]}',
            "the kind of tokenizer is 'word'; choose from char, bpe, pair",
        ),
        ('{"kind": ["char"]}', "the kind of tokenizer is .'char'.; choose from char, bpe, pair"),
        ('{"kind": "char"}', "not the table of a character tokenizer"),
        ("", "not the table of a character tokenizer: ''"),
        ("[]", "not the table of a character tokenizer"),
        ('{"kind": "pair", "source": {"kind": "pair"}, "target": 1}', "not the tables of a pair"),
    ],
)
def test_a_table_of_no_known_kind_is_refused(table, message):
    with pytest.raises(UserError, match=message) as error:
        tokenizer_from_json(table)
    assert "\n" not in str(error.value)


@given(ANY_TEXT)
def test_json_keeps_the_table(text):
    tokenizer = CharTokenizer.from_text(text)
    table = tokenizer.to_json()
    assert table.isascii()
    assert CharTokenizer.from_json(table).chars == tokenizer.chars


@pytest.mark.parametrize(
    "table",
    [
        None,
        "",
        "{",
        "3",
        "[]",
        "{}",
        '{"kind": "bpe", "chars": ["a"]}',
        '{"kind": "char"}',
        '{"kind": "char", "chars": 3}',
        '{"kind": "char", "chars": [1]}',
        '{"kind": "char", "chars": "ab"}',
        '{"kind": "char", "chars": ["ab"]}',
        '{"kind": "char", "chars": ["a", "a"]}',
        '{"kind": "char", "chars": ["b", "a"]}',
        '{"kind": "char", "chars": ["a"], "more": 1}',
    ],
)
def test_refuses_another_table(table):
    with pytest.raises(UserError, match="not the table of a character tokenizer"):
        CharTokenizer.from_json(table)


def test_a_token_has_the_bytes_of_its_character():
    tokenizer = CharTokenizer.from_text("\naé漢😀\ud800")
    assert tokenizer.byte_lengths.tolist() == [1, 1, 2, 3, 3, 4]
    assert tokenizer.byte_lengths.dtype == np.int64 and tokenizer.end_of_text is None


def test_vocabulary_is_the_sorted_set():
    tokenizer = CharTokenizer.from_text("hello\nworld")
    assert tokenizer.chars == "\ndehlorw"
    assert tokenizer.vocab_size == 8
    assert json.loads(tokenizer.to_json()) == {"kind": "char", "chars": list("\ndehlorw")}


def test_facts_of_tiny_shakespeare(corpus):
    tokenizer = CharTokenizer.from_text(corpus)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert tokenizer.vocab_size == 65
    assert tokenizer.chars == "\n !$&',-.3:;?" + letters.upper() + letters
    assert tokenizer.encode("Bee3").tolist() == [14, 43, 43, 9]
    assert tokenizer.decode([14, 43, 43, 9]) == "Bee3"
    assert tokenizer.decode([18, 47, 56, 57, 58]) == "First"
    assert [c for c in tokenizer.chars if c.isdigit()] == ["3"]
    with pytest.raises(UserError, match="'7' at position 3, counted from 0, .* 65 characters"):
        tokenizer.encode("Bee7")


def test_unknown_character_is_named_with_its_place():
    tokenizer = CharTokenizer.from_text("ab\n")
    with pytest.raises(UserError) as error:
        tokenizer.encode("ab\nbxa\nx")
    assert str(error.value) == (
        r"'x' at position 4, counted from 0 (line 2, column 2), is not in the vocabulary, "
        r"which holds 3 characters: '\nab'; remove it, or train on a text that has it"
    )


@pytest.mark.parametrize("unknown", ["\0", "`", "c", "\xc5", "é", "\U0010ffff", "\udcff", "\n"])
def test_every_other_character_is_unknown(unknown):
    tokenizer = CharTokenizer.from_text("ab")
    with pytest.raises(UserError, match="at position 2, .*is not in the vocabulary") as error:
        tokenizer.encode("ab" + unknown + "ab")
    assert repr(unknown) in str(error.value)
    assert "\n" not in str(error.value)


COMPOSED = "un café à côté, près d’un hôtel\n"


@pytest.mark.report("27", "23")
@pytest.mark.parametrize(
    "vocabulary, text, sentence",
    [
        (COMPOSED, "cafe\u0301", r"'\u0301' (U+0301 COMBINING ACUTE ACCENT) at position 4, "),
        (COMPOSED, "cafe\u0301", r"; it has 'é' for 'e\u0301': compose the text (NFC)"),
        (normalize("NFD", COMPOSED), "é", r"characters: '\n ,acdefhlnoprstu\u0300\u0301\u0302’'"),
        (normalize("NFD", COMPOSED), "é", r"; it has 'e\u0301' for 'é': decompose the text (NFD)"),
        ("é", "e\u0301", r"'e' at position 0, counted from 0, is not in the vocabulary"),
        ("é", "e\u0301", r"; it has 'é' for 'e\u0301': compose the text (NFC)"),
        ("한국", normalize("NFD", "국"), "compose the text (NFC)"),
        ("0123", "2\uff11", "(U+FF11 FULLWIDTH DIGIT ONE) at position 1"),
        ("0123", "2\uff11", "; it has '1' for '\uff11': convert the text (NFKC)"),
        ("ab", "a\r\nb", r"'\r' (U+000D CARRIAGE RETURN) at position 1"),
        (
            "ab",
            "a\r\nb",
            r"convert the line ends, for example by `sed 's/\r$//' old.txt > new",
        ),
        ("ab", "\ufeffa", r"'\ufeff' (U+FEFF BYTE ORDER MARK) at position 0"),
        ("ab", "\u0430", "(U+0430 CYRILLIC SMALL LETTER A) at position 0"),
        ("ab", "\x1b", r"'\x1b' (U+001B a control character) at"),
        ("ab", "\udce9", r"'\udce9' (U+DCE9 a byte that is not UTF-8) at"),
        ("ab", "\u0378", r"'\u0378' (U+0378 unassigned) at"),
        ("é", "x\u0301", "; remove it, or train on a text that has it"),
        ("é", "à", "; remove it, or train on a text that has it"),
    ],
)
def test_an_unknown_character_can_be_seen_and_what_to_do_is_said(vocabulary, text, sentence):
    tokenizer = CharTokenizer.from_text(vocabulary)
    with pytest.raises(UserError) as error:
        tokenizer.encode(text)
    assert sentence in str(error.value)
    assert error.value.args[0].replace("’", "").isprintable()


def test_the_advice_of_a_form_holds():
    tokenizer = CharTokenizer.from_text(COMPOSED)
    text = normalize("NFD", COMPOSED)
    with pytest.raises(UserError, match="compose the text .NFC.$"):
        tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(normalize("NFC", text))) == COMPOSED


def test_a_large_vocabulary_is_cut_short_in_errors():
    tokenizer = CharTokenizer.from_text("".join(map(chr, range(0x4E00, 0x4E00 + 3000))))
    with pytest.raises(UserError, match="3000 characters: '.{100}' and 2900 more"):
        tokenizer.encode("a")


def test_an_empty_vocabulary_knows_the_empty_text_only():
    tokenizer = CharTokenizer.from_text("")
    assert (tokenizer.encode("").tolist(), tokenizer.decode([])) == ([], "")
    with pytest.raises(UserError):
        tokenizer.encode("\0")


@pytest.mark.parametrize("wrong", [-1, 3, 2**31, 2**80])
@pytest.mark.parametrize("kind", [list, iter, np.array])
def test_id_out_of_range_is_named_with_its_place(wrong, kind):
    tokenizer = CharTokenizer.from_text("abc")
    message = rf"token id {wrong} at position 1, .*out of range: the 3 tokens have ids 0 to 2"
    with pytest.raises(UserError, match=message):
        tokenizer.decode(kind([2, wrong, 0]))
