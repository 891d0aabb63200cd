import argparse
import dataclasses
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import cli
from minigpt.cli import option
from minigpt.errors import UserError


@dataclass(frozen=True)
class Model(cli.Config):
    """Size of the model.

    The second line is no part of the title.
    """

    vocab_size: int
    n_layer: int = option(dataclasses.MISSING, "blocks")
    dropout: float = option(0.0, "fraction of values set to 0, 20% is usual", min=0, below=1)
    bias: bool = option(True, "biases in the linears")
    qkv_bias: bool | None = option(None, "biases of q, k and v; as --bias if left out")
    init: str = option(
        "residual",
        "initialization",
        choices=("residual", "plain"),
        answers={"gpt2": "GPT-2's is residual"},
        rare=True,
    )


@dataclass(frozen=True)
class Train(cli.Config):
    """Training."""

    max_iters: int = option(2000, "training steps", min=1, below=2**48)
    min_lr: float | None = option(
        None, "learning rate at the end; a tenth if left out", above=0, max=2, group="Rate"
    )
    out_dir: str = option("out", "where checkpoints go", metavar="DIR")
    tokens: int = option(0, "tokens in the vocabulary", flag=False)


def make_parser(**settings):
    answers = {"--device": "use --backend", "--torch-compile": "leave it out"}
    parser = cli.parser("python -m minigpt.train", "Train a model.", answers)
    cli.add_flags(parser, Model, Train, **settings)
    return parser


def parse(*args):
    return vars(make_parser().parse_args(args))


def error_of(capsys, *args):
    """Standard error of a command line that is refused: one line, exit code 2, no output."""
    with pytest.raises(SystemExit) as leaving:
        parse(*args)
    out, err = capsys.readouterr()
    assert leaving.value.code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n")
    prefix = "python -m minigpt.train: error: "
    assert err.startswith(prefix)
    return err.removeprefix(prefix).rstrip("\n")


def test_the_namespace_holds_only_what_was_given():
    assert parse() == {}
    assert parse("--n-layer", "3", "--dropout=0.5", "--no-bias", "--min-lr", "1e-4") == {
        "n_layer": 3,
        "dropout": 0.5,
        "bias": False,
        "min_lr": 1e-4,
    }
    assert parse("--qkv-bias", "--out-dir", "out 2", "--init", "plain") == {
        "qkv_bias": True,
        "out_dir": "out 2",
        "init": "plain",
    }


@pytest.mark.parametrize("yes, no", [("True", "False"), ("true", "false")])
def test_flags_are_understood_as_nanogpt_writes_them(yes, no):
    given = parse("--n_layer=4", f"--bias={no}", f"--qkv_bias={yes}", "--out_dir=a_b=c")
    assert given == {"n_layer": 4, "bias": False, "qkv_bias": True, "out_dir": "a_b=c"}
    assert parse("--bias", no, "--n_layer", "4") == {"bias": False, "n_layer": 4}
    assert parse("--out-dir", yes, "--bias") == {"out_dir": yes, "bias": True}
    parser = make_parser()
    parser.add_argument("--resume", action="store_true")
    assert vars(parser.parse_args([f"--resume={no}"])) == {"resume": False}
    assert vars(parser.parse_args([f"--resume={yes}"])) == {"resume": True}


def test_help_all_shows_the_rare_flags_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as leaving:
        parse("--help-all")
    assert leaving.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "--init {residual,plain} initialization (default: residual)" in lines
    assert "--n-layer N blocks" in lines
    assert "--help-all" not in cli.parser("program", "Does it.").format_help()


def test_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: python -m minigpt.train [flags]\n\nTrain a model.\n")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Size of the model:" in lines and "Training:" in lines
    assert "--n-layer N blocks" in lines
    assert "--max-iters N training steps (default: 2000)" in lines
    assert "--bias, --no-bias biases in the linears (default: on)" in lines
    assert "Rate:" in lines and "--help-all show all flags, rare ones too" in lines
    assert lines.index("--out-dir DIR where checkpoints go (default: out)") < lines.index("Rate:")
    assert "--out-dir DIR where checkpoints go (default: out)" in lines
    text = " ".join(lines)
    assert "--dropout X fraction of values set to 0, 20% is usual (default: 0.0)" in text
    assert (
        "vocab" not in text
        and "tokens" not in text
        and "None" not in text
        and "second line" not in text
        and "--init" not in text
    )
    assert lines.index("--n-layer N blocks") < lines.index("Training:")


