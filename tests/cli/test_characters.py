"""Characters in tables and messages: what stands for those that cannot be seen."""

import itertools

import pytest

from minigpt.cli.characters import display_width, pad, quoted, token_table, visible, wrap
from minigpt.data.characters import CharTokenizer


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


@pytest.mark.report("27")
def test_a_mark_in_quotes_is_an_escape():
    assert quoted("cafe\u0301") == r"'cafe\u0301'"
    assert quoted("\u0301") == r"'\u0301'" and quoted("it's") == '"it\'s"'
    assert quoted("\ud83c\n") == r"'\ud83c\n'"


def test_padding_is_by_the_columns_of_a_terminal():
    assert [pad("天", 4), pad("ab", 4), pad("abcd", 3)] == ["天  ", "ab  ", "abcd"]
