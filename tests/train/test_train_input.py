"""What is wrong with the input of a run is told in one line, with exit code 2."""

import sys

import pytest

from minigpt.train import __main__ as train
from minigpt.train.step import Trainer
from tests.tools.training import begin, refusal

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.mark.parametrize(
    "text, told",
    [
        ("n_heads = 3", "unknown option 'n_heads'; did you mean 'n_head'?"),
        ("n_head = ", "is not a TOML file: Invalid value"),
        ("n_head = '3'", "n_head is '3', but needs int"),
        ("data = 3", "data is 3, but needs str or None"),
        ("task = false", "unknown task False, not one of"),
        ("task = []", "unknown task [], not one of"),
        ('data = "a\\u0000"', "cannot be read: embedded null byte"),
        ('out_dir = "a\\u0000"', "--out-dir 'a\\x00': no folder can have that name"),
        ("\xff", "is not a TOML file: 'utf-8' codec can't decode"),
        (None, "run.toml cannot be read: No such file"),
    ],
)
def test_a_config_file_that_is_no_good(tmp_path, capsys, text, told):
    if text is not None:
        (tmp_path / "run.toml").write_text(text, encoding="latin-1")
    flags = [f"--config={tmp_path / 'run.toml'}"]
    if "out_dir" not in (text or ""):
        flags += [f"--out-dir={tmp_path / 'run'}"]
    assert told in refusal(capsys, train.main, flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag, told",
    [
        ("--n-heads=3", "unknown flag '--n-heads'; did you mean '--n-head'?"),
        ("--preset=nanogtp-cpu", "did you mean 'nanogpt-cpu'?"),
        ("--n-head=3", "n_embd is 8, not a multiple of n_head 3"),
        ("--batch-size=0", "batch_size is 0; it must be at least 1"),
        ("--block-size=0", "block_size is 0; it must be at least 1"),
        ("--threads=0", "threads is 0; it must be at least 1"),
        ("--n-layer=2.5", "--n-layer: invalid int value: '2.5'"),
        ("--activation=gleu", "invalid choice: 'gleu'"),
        ("--dropout=1", "dropout is 1.0; it must be"),
        ("--learning-rate=nan", "learning_rate is nan, but needs float"),
        ("--vocab-size=3", "vocab_size is 3, but the text holds"),
        ("--block-size=300", "the text is too short: its validation part has 200 of 2000 tokens"),
        ("--data=none.txt", "--data none.txt cannot be read: No such file"),
        ("--data=.", "--data . is a folder; name a text file"),
        ("--n-embd=1000000000000", "the model would have 1e+25 parameters"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(tmp_path, capsys, flag, told):
    assert told in refusal(capsys, begin, tmp_path / "run", flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "raw, told",
    [
        (b"", "is empty; name a file with text in it"),
        (b"abc\xe9def" * 99, "is not UTF-8: byte 0xe9 at offset 3"),
        (b"ab", "the text is too short"),
    ],
)
def test_a_text_that_is_no_good(tmp_path, capsys, raw, told):
    (tmp_path / "text.txt").write_bytes(raw)
    assert told in refusal(capsys, begin, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cupy_that_is_missing_is_told_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr("minigpt.data.datasets.load_text", lambda path: pytest.fail("too early"))
    error = refusal(capsys, begin, tmp_path / "run", "--backend=cupy")
    assert "--backend cupy" in error and "pip install" in error


@pytest.mark.parametrize("flag", ["--dtype=float16", "--tf32"])
def test_what_numpy_cannot_is_told_before_any_work(tmp_path, capsys, monkeypatch, flag):
    monkeypatch.setattr("minigpt.data.datasets.load_text", lambda path: pytest.fail("too early"))
    error = refusal(capsys, begin, tmp_path / "run", flag)
    assert error.startswith(f"error: {flag.replace('=', ' ')}: NumPy has no ")
    assert "use --backend cupy" in error and not (tmp_path / "run").exists()


def test_too_little_memory(tmp_path, capsys, monkeypatch):
    error = refusal(capsys, begin, tmp_path / "run", f"--batch-size={2**48 - 1}")
    assert error.startswith("error: out of memory (Unable to allocate ")
    assert "--batch-size" in error and "--dry-run" in error

    def fail(self, ids, step, progress):
        raise MemoryError

    monkeypatch.setattr(Trainer, "step", fail)
    error = refusal(capsys, begin, tmp_path / "run", "--overwrite")
    assert error.startswith("error: out of memory (no more to be had); take a smaller --batch-size")