def test_help_shows_the_defaults_that_the_program_names():
    out = " ".join(make_parser(defaults={"n_layer": 4, "bias": False}).format_help().split())
    assert "--n-layer N blocks (default: 4)" in out
    assert "biases in the linears (default: off)" in out
    assert vars(make_parser(defaults={"n_layer": 4}).parse_args([])) == {}


@pytest.mark.parametrize(
    "args, message",
    [
        (["--n-layers", "3"], "unknown flag '--n-layers'; did you mean '--n-layer'?"),
        (["--n_layers=3"], "unknown flag '--n_layers'; did you mean '--n-layer'?"),
        (["--max", "3"], "unknown flag '--max'; did you mean '--max-iters'?"),
        (["--max-iter", "3"], "unknown flag '--max-iter'; did you mean '--max-iters'?"),
        (["--nobias"], "unknown flag '--nobias'; did you mean '--no-bias'?"),
        (["--n-layer", "3", "--zzz"], "unknown flag '--zzz'; --help lists the flags"),
        (["text.txt"], "unknown argument 'text.txt'; --help lists the flags"),
        (["a\nb"], "unknown argument 'a\\nb'; --help lists the flags"),
        (["--n-layer", "six"], "--n-layer is 'six'; it must be a whole number"),
        (["--n-layer", "6.5"], "--n-layer is '6.5'; it must be a whole number"),
        (["--n_layer=6.5"], "--n-layer is '6.5'; it must be a whole number"),
        (["--dropout", "a\nb"], "--dropout is 'a\\nb'; it must be a number"),
        (["--dropout", ""], "--dropout is ''; it must be a number"),
        (["--dropout=nan"], "--dropout is nan; it must be a number"),
        (["--dropout=1"], "--dropout is 1.0; it must be at least 0 and below 1"),
        (["--max-iters=0"], "--max-iters is 0; it must be at least 1"),
        (["--bias=maybe"], "--bias is 'maybe'; it must be True or False, or --bias alone"),
        (["--no-bias=True"], "--no-bias is 'True'; it must be True or False, or --no-bias alone"),
        (["--device", "cuda"], "--device: use --backend"),
        (["--torch_compile=True"], "--torch_compile: leave it out"),
        (["--epochs=3"], "unknown flag '--epochs'; --help lists the flags"),
        (["--n-layer"], "--n-layer: expected a value"),
        (
            ["--out-dir", "--n_layer=3"],
            "--out-dir: expected a value, but --n_layer=3 follows; write --out-dir=--n_layer=3 "
            "if it is meant",
        ),
        (
            ["--out-dir", "-h"],
            "--out-dir: expected a value, but -h follows; write --out-dir=-h if it is meant",
        ),
        (["--dropout", "-1e-3"], "--dropout is -0.001; it must be at least 0 and below 1"),
    ],
)
def test_a_bad_command_line_is_one_line_on_stderr(capsys, args, message):
    assert error_of(capsys, *args) == message


def test_a_bad_choice_lists_the_choices(capsys):
    message = error_of(capsys, "--init", "plian")
    assert message == "--init is 'plian'; choose from residual, plain; did you mean 'plain'?"
    message = error_of(capsys, "--init=gpt2")
    assert message == "--init is 'gpt2'; choose from residual, plain; GPT-2's is residual"


def test_build_fills_in_the_defaults():
    config = cli.build(Model, {"vocab_size": 65, "n_layer": 2, "bias": False})
    assert config == Model(vocab_size=65, n_layer=2, bias=False)
    assert config.dropout == 0.0 and config.qkv_bias is None
    assert cli.build(Train, {"min_lr": None}) == Train()


