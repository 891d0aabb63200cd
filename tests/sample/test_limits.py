"""Limits that are met while sampling: said on standard error; memory that stays bounded."""

import io
import resource
import sys

import numpy as np
import pytest

from minigpt.data.characters import CharTokenizer
from minigpt.data.tokenizers import PairTokenizer
from minigpt.errors import UserError
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.report import attention
from minigpt.sample import memory, progress
from minigpt.sample.__main__ import main
from minigpt.sample.beam import SHORT, largest
from minigpt.sample.memory import lines_that_fit, texts_that_fit
from minigpt.sample.progress import Progress
from minigpt.sample.text import SEPARATOR
from tests.sample.test_sample import write_checkpoint
from tests.sample.test_sample_seq2seq import LINES, write_checkpoint_of_pairs
from tests.tools.options import gpt_config

BLOCK = 8
MANY = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))  # characters


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.safetensors"
    write_checkpoint_of_pairs(path, seed=18)  # its third answer has an end
    return ["--checkpoint", str(path)]


@pytest.fixture
def gpt(tmp_path):
    path = tmp_path / "best.safetensors"
    write_checkpoint(path)
    return ["--checkpoint", str(path), "--max-new-tokens=40"]


@pytest.mark.report("12")
@pytest.mark.parametrize("verbose", [(), ("--verbose",)])
def test_an_answer_that_was_cut_off_is_named_by_its_line(pairs, capsys, verbose):
    assert main([*pairs, "--prompt=" + "\n".join(LINES), *verbose]) == 0
    out, err = capsys.readouterr()
    answers = out.splitlines()[1::2] if verbose else out.splitlines()
    texts = [line.split("per token  ")[-1].removesuffix(" ...") for line in answers]
    cut = [i for i, text in enumerate(texts, 1) if len(text) == BLOCK]
    assert cut and len(cut) < len(LINES)
    assert err.splitlines() == [
        f"note: --prompt, line {i}: the answer was cut off at 8 characters" for i in cut
    ]


