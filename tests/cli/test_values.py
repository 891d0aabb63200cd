"""Values of flags: such as begin with a dash, several of one flag, those of a pasted command."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import cli
from minigpt.cli import option
from minigpt.errors import UserError
from tests.cli.test_flags import Train, parse


@pytest.mark.report("28")
@pytest.mark.parametrize(
    "value",
    ["-the", "--", "-", "-x", "--the", "- the", "", "-1", "-1e-3", "--out-dirs", "-x=--bias"],
)
def test_a_value_may_begin_with_a_dash(value):
    assert parse("--out-dir", value, "--bias") == {"out_dir": value, "bias": True}
    assert parse(f"--out-dir={value}", "--bias") == {"out_dir": value, "bias": True}
    name = shlex.split(cli.command("train", out_dir=value, n_layer=3))[1:]
    assert parse(*name) == {"out_dir": value, "n_layer": 3}


@pytest.mark.report("28")
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_value_comes_through_a_pasted_command(value):
    if value.isprintable() and os.name == "posix":
        words = shlex.split(cli.command("train", out_dir=value, n_layer=3))[1:]
        assert parse(*words) == {"out_dir": value, "n_layer": 3}
    assert parse(f"--out-dir={value}") == {"out_dir": value}


@pytest.mark.report("28")
def test_a_flag_can_be_a_value_behind_its_equals_sign():
    assert parse("--out-dir=--bias") == {"out_dir": "--bias"}


@dataclass(frozen=True)
class Texts(cli.Config):
    """Texts."""

    data: str = option("", "what to read", several=True)
    seed: int = option(0, "seed")


@pytest.mark.parametrize(
    "args, expected",
    [
        (["--data", "a", "b c", "--seed", "1"], {"data": "a\nb c", "seed": 1}),
        (["--data", "a", "--seed", "1", "--data", "b"], {"data": "a\nb", "seed": 1}),
        (["--data", "-", "-"], {"data": "-\n-"}),
        (["--data=-a", "--data", "-b", "c"], {"data": "-a\n-b\nc"}),
    ],
)
def test_a_flag_of_several_values_takes_all_up_to_the_next(args, expected):
    parser = cli.parser("prog", "")
    cli.add_flags(parser, Texts)
    assert vars(parser.parse_args(args)) == expected


def test_a_list_is_several_values_too():
    assert Texts(data=["a", Path("b")]).data == "a\nb"
    with pytest.raises(UserError, match="it must be a string"):
        Texts(data=["a", 3])
    with pytest.raises(UserError, match="it must be a string"):
        Train(out_dir=["a"])


@pytest.mark.report("21")
def test_a_text_that_is_not_utf8_is_refused(capsys):
    parser = cli.parser("prog", "")
    cli.add_flags(parser, Texts)
    with pytest.raises(SystemExit):
        parser.parse_args(["--data", "a\udcff"])
    assert capsys.readouterr().err == "prog: error: --data is not UTF-8: byte 0xff does not fit\n"