def test_build_takes_an_int_for_a_float():
    value = cli.build(Train, {"min_lr": 1}).min_lr
    assert value == 1.0 and type(value) is float


WRONG = (
    ({"max_iters": "1"}, "max_iters is '1'; it must be a whole number"),
    ({"max_iters": 1.0}, "max_iters is 1.0; it must be a whole number"),
    ({"max_iters": True}, "max_iters is True; it must be a whole number"),
    ({"max_iters": None}, "max_iters is None; it must be a whole number"),
    ({"min_lr": True}, "min_lr is True; it must be a number or None"),
    ({"min_lr": float("nan")}, "min_lr is nan; it must be a number or None"),
    ({"min_lr": 10**309}, f"min_lr is {'1' + 59 * '0'}; it must be a number or None"),
    ({"min_lr": 0}, "min_lr is 0.0; it must be above 0 and at most 2"),
    ({"min_lr": 2.1}, "min_lr is 2.1; it must be above 0 and at most 2"),
    ({"out_dir": 3}, "out_dir is 3; it must be a string"),
    ({"out_dir": ["out"]}, "out_dir is ['out']; it must be a string"),
    ({"max_iters": 0}, "max_iters is 0; it must be at least 1"),
    ({"max_iters": 2**48}, f"max_iters is {2**48}; it must be at least 1 and below 2**48"),
    ({"tokens": 0.5}, "tokens is 0.5; it must be a whole number"),
)


@pytest.mark.parametrize("values, message", WRONG)
def test_a_config_made_in_python_is_checked_like_a_command_line(values, message):
    with pytest.raises(UserError) as error:
        Train(**values)
    assert str(error.value) == message


@dataclass(frozen=True)
class Other(cli.Config):
    base: str | None = option(None, "where the weights are from")
    decay: float | None = option(0.1, "weight decay", auto=True)


def test_none_takes_a_value_away_where_there_may_be_none(capsys):
    assert parse("--min-lr", "none") == {"min_lr": None}
    assert Train(min_lr="None") == Train() and Train(out_dir="none").out_dir == "none"
    assert Other(base="none").base == "none" and Other(decay="auto").decay is None
    with pytest.raises(UserError, match="decay is 'none'; it must be a number or auto"):
        Other(decay="none")
    with pytest.raises(SystemExit):
        parse("--max-iters=none")
    assert "--max-iters is 'none'; it must be a whole number" in capsys.readouterr().err
    with pytest.raises(UserError, match="min_lr is 'nothing'; it must be a number or None"):
        Train(min_lr="nothing")


def test_numbers_and_paths_of_other_libraries_are_accepted():
    config = Train(max_iters=np.int64(7), min_lr=np.float32(0.5), out_dir=Path("a", "b"))
    assert config == Train(7, 0.5, os.path.join("a", "b"))
    assert [type(value) for value in vars(config).values()] == [int, float, str, int]
    assert type(Train(min_lr=np.int32(1)).min_lr) is float
    with pytest.raises(UserError, match="max_iters is np.float64"):
        Train(max_iters=np.float64(7))


def test_an_option_can_have_another_default_in_a_class_made_from_another():
    @dataclass(frozen=True)
    class Other(Model):
        """Another."""

        bias: bool = cli.option_of(Model, "bias", False)

    assert [Other(1, 2).bias, Model(1, 2).bias] == [False, True]
    assert [*cli.fields_of(Other)] == [*cli.fields_of(Model)]
    with pytest.raises(UserError, match="bias is 1; it must be True or False"):
        Other(1, 2, bias=1)


@pytest.mark.parametrize(
    "cls, values, message",
    [
        (Train, {"max_iter": 1}, "unknown option 'max_iter'; did you mean 'max_iters'?"),
        (Train, {"zzz": 1}, "unknown option 'zzz'"),
        *[(Train, *case) for case in WRONG],
        (Model, {"bias": 1}, "bias is 1; it must be True or False"),
        (Model, {}, "Model: no value for vocab_size, n_layer"),
        (
            Model,
            {"n_layer": 2, "init": "plian"},
            "init is 'plian'; choose from residual, plain; did you mean 'plain'?",
        ),
    ],
)
def test_build_refuses(cls, values, message):
    with pytest.raises(UserError) as error:
        cli.build(cls, values)
    assert str(error.value) == message


