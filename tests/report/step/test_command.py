"""`minigpt data --step`, as a user runs it."""

import os
import subprocess
import sys

import pytest

from minigpt.__main__ import main
from minigpt.cli.terminal import has_colours
from minigpt.data import __main__ as data
from minigpt.errors import UserError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("To be, or not to be 3. " * 10, "utf-8")
    return str(path)


def says(capsys, *argv):
    """Return the exit code and the output of `minigpt data`; errors as the program prints them."""
    try:
        status = main(["data", *argv])
    except SystemExit as leaving:
        status = leaving.code
    return status or 0, *capsys.readouterr()


def test_a_step_on_a_sentence_of_ones_own(capsys, text):
    status, out, err = says(capsys, "--step", "--data", text, "--prompt", "to bee", "--head=1")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "One training step on 'to bee', with the 11 characters of"
    for fact in (
        "minigpt/ops/attention.py:",
        "s = q @ k^T / sqrt(D)",
        "Queries, keys, values of head 1",
        "dlogits = (softmax(logits) - onehot(target)) * dloss / count",
        "nats per token",
    ):
        assert fact in out, fact
    assert max(map(len, lines)) <= 80 and "\x1b" not in out


def test_without_a_prompt_it_is_the_first_word(capsys, text):
    _, out, _ = says(capsys, "--step", "--data", text)
    assert out.startswith("One training step on 'To', with ")


def test_a_page_is_written_in_place_of_the_text(capsys, text, tmp_path):
    path = tmp_path / "walk.html"
    flags = "--step", "--data", text, "--prompt", "to be", "--page", str(path)
    status, out, _ = says(capsys, *flags)
    assert status == 0 and out.endswith(f"page: {path}\n") and len(out.splitlines()) < 30
    assert "minigpt/ops/attention.py" in path.read_text("utf-8")
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        main(["data", *flags])
    assert path.read_text() == "mine" and says(capsys, *flags, "--force")[0] == 0
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_without_step_it_is_the_walk_from_a_text_to_its_examples(capsys, text):
    _, out, _ = says(capsys, "--data", text, "--no-step")
    data.main(["--data", text])
    assert capsys.readouterr().out == out and out.startswith("Text: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=be"], "--prompt is for a training step; add --step"),
        (["--step", "--encode=be"], "--encode is for the walk without --step"),
        (["--page=walk.html"], "--page is for a training step; add --step"),
        (["--step", "--force"], "--force is for --page FILE"),
        (["--step", "--page=none/walk.html"], "--page none/walk.html: there is no folder none"),
        (["--step", "--prompt=b"], "--prompt 'b' has 1 character, but a step needs at least 2"),
        (["--step", "--prompt=bx"], "--prompt: 'x' at position 1"),
        (["--step", "--vocab-size=9"], "--vocab-size is for --tokenizer bpe"),
    ],
)
def test_what_cannot_be_walked_through_is_one_line(text, flags, message):
    with pytest.raises(UserError, match=message) as error:
        main(["data", "--data", text, *flags])
    assert "\n" not in str(error.value)


def test_heads_are_those_of_the_tiny_model(capsys, text):
    status, out, err = says(capsys, "--step", "--data", text, "--head=2")
    assert (status, out) == (2, "")
    assert err == "minigpt data: error: --head is 2; it must be at least 0 and below 2\n"


def test_the_module_of_the_data_says_where_the_step_is(capsys, text):
    with pytest.raises(SystemExit):
        data.main(["--data", text, "--step"])
    assert "`minigpt data --step` walks through a training step" in capsys.readouterr().err


def test_as_a_user_runs_it(text):
    command = [sys.executable, "-m", "minigpt", "data", "--step", "--data", text, "--prompt"]
    good = subprocess.run([*command, "to be"], capture_output=True, encoding="utf-8")
    assert (good.returncode, good.stderr) == (0, "") and "AdamW" not in good.stdout
    bad = subprocess.run([*command, "7"], capture_output=True, encoding="utf-8")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: --prompt: '7'") and bad.stderr.count("\n") == 1


def test_subwords_are_tokens_like_others(capsys, text):
    pytest.importorskip("tokenizers")
    flags = "--step", "--data", text, "--tokenizer=bpe", "--vocab-size=260"
    status, out, _ = says(capsys, *flags, "--prompt=to be or häß")
    assert status == 0 and "with the 260 tokens of" in out and "V = 260" in out


class Terminal:
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colours_are_for_terminals_that_have_them(monkeypatch, environment, colours):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_colours(Terminal()) is colours
    with open(os.devnull, "w") as file:
        assert not has_colours(file) and not has_colours(None)
