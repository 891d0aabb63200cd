"""The walk from a text to examples: `python -m minigpt.data`."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.cli.characters import display_width
from minigpt.data import __main__ as walkthrough
from minigpt.errors import UserError


@given(st.text())
def test_pieces_are_the_whole_text(text):
    assert "".join(walkthrough.pieces(text)) == text


def test_pieces_are_words_punctuation_and_space():
    pieces = walkthrough.pieces("Speak, speak.\n\nAll: ")
    assert "|".join(pieces) == "Speak|,| speak|.|\n\n|All|:| "


@pytest.fixture
def walk(tmp_path, capsys):
    """Write a text to a file, walk through it, and return what was printed."""

    def walk(text, *flags):
        path = tmp_path / "own.txt"
        path.write_bytes(text.encode())
        walkthrough.main(["--data", str(path), *flags])
        return capsys.readouterr().out

    return walk


def test_walk_through_tiny_shakespeare(corpus, walk):
    out = walk(corpus, "--encode", "Bee3", "--decode", "14 43 43 9")
    for fact in (
        "1,115,394 characters",
        "First Citizen:\n  Before we proceed any further, hear me speak.\n",
        "Vocabulary: 65 different characters",
        "\n  24 L   25 M    26 N  27 O  28 P  29 Q",
        "encode('Bee3') = [14, 43, 43, 9]\n",
        "decode([14, 43, 43, 9]) = 'Bee3'\n",
        "shape (1115394,), dtype uint8",
        "1,003,854 tokens",
        " 111,540 tokens",
        "train[:9] holds 8 examples",
        "\n  18                     -> 47   'F' -> 'i'\n",
        "\n  18 47 56 57 58 1 15 47 -> 58   'First Ci' -> 't'\n",
        "294,763 tokens",
    ):
        assert fact in out


def test_walk_through_a_small_text_by_hand(walk):
    out = walk("ab ab ab\tc\n" * 4, "--block-size", "2")
    assert out.startswith("Text: ")
    expected = r"""own.txt, 44 characters. The first 100:
  ab ab ab\tc
  ab ab ab\tc
  ab ab ab\tc
  ab ab ab\tc

Vocabulary: 6 different characters, sorted
  '\t\n abc'

Token table: id and character
  0 \t  1 \n  2 ' '  3 a  4 b  5 c

Encode and decode
  encode('ab') = [3, 4]
  decode([3, 4]) = 'ab'

Encoded text
  shape (44,), dtype uint8

Split: n = int(0.9 * 44)
  train       ids[:n]             39 tokens
  validation  ids[n:]              5 tokens

First block: train[:3] holds 2 examples, context -> next
  3   -> 4   'a' -> 'b'
  3 4 -> 2   'ab' -> ' '

