import itertools
import json
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.tokenizers import (
    CharTokenizer,
    Tokenizer,
    display_width,
    token_table,
    tokenizer_from_json,
    visible,
    wrap,
)
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
            '{"kind": "bpe", "chars": ["a"]}',
            "the kind of tokenizer is 'bpe'; choose from char, pair",
        ),
        ('{"kind": ["char"]}', "the kind of tokenizer is .'char'.; choose from char, pair"),
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


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        ("a", "a"),
        (" ", "' '"),
        ("\n", r"\n"),
        ("\t", r"\t"),
        ("\0", r"\x00"),
        ("\xa0", r"\xa0"),
        ("\u0301", r"\u0301"),  # combining: would sit on the character before
        ("\u200d", r"\u200d"),
        ("\u0903", r"\u0903"),  # a mark with a width of its own
        ("\ufe0f", r"\ufe0f"),
        ("\u1100", "\u1100"),  # the head of a Hangul syllable; its vowel and its end join it
        ("\u1161", r"\u1161"),
        ("\u11a8", r"\u11a8"),
        ("\ud7cb", r"\ud7cb"),
        ("\u3164", r"\u3164"),  # a filler that cannot be seen
        ("😀", "😀"),
        ("\U0001f1e9", r"\U0001f1e9"),  # two of these are one flag
        ("\U0001f3fd", r"\U0001f3fd"),  # a skin tone
        ("\\", "\\"),
        ("字", "字"),
        ("the", "the"),
        (" the", "' the'"),
        ("a\n", r"a\n"),
        ("  ", "'  '"),
    ],
)
@pytest.mark.report("14", "27")
def test_visible(token, seen):
    assert visible(token) == seen


@pytest.mark.report("14")
def test_the_width_of_what_is_visible():
    assert [display_width(visible(char)) for char in "a天😀ｱ\u1100\u1161\u0301"] == [
        *(1, 2, 2, 1, 2, 6, 6)
    ]


@pytest.mark.report("14")
def test_lines_are_wrapped_by_the_columns_of_a_terminal():
    assert wrap("ab天地c", 4) == ["ab天", "地c"]
    assert wrap("天地", 1) == ["天", "地"]
    assert wrap("", 5) == [""]


@pytest.mark.report("14")
@pytest.mark.parametrize("first, rows", [("一", 11), ("!", 12), ("\U0001f600", 11), ("\u0300", 7)])
def test_a_token_table_fits_a_terminal(first, rows):
    lines = token_table([chr(ord(first) + i) for i in range(60)]).splitlines()
    assert max(map(display_width, lines)) <= 78
    assert len(lines[0].split()) == 2 * rows


def test_token_table_of_tiny_shakespeare(corpus):
    assert token_table(CharTokenizer.from_text(corpus).chars).splitlines() == [
        r" 0 \n   1 ' '   2 !   3 $   4 &   5 '   6 ,   7 -   8 .   9 3  10 :  11 ;",
        r"12 ?   13 A    14 B  15 C  16 D  17 E  18 F  19 G  20 H  21 I  22 J  23 K",
        r"24 L   25 M    26 N  27 O  28 P  29 Q  30 R  31 S  32 T  33 U  34 V  35 W",
        r"36 X   37 Y    38 Z  39 a  40 b  41 c  42 d  43 e  44 f  45 g  46 h  47 i",
        r"48 j   49 k    50 l  51 m  52 n  53 o  54 p  55 q  56 r  57 s  58 t  59 u",
        r"60 v   61 w    62 x  63 y  64 z",
    ]


@pytest.mark.parametrize("count", [1, 11, 12, 13, 24, 99])
def test_token_table_fills_rows_of_12(count):
    tokens = [chr(0x100 + i) for i in range(count)]
    rows = [row.split() for row in token_table(tokens).splitlines()]
    assert [len(row) for row in rows[:-1]] == [24] * ((count - 1) // 12)
    cells = list(itertools.chain(*rows))
    assert cells == [word for i, token in enumerate(tokens) for word in (str(i), token)]


def test_token_table_lines_up_wide_characters():
    # 漢 takes two columns of a terminal, a half-width ｱ one.
    assert token_table("ab漢ｱcdef", columns=4).splitlines() == [
        "0 a  1 b  2 漢  3 ｱ",
        "4 c  5 d  6 e   7 f",
    ]
