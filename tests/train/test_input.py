"""Where a run's data are: pipes are kept in its folder, relative names found from elsewhere."""

import io
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

import minigpt
from minigpt.data.datasets import TextData
from minigpt.errors import UserError
from minigpt.files import LAST
from minigpt.model import checkpoint
from minigpt.train import __main__ as train
from minigpt.train.run_dir import keep
from tests.tools.training import FLAGS, TEXT, refusal, resume

pytestmark = pytest.mark.usefixtures("no_picture")
PAIRS = [(f"{i:03d}", f"{i * 7 % 1000}") for i in range(60)]


def piped(monkeypatch, raw):
    """Let standard input hold bytes."""
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(raw)))


def test_standard_input_is_kept_in_the_run_and_resumed(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    flags = [*FLAGS, "--max-iters=4", "--threads=1"]
    assert (
        train.main([f"--data={tmp_path / 'text.txt'}", f"--out-dir={tmp_path / 'a'}", *flags]) == 0
    )
    piped(monkeypatch, b"\xef\xbb\xbf" + TEXT.encode())
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data", "-", "--out-dir", "b", *flags]) == 0
    assert sorted(path.name for path in Path("b").glob("data*")) == ["data.txt"]
    one, other = (checkpoint.load(tmp_path / run / LAST) for run in "ab")
    assert (one.params.flat == other.params.flat).all()
    Path("b").rename("c")  # data.txt moves with the run
    assert resume(tmp_path / "c", "--max-iters=8") == 0
    piped(monkeypatch, TEXT[::-1].encode())
    capsys.readouterr()
    assert resume(tmp_path / "c", "--max-iters=9", "--data=-") == 0
    kept_in = tmp_path / "c" / "data.txt"
    told = f"note: trained on {Path('b', 'data.txt')} so far, and on {kept_in} from here on\n"
    assert told in capsys.readouterr().err
    assert (tmp_path / "c" / "data.txt").read_text() == TEXT[::-1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_among_files_is_kept_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("more.txt").write_text(TEXT[::-1])
    os.mkfifo("pipe")
    thread = threading.Thread(target=lambda: Path("pipe").write_text(TEXT))
    thread.start()
    assert train.main(["--data", "pipe", "more.txt", "--out-dir=run", *FLAGS, "--max-iters=4"]) == 0
    thread.join()
    assert f"{os.path.join('run', 'data.txt')}, more.txt: " in capsys.readouterr().out
    assert resume(Path("run"), "--max-iters=8") == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [("data.tsv", "{0}\t{1}\n"), ("data.csv", "{0},{1}\n"), ("data.jsonl", '["{0}", "{1}"]\n')],
)
def test_pairs_by_a_pipe_are_kept_under_the_name_of_their_format(
    tmp_path, monkeypatch, capsys, name, line
):
    piped(monkeypatch, "".join(line.format(*pair) for pair in PAIRS).encode())
    flags = ["--task=seq2seq", "--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8"]
    flags += ["--batch-size=4", "--warmup-iters=1", "--max-iters=2"]
    assert train.main(["--data=-", f"--out-dir={tmp_path / 'run'}", *flags]) == 0
    assert [path.name for path in (tmp_path / "run").glob("data*")] == [name]
    assert resume(tmp_path / "run", "--max-iters=4") == 0


@pytest.mark.parametrize(
    ("data", "raw", "message"),
    [
        (["-"], b"", "data.txt is empty; name a file with text in it"),
        (["-"], b"ab\xff", "data.txt is not UTF-8: byte 0xff at offset 2"),
        (["-"], b"too short", "the text is too short"),
        (["-", "-"], b"", "--data names 2 pipes, but one can be kept; join them by cat"),
    ],
)
def test_what_cannot_be_trained_on_is_not_kept(tmp_path, monkeypatch, capsys, data, raw, message):
    piped(monkeypatch, raw)
    run = lambda *flags: train.main(["--data", *data, *flags])  # noqa: E731
    assert message in refusal(capsys, run, "--out-dir", str(tmp_path / "run"), *FLAGS)
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_begin_leaves_the_data_of_the_one_before(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("before")
    with pytest.raises(UserError), keep(b"after", path):
        assert path.read_bytes() == b"after"
        raise UserError("no")
    assert path.read_text() == "before"
    with keep(b"after", path) as file:
        pass
    file.undo()
    assert path.read_text() == "before"
    with keep(b"after", path) as file:
        pass
    file.confirm()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("data.txt", "after")]


def test_fit_takes_several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT[:900])
    Path("b.txt").write_text(TEXT[900:])
    options = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "batch_size": 2}
    options |= {"max_iters": 2, "warmup_iters": 1, "progress": False}
    data = (["a.txt", Path("b.txt")], "*.txt", Path("."))
    losses = [minigpt.fit(given, **options).history[-1]["val_loss"] for given in data]
    assert losses == losses[:1] * 3
    for wrong, told in ((["a.txt", "c.txt"], "'c.txt' is no file"), ([], "it must be the path")):
        with pytest.raises(UserError, match=told):
            minigpt.fit(wrong, **options)


