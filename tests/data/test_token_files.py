"""The ids of a text: small dtypes, and files in the cache that are made once and checked."""

import os
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigpt
from minigpt.data import corpus, token_files
from minigpt.data.characters import CharTokenizer
from minigpt.data.datasets import TextData
from minigpt.data.subwords import BpeTokenizer
from minigpt.data.survey import survey
from minigpt.data.token_files import HEADER, cut_at, dtype_of
from minigpt.errors import UserError
from minigpt.train import __main__ as train
from tests.tools.reference import vocabulary
from tests.tools.training import FLAGS, TEXT

MANY = "".join(map(chr, range(0x100, 0x100 + 600)))  # more characters than a byte can number


PEAK = """# prints the bytes a character that a text takes at most
import re, sys
from minigpt.data import token_files
from minigpt.data.datasets import TextData

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

token_files.cache_folder = lambda: None
before = peak()
data = TextData(sys.argv[1])
print((peak() - before) / data.length)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of token files, for texts of any size."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr(token_files, "LARGE", 0)
    return tmp_path / "cache" / "minigpt"


@pytest.fixture
def own(tmp_path):
    """A text file with 620 different characters."""
    path = tmp_path / "own.txt"
    path.write_text((TEXT + MANY) * 3, "utf-8")
    return path


def ids_of(data):
    """All ids of a text."""
    return np.concatenate([data.train, data.val])


def test_ids_are_as_small_as_the_vocabulary_allows():
    sizes = (1, 256, 257, 65_536, 65_537, 10**6)
    assert [dtype_of(n).itemsize for n in sizes] == [1, 1, 2, 2, 4, 4]
    assert [dtype_of(n).kind for n in sizes] == [*"uuuuii"]


@pytest.mark.report("35")
def test_ids_in_a_file_are_those_in_memory(cache, own, monkeypatch):
    first, second = TextData(str(own)), TextData(str(own))
    monkeypatch.setattr(token_files, "LARGE", 1 << 24)
    small = TextData(str(own))
    expected = small.tokenizer.encode(own.read_text("utf-8"))
    for data in (first, second, small):
        np.testing.assert_array_equal(ids_of(data), expected)
        assert data.train.dtype == data.val.dtype == np.uint16
        assert data.sha256 == small.sha256
    (path,) = cache.iterdir()
    assert path.stat().st_size == HEADER + 2 * len(expected)
    assert first.notes == [f"the text's tokens are kept for next time: {path}, 0 MB"]
    assert second.notes == small.notes == []  # made once


@given(st.lists(st.text("ab", min_size=1), min_size=1), st.data())
def test_a_text_is_cut_after_so_many_characters(parts, data):
    text = "".join(parts)
    split = data.draw(st.integers(0, len(text) - 1))
    found = [*cut_at(parts, split)]
    assert [*cut_at(parts, None)] == parts
    border = found.index("")
    assert "".join(found[:border]) == text[:split] and "".join(found[border:]) == text[split:]
    assert found.count("") == 1


def test_a_text_is_cut_at_nine_tenths_of_its_characters(own):
    data, text = TextData(str(own)), own.read_text("utf-8")
    n = int(0.9 * len(text))
    assert data.tokenizer.decode(data.train) == text[:n] and data.split_at == n
    assert data.tokenizer.decode(data.val) == text[n:]


@pytest.mark.bpe
def test_subwords_are_of_one_part_of_the_split(cache, tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("the cat sat on the mat " * 19 + "the cats", "utf-8")
    text = (tmp_path / "t.txt").read_text()
    n = int(0.9 * len(text))
    assert text[n - 1 : n + 1] == "sa"  # within a word
    made = [TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=290) for _ in "ab"]
    monkeypatch.setattr(token_files, "LARGE", 1 << 24)
    for data in (*made, TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=290)):
        assert data.tokenizer.decode(data.train) == text[:n]
        assert data.val.tolist() == data.tokenizer.encode(text[n:]).tolist()
        assert data.train.tolist() == data.tokenizer.encode(text[:n]).tolist()
        assert len(data.train) != int(0.9 * (len(data.train) + len(data.val)))
        assert data.sizes == {"vocab_size": data.tokenizer.vocab_size}
    assert made[1].notes == data.notes  # its file has been read


@pytest.mark.bpe
def test_bpe_is_trained_on_the_training_part_alone(tmp_path):
    text = "the cat sat on the mat. " * 90 + "xyz" * 80
    (tmp_path / "t.txt").write_text(text, "utf-8")
    data = TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=270)
    expected = BpeTokenizer.train([text[: int(0.9 * len(text))]], 270)
    assert data.tokenizer.to_json() == expected.to_json()
    assert data.tokenizer.to_json() != BpeTokenizer.train([text], 270).to_json()


@pytest.mark.bpe
def test_the_whole_text_has_another_file_than_its_two_parts(cache, tmp_path):
    (tmp_path / "t.txt").write_text("the cat sat on the mat " * 19 + "the cats", "utf-8")
    data = TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=290)
    found = survey(data.sources)
    for _ in range(2):
        ids, border, _ = token_files.encode_text(data.sources, found, data.tokenizer)
        whole = (tmp_path / "t.txt").read_text()
        assert ids.tolist() == data.tokenizer.encode(whole).tolist()
    assert len([*cache.glob("*.tokens")]) == 2


@pytest.mark.bpe
def test_a_text_with_few_neighbours_says_how_many_tokens_it_gives(tmp_path):
    (tmp_path / "t.txt").write_text("ab ab cd " * 2 + "ab ab", "utf-8")
    (note,) = TextData(str(tmp_path / "t.txt"), kind="bpe").notes
    assert note.startswith("BPE has found 260 tokens, not the 1,024 of --vocab-size: no other two")
    assert TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=260).notes == []


@pytest.mark.bpe
def test_only_many_tokens_that_training_never_sees_are_worth_a_note(tmp_path):
    (tmp_path / "t.txt").write_text("the cat sat on the mat. " * 900 + "\u044f", "utf-8")
    assert TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=260).notes == []
    (tmp_path / "t.txt").write_text("the cat sat on the mat. " * 90 + "\u044f" * 240, "utf-8")
    (note,) = TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=260).notes
    assert note == (
        "100.0% of the tokens in the validation part are never seen in training: the table is of "
        "other texts, or the text changes on its way"
    )


@pytest.mark.bpe
def test_gpt2s_table_cuts_tiny_shakespeare_as_nanogpt_does(corpus, tmp_path):
    folder = vocabulary()
    (tmp_path / "t.txt").write_text(corpus, "utf-8")
    data = TextData(str(tmp_path / "t.txt"), kind=str(folder))
    assert (len(data.train), len(data.val)) == (301_966, 36_059)
    assert data.notes == [] and data.tokenizer.vocab_size == 50257
    assert data.tokenizer.byte_lengths[data.val].sum() == 111_540


@pytest.mark.bpe
@pytest.mark.parametrize("vocab_size, tokens", [(511, 59_436), (1023, 49_422)])
def test_a_table_of_tiny_shakespeare_gives_so_many_tokens(corpus, tmp_path, vocab_size, tokens):
    (tmp_path / "t.txt").write_text(corpus, "utf-8")
    data = TextData(str(tmp_path / "t.txt"), kind="bpe", vocab_size=vocab_size)
    assert (data.tokenizer.vocab_size, len(data.val)) == (vocab_size, tokens)


@pytest.mark.report("22")
@pytest.mark.skipif(os.name == "nt", reason="has no umask")
def test_a_file_has_the_permissions_of_any_other(cache, own):
    before = os.umask(0o027)
    try:
        TextData(str(own))
    finally:
        os.umask(before)
    (path,) = cache.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("damage", ["bit", "end", "more", "header", "empty", "other"])
def test_a_damaged_file_is_made_anew(cache, own, damage):
    expected = ids_of(TextData(str(own)))
    (path,) = cache.iterdir()
    good = path.read_bytes()
    path.write_bytes(
        {
            "bit": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
            "end": good[:-2],
            "more": good + b"\0\0",
            "header": b"{" + good[:HEADER].replace(b"<u2", b"<u1")[1:] + good[HEADER:],
            "empty": b"",
            "other": good.replace(b'"key": "', b'"key": "0')[:HEADER] + good[HEADER:],
        }[damage]
    )
    data = TextData(str(own))
    np.testing.assert_array_equal(ids_of(data), expected)
    assert path.read_bytes() == good and [*cache.iterdir()] == [path]


def test_another_text_or_tokenizer_has_a_file_of_its_own(cache, own, tmp_path):
    TextData(str(own))
    more = CharTokenizer.from_text(own.read_text("utf-8") + "😀")
    data = TextData(str(own), tokenizer=more)
    np.testing.assert_array_equal(ids_of(data), more.encode(own.read_text("utf-8")))
    (tmp_path / "other.txt").write_text(TEXT)
    TextData(str(tmp_path / "other.txt"))
    assert len([*cache.iterdir()]) == 3


def test_many_that_start_at_once_make_one_file(cache, own, monkeypatch):
    made, write = [], token_files.write_tokens

    def slowly(*args):
        made.append(args)
        time.sleep(0.2)
        write(*args)

    monkeypatch.setattr(token_files, "write_tokens", slowly)
    found = []
    threads = [threading.Thread(target=lambda: found.append(TextData(str(own)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(made) == 1 and len([*cache.iterdir()]) == 1
    for data in found:
        np.testing.assert_array_equal(ids_of(data), ids_of(found[0]))


def test_without_room_or_right_to_write_ids_are_held_in_memory(cache, own, monkeypatch, tmp_path):
    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(token_files.os, "replace", full)
        data = TextData(str(own))
    assert data.notes[-1].endswith("No space left on device; they are held in memory")
    assert not cache.exists()
    cache.parent.mkdir(exist_ok=True)
    cache.touch()  # a file where the folder should be
    other = TextData(str(own))
    assert other.notes[-1].endswith("they are held in memory")
    np.testing.assert_array_equal(ids_of(data), ids_of(other))
    monkeypatch.setattr(token_files, "cache_folder", lambda: None)
    np.testing.assert_array_equal(ids_of(data), ids_of(TextData(str(own))))


def test_a_file_that_cannot_be_touched_is_of_use(cache, own, monkeypatch):
    def refused(path):
        raise PermissionError

    expected = ids_of(TextData(str(own)))
    monkeypatch.setattr(token_files.os, "utime", refused)
    data = TextData(str(own))
    np.testing.assert_array_equal(ids_of(data), expected)
    assert data.notes == []


def test_a_text_that_changes_while_it_is_read_is_refused(cache, own, monkeypatch):
    def survey(sources):
        found = real(sources)
        own.write_text((TEXT + MANY) * 3 + "a", "utf-8")
        return found

    real = (
        token_files.__dict__.get("survey")
        or __import__("minigpt.data.survey", fromlist=["survey"]).survey
    )
    monkeypatch.setattr("minigpt.data.datasets.survey", survey)
    with pytest.raises(UserError, match="the text has changed while it was read; try again"):
        TextData(str(own))
    assert not cache.exists()


def test_files_that_nobody_uses_go_in_time(cache, own, tmp_path):
    TextData(str(own))
    (path,) = cache.iterdir()
    long_ago = time.time() - token_files.UNUSED - 60
    hours_ago = time.time() - token_files.LEFT_S - 60
    for name, then in (
        ("old.tokens", long_ago),
        ("killed.tokens.12.tmp", hours_ago),
        ("tinyshakespeare.txt", long_ago),
    ):
        (cache / name).touch()
        os.utime(cache / name, (then, then))
    os.utime(path, (long_ago, long_ago))
    TextData(str(own))  # used
    (tmp_path / "other.txt").write_text(TEXT)
    TextData(str(tmp_path / "other.txt"))  # makes a file
    names = {path.name for path in cache.iterdir()}
    assert path.name in names and "tinyshakespeare.txt" in names and len(names) == 3


def test_a_run_on_a_mapped_text_is_the_same_to_the_bit(
    cache, own, tmp_path, monkeypatch, no_picture
):
    flags = [f"--data={own}", *FLAGS, "--max-iters=4"]
    for run, large in (("mapped", 0), ("memory", 1 << 24)):
        monkeypatch.setattr(token_files, "LARGE", large)
        assert train.main([*flags, f"--out-dir={tmp_path / run}"]) == 0
    one, other = (minigpt.load(tmp_path / run).params.flat for run in ("mapped", "memory"))
    np.testing.assert_array_equal(one, other)
    assert len([*cache.iterdir()]) == 1


@pytest.mark.report("35")
@pytest.mark.slow
def test_text_and_ids_take_at_most_6_bytes_a_character(tmp_path):
    """In a process with little memory besides, without a cache: 40 MB of two alphabets."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    (tmp_path / "large.txt").write_text("Это — a text, 漢字.\n" * 1_500_000, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "large.txt"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 2  # an id takes one


@pytest.mark.report("4")
def test_the_cache_is_never_made_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nobody knows of a home
    for value in ("", "relative", "~/x"):
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.setenv(name, value)
        assert corpus.cache_folder() is None
