"""Reading text, writing that is whole or not at all."""

import codecs
import json
import os

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigpt.errors import UserError
from minigpt.files import (
    FOREIGN,
    METRICS,
    append,
    decode_utf8,
    describe_size,
    read_bytes,
    read_metrics,
    read_text,
    remove_file,
    write_atomically,
    writing,
)
from minigpt.library.model import read_history
from minigpt.report.loss_curve import draw_losses


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "\n", "\0", "é漢😀", "a\ufeffb", ""])
def test_a_text_keeps_every_character_but_a_byte_order_mark(tmp_path, text):
    path = tmp_path / "a.txt"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + text.encode())
        assert read_text(path, "--data") == read_text(str(path), "--data") == text


@pytest.mark.parametrize(
    "name, message",
    [
        ("none", "--flag {path} cannot be read: No such file or directory; name a TOML file"),
        (".", "--flag {path} is a folder; name a TOML file"),
        ("a\0b", "--flag {path} cannot be read: embedded null byte; name a TOML file"),
        ("file/b", "--flag {path} cannot be read: Not a directory; name a TOML file"),
        ("empty", "--flag {path} is empty; name a file with text in it"),
        ("mark", "--flag {path} is empty; name a file with text in it"),
        ("latin", "--flag {path} is not UTF-8: byte 0xe9 at offset 3 (counted from 0) does not "),
        (
            "utf16",
            "--flag {path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 old.txt > new.txt",
        ),
        ("cut", "--flag {path} is not UTF-8: byte 0xe6 at offset 2 (counted from 0) does not "),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, name, message):
    files = {"file": b"a", "empty": b"", "mark": b"\xef\xbb\xbf", "latin": b"caf\xe9 noir"}
    files |= {"utf16": "text".encode("utf-16"), "cut": b"ab\xe6\xbc"}
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw)
    path = f"{tmp_path}/{name}"
    with pytest.raises(UserError) as error:
        read_text(path, "--flag", "TOML file", empty=False)
    assert str(error.value).startswith(message.format(path=path))
    assert "\n" not in str(error.value)


def test_what_is_not_utf_8_comes_with_a_remedy():
    with pytest.raises(UserError) as error:
        decode_utf8(b"\xc4\xe3", "standard input, line 1")
    assert str(error.value) == (
        "standard input, line 1 is not UTF-8: byte 0xc4 at offset 0 (counted from 0) does not fit; "
        "convert it first, for example by `iconv -f GBK -t UTF-8 old.txt > new.txt`"
    )


@given(st.binary(max_size=20))
@example(b"\x1f\x8b")
def test_any_bytes_are_a_text_or_an_error_in_one_line(raw):
    try:
        assert decode_utf8(raw, "x").encode() == raw.removeprefix(codecs.BOM_UTF8)
    except UserError as error:
        told = ("x is not UTF-8: byte 0x", *(f"x is {what}" for what in FOREIGN.values()))
        assert str(error).startswith(told) and "\n" not in str(error)


def test_a_written_file_is_its_parts(tmp_path):
    path = tmp_path / "a"
    for parts in ([b"old"], [b"new", np.arange(3, dtype=np.uint8), b""], []):
        write_atomically(path, parts)
        assert read_bytes(path, "") == b"".join(map(bytes, parts))
    assert list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "b"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # as the user's other files


@pytest.mark.parametrize("name", ["open", "os.fsync", "os.replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name, failure):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(f"minigpt.files.{name}", fail, raising=False)
        with pytest.raises(type(failure)):
            write_atomically(path, [b"new"])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def failing(function, times):
    """Return a function that fails so many times, then does what `function` does."""
    failures = iter([PermissionError(13, "Access is denied")] * times)

    def call(*args, **kwargs):
        for failure in failures:
            raise failure
        return function(*args, **kwargs)

    return call


@pytest.mark.report("13")
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_what_is_in_the_way_for_a_moment_does_not_prevent_a_write(tmp_path, monkeypatch, name):
    pauses = []
    monkeypatch.setattr("minigpt.files.time.sleep", pauses.append)
    monkeypatch.setattr("minigpt.files.PAUSES_S", (0.1, 0.3, 0.6))
    monkeypatch.setattr(f"minigpt.files.os.{name}", failing(getattr(os, name), 3))
    write_atomically(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"new" and pauses == [0.1, 0.3, 0.6]
    monkeypatch.setattr(f"minigpt.files.os.{name}", failing(getattr(os, name), 4))
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "a", [b"newer"])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new"}


@pytest.mark.report("13")
def test_lines_are_added_whole_or_not_at_all(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "a", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("one\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (7, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append(path, "two\nthree\n")  # there is room for three characters
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "one\n"
    monkeypatch.setattr("minigpt.files.open", failing(open, 3), raising=False)
    append(path, "zw\u00f6lf\n")
    assert path.read_text("utf-8") == "one\nzw\u00f6lf\n"


@pytest.mark.report("30")
def test_a_link_stays_and_the_file_that_it_points_to_is_replaced(tmp_path):
    for folder in ("disk", "run"):
        (tmp_path / folder).mkdir()
    file, link = tmp_path / "disk" / "a", tmp_path / "run" / "a"
    link.symlink_to(file)
    for text in (b"made", b"replaced"):
        write_atomically(link, [text])
        assert link.is_symlink() and file.read_bytes() == text
    append(link, "!")
    assert link.is_symlink() and file.read_bytes() == b"replaced!"
    remove_file(link)
    assert link.is_symlink() and not file.exists()
    assert [*tmp_path.rglob("*.tmp")] == []


@pytest.mark.report("30")
def test_a_file_that_is_marked_read_only_is_not_replaced(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="marked read-only"):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "size, text",
    [
        (7, "7 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (2_340_000, "2.3 MB"),
        (5e12, "5000.0 GB"),
    ],
)
def test_a_size_is_told_in_its_unit(size, text):
    assert describe_size(size) == text


def test_the_new_file_is_synced_before_it_takes_the_name_of_the_old(tmp_path, monkeypatch):
    calls, (fsync, replace) = [], (os.fsync, os.replace)
    monkeypatch.setattr("minigpt.files.os.fsync", lambda *a: (calls.append("sync"), fsync(*a)))
    monkeypatch.setattr("minigpt.files.os.replace", lambda *a: (calls.append("name"), replace(*a)))
    write_atomically(tmp_path / "a", [b"new"])
    assert calls == ["sync", "name", "sync"]  # the file, then the folder


def test_what_goes_wrong_in_writing_is_a_user_error(tmp_path):
    message = "x: cannot be written: No such file or directory$"
    with pytest.raises(UserError, match=message), writing("x"):
        (tmp_path / "none" / "x").write_bytes(b"")


def test_metrics_are_read_without_what_a_killed_run_left_half_written(tmp_path):
    lines = [{"step": i, "train_loss": 1.0 / i, "val_loss": 2.0 / i} for i in (1, 2)]
    whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
    for rest in (b"", b'{"step": 3, "tr', b"\xff\xfe"):
        (tmp_path / METRICS).write_bytes(whole + rest)
        assert [*read_metrics(tmp_path)] == read_history(tmp_path) == lines
    with pytest.raises(OSError):
        next(read_metrics(tmp_path / "none"))
    assert read_history(tmp_path / "none") == []
    pytest.importorskip("matplotlib")
    assert draw_losses(tmp_path).read_bytes().startswith(b"\x89PNG")
