"""The commands under one name."""

import subprocess
import sys

import pytest

from minigpt import cli
from minigpt.__main__ import COMMANDS, main


def says(capsys, *argv):
    """Return the exit code, standard output and standard error of `minigpt` with arguments."""
    try:
        status = main([*argv])
    except SystemExit as leaving:
        status = leaving.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_lists_every_command_with_a_line(capsys, flag):
    status, out, err = says(capsys, flag)
    assert (status, err) == (0, "")
    for name, (_, what) in COMMANDS.items():
        assert f"  {name:<12}{what}\n" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_no_command_is_an_error_that_lists_them(capsys):
    status, out, err = says(capsys)
    assert (status, out) == (2, "") and "  train " in err


def test_version_is_the_packages(capsys):
    assert says(capsys, "--version") == (0, f"minigpt {cli.VERSION}\n", "")


@pytest.mark.parametrize(
    "word, answer",
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        (
            "generate",
            "unknown command 'generate'; choose from train, sample, score, data, attention, "
            "report, export, doctor",
        ),
        ("--verson", "unknown flag '--verson'; choose from "),
    ],
)
def test_an_unknown_command_names_the_nearest_or_all(capsys, word, answer):
    status, out, err = says(capsys, word)
    assert (status, out) == (2, "")
    assert err.startswith(f"minigpt: error: {answer}") and err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_goes_by_its_name_in_its_help_and_errors(capsys, name):
    status, out, _ = says(capsys, name, "--help")
    assert status == 0 and out.startswith(f"usage: minigpt {name} [flags]")
    status, out, err = says(capsys, name, "--nonsense")
    assert (status, out) == (2, "")
    assert err.startswith(f"minigpt {name}: error: unknown flag '--nonsense'")


def test_a_command_gets_its_flags_and_gives_its_exit_code(capsys):
    assert says(capsys, "train", "--dry-run", "--n-layer=1")[0] in (None, 0)
    status, _, err = says(capsys, "sample", "--prompt=a", "--prompt-file=b")
    assert status == 2 and "minigpt sample: error: --prompt and --prompt-file" in err


def test_help_as_a_program_loads_no_arrays():
    """Neither does the import of the package. The help of training loads no picture and no GPU."""
    code = (
        "import sys, minigpt; assert 'numpy' not in sys.modules\n"
        "from minigpt.__main__ import main\n"
        "main(['--help']); assert 'numpy' not in sys.modules\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'matplotlib', 'cupy', 'tqdm', 'socket'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "minigpt", "tarin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("did you mean 'train'?\n")