Characters or subwords?
"""
    assert expected in out
    tradeoff = " ".join(out.split("subwords?")[1].split())
    # In a line: "ab", " ab" twice, tab, "c", line feed; "ab" only starts a line.
    assert "a sequence of 44 tokens from a table of 6." in tradeoff
    assert "it is 24 tokens, 1.8 times fewer, from a table of 5." in tradeoff
    assert "2,304 parameters for characters and 1,920 for words, 0% of which" in tradeoff


@pytest.mark.parametrize("text", ["a" * 20, "\n" * 20, "漢字" * 20, "\0\x1b[31m" * 10])
def test_walk_through_any_text(walk, text):
    out = walk(text, "--block-size", "1")
    assert "\x1b" not in out and "\0" not in out


HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
LONG = {  # texts that have no end of a word or of a line, and flags with long values
    "one giant word": ("ACGT" * 50_000, ()),
    "Chinese without spaces": (HAN, ()),
    "emoji": ("\U0001f600\U0001f468\U0001f3fd" * 5000, ()),
    "combining marks": ("e\u0301\u0323" * 5000, ()),
    "a long block": (HAN, ("--block-size", "400")),
    "a long text to encode": ("ab \n" * 500, ("--encode", "ab " * 30_000)),
    "many ids to decode": ("ab \n" * 500, ("--decode", "0 1 2 3 " * 30_000)),
}


@pytest.mark.report("5")
@pytest.mark.parametrize(("text", "flags"), LONG.values(), ids=LONG)
def test_what_is_printed_is_as_small_whatever_the_text(walk, text, flags):
    lines = walk(text, *flags).splitlines()
    assert len(lines) <= 120
    for line in lines:
        assert line.startswith("Text: ") or display_width(line) <= 90, line


@pytest.mark.report("5")
def test_what_is_cut_is_told_with_its_length(walk):
    out = walk("ab" * 50_000)
    begin = "ab" * 25
    assert f"encode('{begin}'... (100,000 characters)) =\n      [0, 1, 0" in out
    assert ", ...] (100,000 ids)) =\n      'abab" in out
    out = walk(HAN)
    assert "Vocabulary: 5,000 different characters, sorted" in out
    assert out.count("... and 4,880 more, up to 4999 \u6187") == 2


def test_only_the_head_of_a_large_text_is_cut_into_words(walk, monkeypatch):
    monkeypatch.setattr(walkthrough, "HEAD", 1000)
    out = " ".join(walk("one two\n" * 1000).split())
    assert "8,000 characters. The first 100:" in out and "shape (8000,)" in out
    assert "the first 1,000 characters are a sequence of 1,000 tokens from a table of 7" in out
    assert "it is 375 tokens" in out


def test_the_walk_reads_standard_input_and_several_files(tmp_path):
    command = [sys.executable, "-m", "minigpt.data", "--data", "-", tmp_path / "b.txt"]
    (tmp_path / "b.txt").write_text("b\r\n" * 20)
    done = subprocess.run(command, input="\ufeffa b c" * 9, capture_output=True, encoding="utf-8")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Text: 2 files: standard input, {tmp_path / 'b.txt'}, 114 char")
    notes = done.stderr.splitlines()
    assert [note[:40] for note in notes] == [
        "note: 20 lines of the text end in CR LF,",
        "note: the text has 8 byte order marks (U",
    ]


@pytest.mark.parametrize("words", ["0 1 0", "0,1,0", "[0, 1, 0]", " 0  1\n0 "])
def test_decode_takes_what_encode_prints(walk, words):
    assert "decode([0, 1, 0]) = 'aba'" in walk("ab" * 50, "--decode", words)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encode", "ac"], "'c' at position 1"),
        (["--decode", "0 2"], "token id 2 at position 1"),
        (["--decode", "0 -1"], "token id -1 at position 1"),
        (["--decode", "0 x"], "--decode '0 x' is not a list of ids"),
        (["--block-size", "10"], "--block-size 10 needs 11"),
    ],
)
def test_bad_flags_print_nothing_else(walk, capsys, flags, message):
    with pytest.raises(UserError, match=message):
        walk("ab" * 50, *flags)
    assert capsys.readouterr().out == ""


def test_a_block_size_below_1_is_refused(walk, capsys):
    with pytest.raises(SystemExit):
        walk("ab" * 50, "--block-size", "0")
    out, err = capsys.readouterr()
    assert out == "" and "--block-size is 0; it must be at least 1" in err


def run(*flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", "minigpt.data", *flags],
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
    )


def test_as_a_user_runs_it(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("To be, or not to be. " * 20, "utf-8")
    good = run("--data", path)
    assert (good.returncode, good.stderr) == (0, "")
    assert "420 characters" in good.stdout
    for flags in (
        ["--data", tmp_path / "*.md"],
        ["--data", path, "--encode", "Bee7"],
        ["--blocksize", "8"],
    ):
        bad = run(*flags)
        assert (bad.returncode, bad.stdout) == (2, "")
        assert bad.stderr.count("\n") == 1 and "error: " in bad.stderr


def test_a_code_by_counts_takes_the_bits_of_its_probabilities():
    train, val = np.array([0, 0, 1, 0, 1]), np.array([0, 1, 1])
    p = [4 / 8, 3 / 8, 1 / 8]  # one more than each count, of three tokens
    assert walkthrough.count_bits(train, val, 3) == pytest.approx(-2 * np.log2(p[1]))
    after_0, after_1 = (2 + 10 * p[1]) / (3 + 10), (0 + 10 * p[1]) / (1 + 10)
    bits = -np.log2(after_0) - np.log2(after_1)
    assert walkthrough.count_bits(train, val, 3, pairs=True) == pytest.approx(bits)


def test_a_walk_with_subwords_shows_tokens_merges_and_what_they_save(walk, tmp_path):
    pytest.importorskip("tokenizers")
    text = "the cat and the hat, the häß\n" * 40
    out = walk(text, "--tokenizer", "bpe", "--vocab-size", "262", "--block-size", "2")
    for fact in (
        "Vocabulary: 262 tokens, by their length\n    1 byte        256\n",
        "6 merges, in the order in which they were learnt\n       1  'h' + 'e'\n",
        "Token table: id and token\n    0 !",
        "... and 142 more, up to 261 ",
        "Split: n = int(0.9 * 1160) characters, encoded\n",
        "First block: train[:3] holds 2 examples, context -> next",
        "Characters or subwords, by this text's numbers\n",
    ):
        assert fact in out, fact
    tokens = out.split(" tokens:\n")[1].split("\n\n")[0].replace("|", "").strip()
    assert tokens == "the cat and the hat, the h\\xc3\\xa4\\xc3\\x9f"
    rows = dict(
        line.strip().split("  ", 1) for line in out.splitlines() if "bits per byte, " in line
    )
    for numbers in rows.values():
        of_chars, of_tokens = map(float, numbers.split())
        assert 0 < of_tokens < of_chars < 8
    assert all(display_width(line) <= 80 for line in out.splitlines()[1:])


def test_a_walk_with_a_table_from_a_file_is_that_with_the_table(walk, tmp_path):
    pytest.importorskip("tokenizers")
    from minigpt.data.subwords import BpeTokenizer

    text = "the cat and the hat\n" * 40
    table = BpeTokenizer.train([text[: int(0.9 * len(text))]], 262).tokenizer_json()
    (tmp_path / "tokenizer.json").write_text(table, encoding="utf-8")
    trained = walk(text, "--tokenizer=bpe", "--vocab-size=262")
    assert walk(text, f"--tokenizer={tmp_path}") == trained
    with pytest.raises(UserError, match="--vocab-size is for --tokenizer bpe"):
        walk(text, "--vocab-size=300")
