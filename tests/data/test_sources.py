"""What --data names: files, folders, globs and standard input."""

import io
import os
import sys
import types

import pytest

from minigpt import cli
from minigpt.data.sources import describe, find_sources, read_source
from minigpt.errors import UserError
from minigpt.train.config import TrainConfig


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder with texts and other files, as the current one."""
    for name in ("b.txt", "a.TXT", "sub/c.md", "sub/deep/d.txt", "code.py", ".hidden.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in (".git/e.txt", "run/data.txt", "run/metrics.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "sub"))
    return tmp_path


TEXTS_BELOW = ["./a.TXT", "./b.txt", "./sub/c.md", "./sub/deep/d.txt"]


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        ("b.txt", ["b.txt"]),
        ("code.py\nb.txt", ["code.py", "b.txt"]),
        (["code.py", "b.txt"], ["code.py", "b.txt"]),
        (".", TEXTS_BELOW),
        ("sub/", ["sub/c.md", "sub/deep/d.txt"]),
        ("*.txt", ["b.txt"]),
        ("**/*.txt", ["b.txt", "run/data.txt", "sub/deep/d.txt"]),
        (["b.txt", "*", "./b.txt"], ["b.txt", "a.TXT", "code.py"]),
        ("~/c.md", ["{home}/c.md"]),
        ("-", ["-"]),
        (["b.txt", "-"], ["b.txt", "-"]),
        ("missing.txt", ["missing.txt"]),
    ],
)
def test_data_names_files_folders_and_globs(tree, data, paths):
    home = str(tree / "sub")
    expected = [path.format(home=home).replace("/", os.sep) for path in paths]
    assert [source.path for source in find_sources(data)] == expected


def test_a_file_with_the_name_of_a_glob_is_that_file(tree):
    (tree / "[b].txt").touch()
    assert [source.path for source in find_sources("[b].txt")] == ["[b].txt"]


def test_other_endings_count_where_they_are_asked_for(tree):
    assert [source.path for source in find_sources("sub", (".md",))] == [f"sub{os.sep}c.md"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("*.doc", "--data *.doc: no file has a name like that"),
        ("run", None),
        ("other", "--data other is a folder, but none of its 1 files ends in .txt, .text, .md or"),
        ("none", "--data none is a folder, but it has no file that ends in .txt, .text, .md or"),
    ],
)
def test_a_name_that_stands_for_nothing_is_an_error_in_one_line(tree, data, message):
    for name in ("other/x.py", "none/deep/.x.txt"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).touch()
    if message is None:  # the folder of a run, if it is asked for itself
        assert [source.name for source in find_sources(data)] == [f"run{os.sep}data.txt"]
        return
    with pytest.raises(UserError) as error:
        find_sources(data)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="may read any folder")
def test_a_folder_that_cannot_be_read_is_named(tree):
    (tree / "sub" / "deep").chmod(0)
    try:
        with pytest.raises(UserError, match="deep cannot be read: Permission denied"):
            find_sources("sub")
    finally:
        (tree / "sub" / "deep").chmod(0o755)


def test_standard_input_is_read_to_its_end(monkeypatch):
    stdin = types.SimpleNamespace(buffer=io.BytesIO(b"\xef\xbb\xbfa\r\nb"))
    monkeypatch.setattr(sys, "stdin", stdin)
    (source,) = find_sources("-")
    assert (source.name, read_source(source)) == ("standard input", "a\r\nb")


@pytest.mark.report("3")
def test_a_closed_standard_input_is_an_error_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed; name a file"):
        read_source(*find_sources("-"))


def test_sources_have_one_name_of_known_length():
    assert describe(find_sources("a.txt")) == "a.txt"
    assert describe(find_sources(["a", "b"])) == "2 files: a, b"
    assert describe(find_sources([*"abcdefg"])) == "7 files: a, b, c and 4 more"


@pytest.mark.parametrize(
    "args",
    [
        ["--data", "a", "b", "-", "--seed", "3"],
        ["--data", "a", "--data", "b", "-"],
        ["--data", "a", "--data=b", "--data=-", "--seed=3"],
    ],
)
def test_a_flag_takes_several_names(args):
    parser = cli.parser("prog", "")
    cli.add_flags(parser, TrainConfig)
    assert parser.parse_args(args).data == "a\nb\n-"


def test_an_option_takes_a_list_of_names():
    assert TrainConfig(data=["a", "b"]).data == "a\nb"
    for wrong in ([], [1], {"a": "b"}, ["a", None]):
        with pytest.raises(UserError, match="data is .* it must be a string or None"):
            TrainConfig(data=wrong)


@pytest.mark.report("4")
def test_a_quoted_home_is_expanded_in_options_that_name_files(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    config = TrainConfig(out_dir="~/r", data=["~/a.txt", "b~c"])
    assert (config.out_dir, config.data) == ("/home/ann/r", "/home/ann/a.txt\nb~c")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nobody knows of a home
    for given in ({"out_dir": "~/r"}, {"data": "~"}):
        with pytest.raises(UserError, match="there is no home folder for ~; give the whole path"):
            TrainConfig(**given)
