import argparse
import dataclasses
import sys
import types
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import cli
from minigpt.cli import option
from minigpt.errors import UserError


@dataclass(frozen=True)
class Model:
    """Size of the model.

    The second line is no part of the title.
    """

    vocab_size: int
    n_layer: int = option(dataclasses.MISSING, "blocks")
    dropout: float = option(0.0, "share of values set to 0, 20% is usual")
    bias: bool = option(True, "biases in the linears")
    qkv_bias: bool | None = option(None, "biases of q, k and v; as --bias if left out")
    init: str = option("gpt2", "initialization", choices=("gpt2", "lecture"))


@dataclass(frozen=True)
class Train:
    """Training."""

    max_iters: int = option(2000, "training steps")
    min_lr: float | None = option(None, "learning rate at the end; a tenth if left out")
    out_dir: str = option("out", "where checkpoints go", metavar="DIR")
    tokens: int = option(0, "tokens in the vocabulary", flag=False)

    def __post_init__(self):
        if self.max_iters < 1:
            raise UserError(f"max_iters is {self.max_iters}, but needs to be 1 or more")


def make_parser(**settings):
    parser = cli.parser("python -m minigpt.train", "Train a model.")
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
    assert parse("--n-layer", "3", "--dropout=1", "--no-bias", "--min-lr", "1e-4") == {
        "n_layer": 3,
        "dropout": 1.0,
        "bias": False,
        "min_lr": 1e-4,
    }
    assert parse("--qkv-bias", "--out-dir", "out 2", "--init", "lecture") == {
        "qkv_bias": True,
        "out_dir": "out 2",
        "init": "lecture",
    }


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
    assert "--init {gpt2,lecture} initialization (default: gpt2)" in lines
    assert "--out-dir DIR where checkpoints go (default: out)" in lines
    text = " ".join(lines)
    assert "--dropout X share of values set to 0, 20% is usual (default: 0.0)" in text
    assert (
        "vocab" not in text
        and "tokens" not in text
        and "None" not in text
        and "second line" not in text
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
        (["--n_layer=3"], "unknown flag '--n_layer'; did you mean '--n-layer'?"),
        (["--max", "3"], "unknown flag '--max'; did you mean '--max-iters'?"),
        (["--max-iter", "3"], "unknown flag '--max-iter'; did you mean '--max-iters'?"),
        (["--nobias"], "unknown flag '--nobias'; did you mean '--no-bias'?"),
        (["--n-layer", "3", "--zzz"], "unknown flag '--zzz'; --help lists the flags"),
        (["text.txt"], "unknown argument 'text.txt'; --help lists the flags"),
        (["a\nb"], "unknown argument 'a\\nb'; --help lists the flags"),
        (["--n-layer", "six"], "argument --n-layer: invalid int value: 'six'"),
        (["--n-layer", "6.5"], "argument --n-layer: invalid int value: '6.5'"),
        (["--dropout", "a\nb"], "argument --dropout: invalid float value: 'a\\nb'"),
        (["--dropout", ""], "argument --dropout: invalid float value: ''"),
        (["--n-layer"], "argument --n-layer: expected one argument"),
    ],
)
def test_a_bad_command_line_is_one_line_on_stderr(capsys, args, message):
    assert error_of(capsys, *args) == message


def test_a_bad_choice_lists_the_choices(capsys):
    message = error_of(capsys, "--init", "gtp2")
    assert message.startswith("argument --init: invalid choice: 'gtp2'")
    assert "gpt2" in message and "lecture" in message


def test_build_fills_in_the_defaults():
    config = cli.build(Model, {"vocab_size": 65, "n_layer": 2, "bias": False})
    assert config == Model(vocab_size=65, n_layer=2, bias=False)
    assert config.dropout == 0.0 and config.qkv_bias is None
    assert cli.build(Train, {"min_lr": None}) == Train()


def test_build_takes_an_int_for_a_float():
    value = cli.build(Train, {"min_lr": 1}).min_lr
    assert value == 1.0 and type(value) is float


@pytest.mark.parametrize(
    "cls, values, message",
    [
        (Train, {"max_iter": 1}, "Train: unknown key 'max_iter'; did you mean 'max_iters'?"),
        (Train, {"zzz": 1}, "Train: unknown key 'zzz'"),
        (Train, {"max_iters": "1"}, "Train: max_iters is '1', but needs int"),
        (Train, {"max_iters": 1.0}, "Train: max_iters is 1.0, but needs int"),
        (Train, {"max_iters": True}, "Train: max_iters is True, but needs int"),
        (Train, {"max_iters": None}, "Train: max_iters is None, but needs int"),
        (Train, {"min_lr": True}, "Train: min_lr is True, but needs float or None"),
        (Train, {"min_lr": float("nan")}, "Train: min_lr is nan, but needs float or None"),
        (Train, {"min_lr": 10**309}, f"Train: min_lr is {10**309}, but needs float or None"),
        (Train, {"out_dir": 3}, "Train: out_dir is 3, but needs str"),
        (Train, {"out_dir": ["out"]}, "Train: out_dir is ['out'], but needs str"),
        (Train, {"max_iters": 0}, "max_iters is 0, but needs to be 1 or more"),
        (Model, {"bias": 1}, "Model: bias is 1, but needs bool"),
        (Model, {}, "Model: no value for vocab_size, n_layer"),
        (
            Model,
            {"init": "gtp2"},
            "unknown Model init 'gtp2', not one of gpt2, lecture; did you mean 'gpt2'?",
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
        "dropout": st.floats(allow_nan=False),
        "bias": st.booleans(),
        "qkv_bias": st.booleans(),
        "init": st.sampled_from(["gpt2", "lecture"]),
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
        "unknown preset 'nanogpt_cpu', not one of nanogpt-cpu, gpt2; did you mean 'nanogpt-cpu'?"
    )


def test_nearest():
    assert cli.nearest("n_heads", ["n_layer", "n_head"]) == "; did you mean 'n_head'?"
    assert cli.nearest("x", ["n_layer", "n_head"]) == ""
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


def test_a_device_that_fails_is_told_in_one_line(monkeypatch, capsys):
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
        "error: the device failed (cudaErrorUnknown: it is gone); `python -m minigpt.backend` "
        "checks it\n"
    )
