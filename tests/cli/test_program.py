import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt import cli
from minigpt.errors import UserError

ROOT = Path(__file__).parents[2]


def ending(capsys, error):
    """Exit code and standard error of a program whose main raises `error`."""

    def main():
        raise error

    with pytest.raises(SystemExit) as leaving:
        cli.run(main)
    return leaving.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error, expected",
    [
        (UserError("text.txt: empty"), (2, "error: text.txt: empty\n")),
        (UserError("two\nlines"), (2, "error: two lines\n")),
        (OSError(28, "No space left on device"), (2, "error: No space left on device\n")),
        (
            OSError(28, "No space left on device", "out/last.safetensors"),
            (2, "error: out/last.safetensors: No space left on device\n"),
        ),
        (OSError("unreadable"), (2, "error: unreadable\n")),
        (
            MemoryError("Unable to allocate 7 TiB"),
            (
                2,
                "error: out of memory (Unable to allocate 7 TiB); use a smaller batch, context or "
                "model\n",
            ),
        ),
        (
            MemoryError(),
            (2, "error: out of memory; use a smaller batch, context or model\n"),
        ),
        (KeyboardInterrupt(), (130, "")),
        (SystemExit(0), (0, "")),
        (SystemExit(2), (2, "")),
    ],
)
def test_run_reports_in_one_line(capsys, error, expected):
    assert ending(capsys, error) == expected


def test_run_exits_with_what_main_returns():
    for status in (None, 0, 130):
        with pytest.raises(SystemExit) as leaving:
            cli.run(lambda status=status: status)
        assert leaving.value.code == status


def test_run_shows_the_traceback_of_a_fault_of_the_program():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


def program(body):
    """Command that runs `body` as the main function of a program of its own."""
    code = f"from minigpt import UserError, cli\ndef main():\n    {body}\ncli.run(main)"
    return [sys.executable, "-c", code]


def shell(line, *args):
    """Run a line of bash, "$@" being `args`, in which Python buffers its output as usual."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *args],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_user_error_as_seen_in_a_shell():
    done = shell('"$@"', *program("print('step 1'); raise UserError('x.txt: empty')"))
    assert (done.returncode, done.stdout, done.stderr) == (2, "step 1\n", "error: x.txt: empty\n")


def test_a_fault_as_seen_in_a_shell():
    done = shell('"$@"', *program("1 / 0"))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "for i in range(100_000): print(i)",
        "import time; print(0, flush=True); time.sleep(0.2); print(1)",
        "import time; print(0, flush=True); time.sleep(0.2); cli.parser('', '').parse_args(['-h'])",
    ],
    ids=["many lines", "a late line", "help"],
)
def test_head_is_quiet(body):
    done = shell('"$@" | head -n 1; exit "${PIPESTATUS[0]}"', *program(body))
    assert (done.returncode, done.stdout, done.stderr) == (141, "0\n", "")


def test_a_character_that_the_terminal_cannot_show_is_escaped():
    done = shell('PYTHONIOENCODING=ascii "$@"', *program(r"print('na\u00efve')"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "na\\xefve\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line():
    for body in ("print('text')", "print('text', flush=True)"):
        for buffering in ("", "PYTHONUNBUFFERED=1 "):
            done = shell(f'{buffering}"$@" > /dev/full', *program(body))
            told = "error: standard output: No space left on device\n"
            assert (done.returncode, done.stderr) == (2, told)
    full = "with open('/dev/full', 'w') as file: file.write('text')"
    done = shell('"$@"', *program(full))
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_ctrl_c_is_quiet():
    body = "import time; print('ready', flush=True); time.sleep(30)"
    with subprocess.Popen(
        program(body), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_a_lack_of_memory_is_one_line():
    done = shell('"$@"', *program("import numpy; numpy.ones(1 << 60, numpy.int8)"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: out of memory (") and done.stderr.count("\n") == 1


def test_help_needs_no_heavy_import():
    code = "import sys, minigpt.cli; print([m for m in ('numpy', 'tqdm') if m in sys.modules])"
    assert shell('"$@"', sys.executable, "-c", code).stdout == "[]\n"


BODIES = {
    "prints": ("print('text')", 0),
    "finds a fault of the user's": ("raise UserError('x.txt: empty')", 2),
    "shows its help": ("cli.parser('', '').parse_args(['-h'])", 0),
    "does not know a flag": ("cli.parser('', '').parse_args(['--none'])", 2),
}


@pytest.mark.report("3")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("name", BODIES)
def test_closed_streams_change_no_exit_code(name, closed):
    body, code = BODIES[name]
    done = shell(f'"$@" {closed}', *program(body))
    assert done.returncode == code
    if closed != "<&-":
        assert "Traceback" not in done.stdout + done.stderr
    if body == BODIES["finds a fault of the user's"][0] and "2>" not in closed:
        assert done.stderr == "error: x.txt: empty\n"


@pytest.mark.report("3")
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    body = f"file = open('{tmp_path / 'a'}', 'w'); import os; os.write(2, b'?'); file.write('a')"
    done = shell('"$@" <&- >&- 2>&-', *program(body))
    assert done.returncode == 0 and (tmp_path / "a").read_text() == "a"


@pytest.mark.report("3")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_standard_error_that_is_full_changes_no_exit_code():
    for body, code in BODIES.values():
        assert shell('"$@" 2> /dev/full', *program(body)).returncode == code


@pytest.mark.report("3")
def test_streams_that_are_missing_are_given_back_as_they_were(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with cli.standard_streams():
        print("nothing")
        print("nothing", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == (None, None)


@pytest.mark.report("20")
def test_a_terminal_that_is_gone_does_not_hide_the_signal():
    done = shell('"$@" > /dev/full', *program("print('stopped'); return 129"))
    assert done.returncode == 129
