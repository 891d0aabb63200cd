import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt import cli
from minigpt.cli import terminal

ROOT = Path(__file__).parents[2]
TEXT = "Zażółć €"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.report("28")
def test_a_command_has_its_flags_by_name():
    found = cli.command("minigpt train", resume=True, out_dir="runs/a", seed=None, bias=False)
    assert found == "minigpt train --resume --out-dir runs/a"
    assert cli.command("x", data=["a", "b c"], eval_tokens=10) == (
        "x --data a --data 'b c' --eval-tokens 10"
    )


@pytest.mark.report("28")
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "my run",
        "-x",
        "--",
        "it's",
        '"',
        "",
        "$HOME",
        "a;b",
        "a\\b",
        "*",
        "a\nb",
        "\x1b[31m",
    ],
)
def test_a_shell_reads_from_a_command_what_was_put_in(name):
    line = cli.command("printf '%s\\0'", out_dir=name)
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30)
    words = done.stdout.split("\0")[:-1]
    assert words == ([f"--out-dir={name}"] if name.startswith("-") else ["--out-dir", name])
    if name.isprintable():
        assert shlex.split(line)[2:] == words


def test_a_name_that_is_not_utf8_is_a_word_as_well():
    done = subprocess.run(
        ["bash", "-c", "printf %s " + terminal.shell_word("a\udcff")],
        capture_output=True,
        timeout=30,
    )
    assert done.stdout == b"a\xff"


@pytest.mark.report("26")
def test_a_terminal_gets_escapes_for_control_characters():
    text = "\x1b[31mred\x07\b\x9b\x7f\r\n\ttab\u202eé天😀\0"
    assert cli.printable(text, Terminal()) == (
        "\\x1b[31mred\\x07\\x08\\x9b\\x7f\\r\n\ttab\\u202eé天😀\\x00"
    )
    assert cli.printable(text, io.StringIO()) == text


def test_without_standard_output_a_text_is_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.printable("\x1b") == "\x1b"


@pytest.mark.report("26")
def test_an_error_shows_no_control_character():
    assert cli.one_line("--data nix\x1b[31mname\r.txt") == "--data nix\\x1b[31mname .txt"


def program(body, *args, **env):
    """Run `body` as the main function of a program, under an environment: (stdout, stderr)."""
    code = f"import sys\nfrom minigpt import UserError, cli\ndef main():\n    {body}\ncli.run(main)"
    free = ("PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL", "LANG", "PYTHONCOERCECLOCALE")
    env = {name: value for name, value in os.environ.items() if name not in free} | env
    words = [sys.executable, "-c", code, *args]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, timeout=60)
    return done.stdout, done.stderr


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.report("21")
def test_output_is_utf8_in_a_locale_of_ascii():
    out, err = program(f"print({TEXT!a}); raise UserError({TEXT!a})", **ASCII)
    assert out.decode() == f"{TEXT}\n"
    assert err.decode() == f"error: {TEXT}\n"


@pytest.mark.report("21")
@pytest.mark.parametrize(
    "wish, expected",
    [
        ("cp1252", "Za\\u017c\xf3\\u0142\\u0107 €\n".encode("cp1252")),
        ("ascii:replace", b"Za???? ?\n"),
        (":replace", f"{TEXT}\n".encode()),
        ("utf-8", f"{TEXT}\n".encode()),
    ],
)
def test_pythonioencoding_is_obeyed(wish, expected):
    assert program(f"print({TEXT!a})", **ASCII, PYTHONIOENCODING=wish)[0] == expected


@pytest.mark.report("21")
def test_a_text_is_read_as_utf8_and_a_name_printed_as_it_was_given():
    body = "print(ascii(cli.terminal.as_utf8(sys.argv[1], '--prompt')), sys.argv[1])"
    out, err = program(body, TEXT, **ASCII)
    assert (out.decode(), err) == (f"{ascii(TEXT)} {TEXT}\n", b"")
    out, err = program(body, b"a\xff", **ASCII)
    assert (out, err) == (b"", b"error: --prompt is not UTF-8: byte 0xff does not fit\n")
    out, err = program("print(sys.argv[1])", b"a\xff", **ASCII)
    assert (out, err) == (b"a\\udcff\n", b"")


def test_a_noun_follows_its_number():
    assert [cli.plural(n, "thread") for n in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
    assert [cli.plural(n, "different sources") for n in (1, 9)] == [
        *("1 different source", "9 different sources")
    ]