def test_annotations_may_be_strings():
    @dataclass(frozen=True)
    class Quoted:
        """Quoted."""

        steps: "int | None" = option(None, "steps")

    parser = cli.parser("prog", "")
    cli.add_flags(parser, Quoted)
    assert cli.build(Quoted, vars(parser.parse_args(["--steps", "3"]))) == Quoted(3)


VALUES = st.fixed_dictionaries(
    {"n_layer": st.integers()},
    optional={
        "dropout": st.floats(0, 1, exclude_max=True),
        "bias": st.booleans(),
        "qkv_bias": st.booleans(),
        "init": st.sampled_from(["residual", "plain"]),
    },
)


@given(VALUES)
def test_flags_and_configs_agree(values):
    args = [
        f"--{'' if value or type(value) is not bool else 'no-'}{name.replace('_', '-')}"
        + ("" if type(value) is bool else f"={value}")
        for name, value in values.items()
    ]
    given_flags = parse(*args)
    assert given_flags == values
    assert cli.build(Model, {"vocab_size": 2, **given_flags}) == Model(vocab_size=2, **values)


def test_choose():
    table = {"nanogpt-cpu": 1, "gpt2": 2}
    assert cli.choose("gpt2", table, "preset") == 2
    with pytest.raises(UserError) as error:
        cli.choose("nanogpt_cpu", table, "preset")
    assert str(error.value) == (
        "preset is 'nanogpt_cpu'; choose from nanogpt-cpu, gpt2; did you mean 'nanogpt-cpu'?"
    )


def test_nearest():
    assert cli.nearest("n_heads", ["n_layer", "n_head"]) == "; did you mean 'n_head'?"
    assert cli.nearest("--n_layers", ["--n-layer"]) == "; did you mean '--n-layer'?"
    assert cli.nearest("--max", ["--max-seconds", "--max-iters"]) == "; did you mean '--max-iters'?"
    for word in ("x", "n", "ny", "layer_norm"):
        assert cli.nearest(word, ["n_layer", "n_head"]) == ""
    assert cli.nearest("x", []) == ""


def test_options_of_argparse_stay_usable():
    parser = make_parser()
    parser.add_argument("--preset", default=argparse.SUPPRESS)
    assert vars(parser.parse_args(["--preset", "gpt2"])) == {"preset": "gpt2"}


def test_a_field_from_a_parent_class_is_one_flag():
    @dataclass(frozen=True)
    class Larger(Model):
        """A larger model."""

        experts: int = option(2, "MLPs per block")

    parser = cli.parser("program", "Does it.")
    cli.add_flags(parser, Model, Larger)
    assert vars(parser.parse_args(["--n-layer", "2", "--experts", "3"])) == {
        "n_layer": 2,
        "experts": 3,
    }
    assert parser.format_help().count("--dropout X") == 1
    alone = cli.parser("program", "Does it.")
    cli.add_flags(alone, Larger)
    assert vars(alone.parse_args(["--n-layer", "2"])) == {"n_layer": 2}


def test_a_gpu_that_fails_is_reported_in_one_line(monkeypatch, capsys):
    class CUDARuntimeError(RuntimeError):
        pass

    def fail():
        raise CUDARuntimeError("\ncudaErrorUnknown: it is gone\nsee there")

    assert cli.device_failures() == () or "cupy" in sys.modules
    monkeypatch.setitem(
        sys.modules,
        cli.FAILURES["CUDARuntimeError"],
        types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
    )
    with pytest.raises(SystemExit) as leaving:
        cli.run(fail)
    assert leaving.value.code == 2
    assert capsys.readouterr().err == (
        "error: the GPU failed (cudaErrorUnknown: it is gone); check it with `minigpt doctor`\n"
    )