@pytest.mark.report("36")
@pytest.mark.parametrize("place", ["given", "current", "run"])
def test_a_relative_text_is_found_from_elsewhere(tmp_path, monkeypatch, capsys, place):
    """In the folder it was given in, in the current one, beside the run that it was copied to."""
    for name in ("given", "current"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "given")
    Path("text.txt").write_text(TEXT)
    flags = [*FLAGS, "--max-iters=4"]
    assert train.main(["--data", "text.txt", "--out-dir", str(tmp_path / "run"), *flags]) == 0
    Path("text.txt").rename(tmp_path / place / "text.txt")
    monkeypatch.chdir(tmp_path / "current")
    assert resume(tmp_path / "run", "--max-iters=8") == 0
    assert checkpoint.load(tmp_path / "run" / LAST).state["train"]["data"] == "text.txt"
    (tmp_path / place / "text.txt").unlink()
    assert refusal(capsys, resume, tmp_path / "run", "--max-iters=9") == (
        "error: --resume: the run was trained on text.txt, but text.txt, given in "
        f"{tmp_path / 'given'}, is not to be found; give it by --data"
    )


@pytest.mark.report("36")
def test_a_text_of_another_folder_is_not_taken_for_that_of_the_run(tmp_path, monkeypatch, capsys):
    for name, text in (("given", TEXT), ("current", TEXT[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text)
    monkeypatch.chdir(tmp_path / "given")
    flags = ["--data", "*.txt", "--out-dir", str(tmp_path / "run"), *FLAGS]
    assert train.main([*flags, "--max-iters=4"]) == 0
    monkeypatch.chdir(tmp_path / "current")
    assert resume(tmp_path / "run", "--max-iters=8") == 0
    (tmp_path / "given" / "text.txt").unlink()
    error = refusal(capsys, resume, tmp_path / "run", "--max-iters=9")
    assert "but the text is now another (text.txt)" in error


@pytest.mark.report("4")
def test_a_quoted_home_is_expanded_and_no_folder_is_called_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text("data = ['~/text.txt']\nout_dir = '~/run'\n")
    assert train.main(["--config", "run.toml", *FLAGS, "--max-iters=4"]) == 0
    assert train.main(["--resume", "--out-dir=~/run", "--max-iters=8"]) == 0
    assert train.main(["--data=~/text.txt", "--out-dir=~/run2", *FLAGS, "--max-iters=4"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run.toml"]
    assert minigpt.fit("~/text.txt", out_dir="~/run3", max_iters=2, warmup_iters=0, n_embd=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run.toml"]
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nobody knows of a home
    error = refusal(capsys, train.main, ["--out-dir=~/run", *FLAGS])
    assert "--out-dir is '~/run', but there is no home folder for ~; give the whole path" in error
    assert not Path("~").exists()


@pytest.mark.report("6")
def test_a_config_may_begin_with_a_byte_order_mark(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbfmax_iters = 321\n")
    assert train.main(["--config", str(path), "--dry-run"]) is None
    assert "321 steps" in capsys.readouterr().out
    path.write_bytes("max_iters = 321".encode("utf-16"))
    assert refusal(capsys, train.main, ["--config", str(path), "--dry-run"]) == (
        f"error: --config {path} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 old.txt > new.txt"
    )


@pytest.mark.report("6", "23")
def test_files_of_other_systems_are_joined_and_what_is_odd_is_noted(tmp_path):
    """Marks in front of each file are no text; those that cat left within are."""
    for name, raw in (
        ("a.txt", b"\xef\xbb\xbfLine 1\r\n"),
        ("b.txt", b"\xef\xbb\xbfLine 2\rLine 3"),
        ("c.txt", b"\xef\xbb\xbfLine 4\n\xef\xbb\xbfLine 5\n"),
    ):
        (tmp_path / name).write_bytes(raw * 20)
    (tmp_path / "d.txt").write_bytes(b"")
    data = TextData(str(tmp_path))
    text = data.tokenizer.decode([*data.train.tolist(), *data.val.tolist()])
    assert text.startswith("Line 1\r\n\ufeffLine 1\r\n") and "Line 3\nLine 4\n" in text
    assert [note.split(";")[0] for note in data.notes] == [
        f"1 of 4 files is empty: {tmp_path / 'd.txt'}",
        "20 lines of the text end in CR LF, and each CR is a character to learn",
        "the text has 20 CR without LF, the line ends of old Macs",
        "the text has 77 byte order marks (U+FEFF) within it, as files that were joined have",
    ]


@pytest.mark.report("23", "33")
def test_training_says_what_is_odd_about_a_text(tmp_path, capsys):
    (tmp_path / "cr.txt").write_bytes(TEXT.replace("\n", "\r").encode())
    (tmp_path / "crlf.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "tail.txt").write_text(TEXT + "ЖЗИЙ" * 30, "utf-8")
    said = []
    for name in ("cr", "crlf", "tail"):
        flags = [f"--data={tmp_path / name}.txt", f"--out-dir={tmp_path / name}", *FLAGS]
        assert train.main([*flags, "--max-iters=4"]) == 0
        notes = capsys.readouterr().err.splitlines()
        said += [note.split(";")[0] for note in notes if note.startswith("note: ")]
    lines = TEXT.count("\n")
    assert said == [
        f"note: the text has {lines} CR without LF, the line ends of old Macs",
        f"note: {lines} lines of the text end in CR LF, and each CR is a character to learn",
        "note: 4 of 31 different characters occur in the validation part only (the last tenth), "
        "so training never sees them: Ж З И Й",
    ]


@pytest.mark.report("35")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_text_of_48_mb_needs_no_half_a_gigabyte(tmp_path):
    import resource

    limit = 500 * 10**6
    (tmp_path / "asc.txt").write_text(TEXT * 24_000)
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for _ in range(2):  # the second time, it is in the cache
        done = subprocess.run(
            [sys.executable, "-m", "minigpt.train", "--data", tmp_path / "asc.txt", "--dry-run"],
            env=env,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
            capture_output=True,
            encoding="utf-8",
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert "vocabulary 27" in done.stdout