def test_help_explains_the_sign_of_an_answer_that_was_cut_off(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert '"..." ends one that was cut off' in text
    assert "Answers that were cut off are reported there as well" in text


@pytest.mark.report("12")
def test_a_stop_string_that_never_came_is_reported(gpt, capsys):
    assert main([*gpt, "--stop=hhhhhhhh"]) == 0
    assert capsys.readouterr().err == (
        "note: --stop 'hhhhhhhh' did not come in the text, which ended at 40 tokens\n"
    )
    main([*gpt, "--num-samples=4"])
    texts = capsys.readouterr().out[:-1].split(f"\n{SEPARATOR}\n")
    stop = texts[0][5:8]
    missing = sum(stop not in text[1:] for text in texts)
    assert 0 < missing < 4
    assert main([*gpt, "--num-samples=4", "--stop", stop]) == 0
    assert f"did not come in {missing} of 4 texts, which ended" in capsys.readouterr().err
    main([*gpt, "--stop", stop])
    assert capsys.readouterr().err == ""


@pytest.mark.report("12")
def test_attention_of_an_answer_without_an_end_says_so(pairs, capsys, no_picture):
    def notes(line, *flags):
        attention.main([*pairs, "--prompt", line, *flags])
        return [x for x in capsys.readouterr().err.splitlines() if "no picture" not in x]

    main([*pairs, "--prompt=" + "\n".join(LINES)])
    answers = dict(zip(LINES, capsys.readouterr().out.splitlines(), strict=True))
    for line, answer in answers.items():
        expected = ["note: the answer was cut off at 8 characters"] * (len(answer) == BLOCK)
        assert notes(line) == notes(line, "--kind=decoder") == expected
        assert notes(line, "--kind=encoder") == []


@pytest.mark.report("18")
def test_samples_are_printed_batch_by_batch_and_do_not_depend_on_it(gpt, capsys, monkeypatch):
    main([*gpt, "--num-samples=7"])
    expected = capsys.readouterr().out
    sizes, generate = [], sys.modules["minigpt.sample.text"].generate

    def record(*args, rows, **settings):
        sizes.append((len(rows), capsys.readouterr().out.count(SEPARATOR)))
        return generate(*args, rows=rows, **settings)

    monkeypatch.setattr("minigpt.sample.text.generate", record)
    monkeypatch.setattr(memory, "ROWS", 3)
    main([*gpt, "--num-samples=7"])
    assert sizes == [(3, 0), (3, 3), (1, 3)]
    assert expected.endswith(capsys.readouterr().out)


@pytest.mark.report("18")
@pytest.mark.parametrize("vocab_size", [65, 5000, 200_000])
@pytest.mark.parametrize("layers, channels, context", [(1, 8, 8), (12, 768, 1024)])
def test_rows_fit_in_memory_or_are_one(vocab_size, layers, channels, context):
    sizes = {"n_layer": layers, "n_embd": channels, "block_size": context, "n_head": 2}
    config = gpt_config(vocab_size=vocab_size, **sizes)
    rows = texts_that_fit(config)
    row = 2 * layers * channels * context * 4 + 5 * 8 * vocab_size
    assert 1 <= rows <= 256 and (rows == 1 or rows * row <= 2**30)
    assert rows == 256 or 2 * (rows + 1) * row > 2**30
    pairs = Seq2SeqConfig(vocab_size, context, layers, 2, channels, source_vocab_size=9)
    for beam in (1, 4, 50):
        try:
            lines = lines_that_fit(pairs, beam)
        except UserError:
            assert beam * row > 2**27
        else:
            assert lines >= 1 and (lines == 1 or lines * beam * row <= 2**30)


@pytest.mark.report("18")
def test_a_beam_that_cannot_fit_is_refused_and_the_largest_that_can_is_named(pairs, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # before anything is read
    monkeypatch.setattr(memory, "BYTES", 2**25)
    with pytest.raises(UserError, match="^--beam is 65535, but of this model only [1-9]") as error:
        main([*pairs, "--beam=65535"])
    most = int(str(error.value).split("a --beam of ")[1].split()[0])
    with pytest.raises(UserError, match="there is no standard input"):
        main([*pairs, f"--beam={most}"])
    with pytest.raises(UserError, match=f"use a --beam of {most} or less"):
        main([*pairs, f"--beam={most + 1}"])


def write_many(folder):
    tokenizer = CharTokenizer.from_text(MANY)
    write_checkpoint(folder / "gpt", tokenizer=tokenizer)
    pair = PairTokenizer(CharTokenizer("0123456789"), tokenizer)
    config = Seq2SeqConfig(5001, 16, 1, 2, 16, source_vocab_size=10)
    write_checkpoint_of_pairs(folder / "pairs", config, pair)


@pytest.mark.slow
@pytest.mark.report("18")
def test_memory_is_bounded_whatever_the_samples_and_the_beam(tmp_path, monkeypatch):
    write_many(tmp_path)
    numbers = "\n".join(map(str, range(64)))
    flags = [
        ["--checkpoint", str(tmp_path / "gpt"), "--max-new-tokens=1", "--top-p=0.9"],
        ["--checkpoint", str(tmp_path / "pairs"), f"--prompt={numbers}"],
    ]
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(memory, "BYTES", 2**26)
    peaks = []
    for given in ([*flags[0], "--num-samples=1"], [*flags[1], "--beam=1"]):
        main(given)
    for given in ([*flags[0], "--num-samples=3000"], [*flags[1], "--beam=50"]):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        main(given)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    assert np.diff(peaks).max() < 1.5 * 2**26


def test_the_largest_are_those_of_a_stable_sort(rng):
    for size in (5, SHORT, SHORT + 1, 3000):
        scores = rng.integers(0, 50, (3, size)).astype(float)
        scores[0, 3:] = -np.inf
        for n in (1, 4, size):
            expected = np.argsort(-scores, axis=-1, kind="stable")[:, :n]
            np.testing.assert_array_equal(largest(scores, n), expected)


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.report("34")
def test_long_work_shows_a_line_at_growing_intervals(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    bar = Progress()
    for second in range(101):
        clock[0] = float(second)
        bar.show(f"at {second}")
    bar.clear()
    expected = "".join(f"note: at {t}, {t} s\n" for t in (10, 20, 40, 80))
    assert sys.stderr.getvalue() == expected


@pytest.mark.report("34")
def test_on_a_terminal_one_line_changes_and_goes(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    monkeypatch.setenv("COLUMNS", "10")
    bar = Progress()
    for second, text in ((0.5, "no"), (1.0, "a long, long text"), (1.1, "no"), (1.3, "short")):
        clock[0] = second
        bar.show(text)
    assert sys.stderr.getvalue() == "\ra long, l\rshort    "
    bar.clear()
    bar.clear()
    assert sys.stderr.getvalue().endswith("short    \r         \r")


def test_waiting_for_input_does_not_count(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    bar = Progress()
    for start in range(0, 1000, 100):
        clock[0] = float(start)
        bar.begin()
        clock[0] += 0.09
        bar.show("work")
    assert sys.stderr.getvalue() == ""


@pytest.mark.report("34")
@pytest.mark.parametrize("samples", [1, 3])
def test_texts_that_take_long_show_how_far_they_are(gpt, monkeypatch, samples, capsys):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    monkeypatch.setattr(progress, "LIVE", 0.0)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    main([*gpt, f"--num-samples={samples}"])
    expected = "1 of 40 tokens" if samples == 1 else "0 of 3 texts, 1 of 40 tokens"
    assert f"note: {expected}, 0 s" in capsys.readouterr().err


@pytest.mark.report("34")
def test_lines_that_take_long_show_how_far_they_are(pairs, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    main([*pairs, "--prompt=ab\nc", "--beam=3"])
    assert "note: line 1: 1 of 8 characters, 0 s\n" in capsys.readouterr().err


@pytest.mark.report("6", "23")
@pytest.mark.parametrize("way", ["--prompt", "--prompt-file"])
def test_a_prompt_without_its_mark_and_with_new_lines(gpt, capsys, tmp_path, way):
    main([*gpt, "--prompt", "ab\ncd\n"])
    expected = capsys.readouterr().out
    for text in ("\ufeffab\ncd\n", "ab\r\ncd\r\n", "\ufeffab\rcd\r"):
        (tmp_path / "p").write_bytes(text.encode())
        main([*gpt, way, text if way == "--prompt" else str(tmp_path / "p")])
        assert capsys.readouterr().out == expected


@pytest.mark.report("23")
def test_a_vocabulary_with_carriage_returns_keeps_them(tmp_path, capsys):
    write_checkpoint(tmp_path / "best.safetensors", tokenizer=CharTokenizer("\n\rab"))
    main(["--out-dir", str(tmp_path), "--prompt=a\r\nb\r", "--max-new-tokens=0"])
    assert capsys.readouterr().out == "a\r\nb\r\n"
