"""The commands as people see them: in a terminal, in a locale, with names that a shell minds."""

import os
import shlex

import pytest

from minigpt import cli
from minigpt.cli.characters import display_width
from minigpt.data import __main__ as data
from minigpt.errors import UserError
from minigpt.model.checkpoint import find_checkpoint
from minigpt.train import __main__ as train
from tests.tools.shells import ASCII, minigpt, minigpt_in_terminal
from tests.tools.training import FLAGS, begin, refusal

pytestmark = pytest.mark.usefixtures("no_picture")

POLISH = "Zażółć gęślą jaźń, naïve café €.\n" * 60
ESCAPES = "\x1b[31mERROR\x1b[0m ok \x1b]0;title\x07\x08\n" * 80
SEEN = rb"\x1b"  # as which a terminal gets an escape character
in_terminal = pytest.mark.skipif(os.name != "posix", reason="no terminals of POSIX")


def trained(folder, text, *flags):
    """Train on a text, in folder/run."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    assert begin(folder / "run", "--max-iters=2", *flags) == 0
    return folder


@in_terminal
@pytest.mark.report("26")
def test_a_terminal_gets_no_control_character_of_a_text(tmp_path, capsys):
    trained(tmp_path, ESCAPES)
    flags = "sample", "--out-dir", "run", "--max-new-tokens", "200", "--prompt", "\x1b[31m"
    code, seen = minigpt_in_terminal(*flags, cwd=tmp_path)
    assert (code, b"\x1b" in seen, SEEN in seen) == (0, False, True)
    code, out, _ = minigpt(*flags, cwd=tmp_path)  # a file gets the text itself
    assert code == 0 and out.startswith(b"\x1b[31m") and SEEN not in out


@in_terminal
@pytest.mark.report("26")
def test_training_shows_no_control_character_of_names_and_samples(tmp_path):
    name = "a\x1b[31m.txt"
    (tmp_path / name).write_text(ESCAPES)
    flags = [*FLAGS, "--max-iters=2", "--out-dir=run\x1b[0m"]
    code, seen = minigpt_in_terminal("train", f"--data={name}", *flags, cwd=tmp_path)
    lines = seen.decode().splitlines()
    assert code == 0
    assert any(r"a\x1b[31m.txt" in line for line in lines)
    assert any(line.endswith(r"into run\x1b[0m") for line in lines)
    assert lines[-1] == r"more: python -m minigpt.sample --out-dir $'run\x1b[0m'"
    assert "\x1b[31m" not in seen.decode() and "\x1b[0m" not in seen.decode()


@pytest.mark.report("26")
@pytest.mark.parametrize("command", ["train", "data"])
def test_a_message_shows_no_control_character(tmp_path, command):
    flags = [command, "--data", "nix\x1b[31mname.txt"]
    code, _, err = minigpt(*flags, cwd=tmp_path)
    assert (code, b"\x1b" in err, rb"nix\x1b[31mname.txt" in err) == (2, False, True)


@pytest.mark.report("21")
def test_a_locale_of_ascii_changes_nothing(tmp_path):
    trained(tmp_path, POLISH)
    flags = "sample", "--out-dir", "run", "--prompt", "Zażó", "--max-new-tokens", "60"
    in_utf8 = minigpt(*flags, cwd=tmp_path, PYTHONUTF8="1")
    assert in_utf8[0] == 0 and in_utf8[1].startswith("Zażó".encode())
    assert minigpt(*flags, cwd=tmp_path, **ASCII) == in_utf8
    (tmp_path / "out.txt").write_bytes(in_utf8[1][:-1])
    again = "sample", "--out-dir=run", "--prompt-file=out.txt", "--max-new-tokens=5"
    assert minigpt(*again, cwd=tmp_path, **ASCII)[0] == 0
    code, _, err = minigpt("sample", "--out-dir=run", "--prompt=Zżx", cwd=tmp_path, **ASCII)
    assert code == 2 and "'x' at position 2" in err.decode()


@pytest.mark.report("21")
def test_names_of_files_are_found_in_a_locale_of_ascii(tmp_path):
    trained(tmp_path, POLISH)
    (tmp_path / "text.txt").rename(tmp_path / "źródło.txt")
    flags = [*FLAGS, "--max-iters=2", "--data=źródło.txt", "--out-dir=wyjście"]
    code, out, err = minigpt("train", *flags, cwd=tmp_path, **ASCII)
    assert (code, err) == (0, b"")
    assert out.decode().endswith("more: python -m minigpt.sample --out-dir 'wyjście'\n")
    assert "źródło.txt" in out.decode() and (tmp_path / "wyjście" / "metrics.jsonl").exists()
    resumed = ["train", "--resume", "--out-dir=wyjście", "--max-iters=4"]
    for env in ({"PYTHONUTF8": "1"}, ASCII):
        assert minigpt(*resumed, cwd=tmp_path, **env)[0] == 0
        resumed[-1] = "--max-iters=6"


@pytest.mark.report("21")
def test_answers_are_utf8_in_a_locale_of_ascii(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{i:03d}\tż{i}ł\n" for i in range(200)), "utf-8")
    flags = ["--task=seq2seq", "--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=16"]
    train.main(
        [
            *flags,
            f"--data={tmp_path}/text.txt",
            f"--out-dir={tmp_path}/run",
            "--max-iters=1",
            "--warmup-iters=1",
            "--batch-size=4",
            "--threads=1",
        ]
    )
    given = {"cwd": tmp_path, "stdin": b"001\n002\n"}
    expected = minigpt("sample", "--out-dir=run", PYTHONUTF8="1", **given)
    assert minigpt("sample", "--out-dir=run", **ASCII, **given) == expected
    assert len(expected[1].decode().splitlines()) == 2 and b"\\u" not in expected[1]
    (tmp_path / "a\x1b[31m.txt").write_text("x\n")
    flags = "sample", "--out-dir=run", "--prompt-file=a\x1b[31m.txt"
    code, _, err = minigpt(*flags, cwd=tmp_path)
    assert (code, b"\x1b" in err, rb"a\x1b[31m.txt" in err) == (2, False, True)


@pytest.mark.report("28")
@pytest.mark.parametrize("flags", [["--prompt", "-the"], ["--prompt", "- the"], ["--prompt=-the"]])
def test_a_prompt_may_begin_with_a_dash(tmp_path, flags):
    trained(tmp_path, "- the -the\n" * 100)
    code, out, err = minigpt("sample", "--out-dir=run", "--max-new-tokens=5", *flags, cwd=tmp_path)
    assert (code, err) == (0, b"") and out.startswith(flags[-1].removeprefix("--prompt=").encode())


@pytest.mark.report("28")
def test_what_begins_with_a_dash_is_a_value_of_any_flag(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(trained(tmp_path, "- the -the\n" * 100))
    refused = refusal(capsys, train.main, ["--learning-rate", "-1e-3"])
    assert refused.endswith("--learning-rate is -0.001; it must be at least 0")
    os.rename("text.txt", "-x.txt")
    assert train.main(["--data", "-x.txt", "--out-dir", "-x", *FLAGS]) == 0
    more = capsys.readouterr().out.splitlines()[-1]
    assert more == "more: python -m minigpt.sample --out-dir=-x"
    assert train.main(["--resume", "--out-dir", "-x", "--max-iters", "14"]) == 0


@pytest.mark.report("28")
@pytest.mark.parametrize("name", ["my run", "-x", "it's", "a;b"])
def test_hints_are_commands_that_can_be_pasted(tmp_path, capsys, monkeypatch, name):
    with pytest.raises(UserError) as error:
        find_checkpoint(tmp_path / name)
    hint = str(error.value).split("`")[1]
    assert shlex.split(hint)[-2:] == ["--out-dir", str(tmp_path / name)]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_checkpoint(name)
    assert str(error.value).split("`")[1] == cli.command("python -m minigpt.train", out_dir=name)


@in_terminal
@pytest.mark.report("14")
def test_maps_of_wide_characters_fit_a_narrow_terminal(tmp_path):
    trained(tmp_path, "天地ab😀黄\n" * 100)
    flags = "attention", "--out-dir=run", "--prompt=天地ab😀黄", "--layer=0", "--head=0"
    code, seen = minigpt_in_terminal(*flags, cwd=tmp_path, COLUMNS="20", MPLBACKEND="nonsense")
    lines = seen.decode().splitlines()
    assert code == 0 and lines[:2] == ["layer 0, head 0", "   天地ab😀黄"]
    assert lines[2] == "天 @@" and lines[4].startswith(" a ")


@pytest.mark.report("27", "14")
def test_the_walk_shows_marks_as_escapes_and_fits_a_terminal(tmp_path, capsys):
    wide = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    (tmp_path / "text.txt").write_text(f"u\u0300a\u0302 \u0301é {wide}\n" * 20, encoding="utf-8")
    data.main([f"--data={tmp_path}/text.txt", "--encode=a\u0302", "--block-size=4"])
    out = capsys.readouterr().out
    vocabulary = out.split("Vocabulary")[1].split("\n\n")[0]
    assert r"é\u0300\u0301\u0302" in vocabulary
    assert r"encode('a\u0302')" in out and r"-> '\u0300'" in out
    lines = vocabulary.splitlines() + out.split("Token table")[1].split("\n\n")[0].splitlines()
    assert max(map(display_width, lines)) <= 80
