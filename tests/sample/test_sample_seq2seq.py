"""The sampling command on an encoder-decoder."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minigpt.data.tokenizers import PairTokenizer
from minigpt.errors import UserError
from minigpt.model.checkpoint import save
from minigpt.model.encoder_decoder import Seq2SeqConfig, shapes
from minigpt.params import Params
from minigpt.sample import answers as answering
from minigpt.sample import beam, prompt
from minigpt.sample.__main__ import main
from minigpt.sample.answers import answer_lines
from minigpt.sample.beam import search
from tests.sample.test_sample import write_checkpoint

ROOT = Path(__file__).parents[2]
TOKENIZER = PairTokenizer.from_pairs([("abé", "xyz"), ("c ", "w")])
CONFIG = Seq2SeqConfig(5, 8, 1, 2, 8, source_vocab_size=5)
LINES = ["ab", "é c", "aaaabbbb", "c"]


def write_checkpoint_of_pairs(path, config=CONFIG, tokenizer=TOKENIZER, seed=1):
    params = Params(shapes(config), np, "float32")
    params.flat[...] = 0.5 * np.random.default_rng(seed).standard_normal(params.size)
    save(path, params, config, tokenizer=tokenizer, state={})
    return path, params


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint_of_pairs(tmp_path / "best.safetensors")


@pytest.fixture
def run(checkpoint, capsys, monkeypatch):
    """Run the command with lines, or bytes, on standard input; return what it prints."""

    def run(*flags, stdin=()):
        raw = stdin if isinstance(stdin, bytes) else "".join(f"{line}\n" for line in stdin).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        main(["--checkpoint", str(checkpoint[0]), *map(str, flags)])
        return capsys.readouterr().out

    return run


@pytest.mark.report("12")
@pytest.mark.parametrize("flags", [(), ("--verbose", "--beam=3")])
@pytest.mark.parametrize("chars", ["\0\1\t\n", "\0\t\n\r"], ids=repr)
def test_a_line_break_in_an_answer_does_not_end_its_line(checkpoint, run, flags, chars):
    plain = run(*flags, stdin=LINES)
    assert "z" in plain
    write_checkpoint_of_pairs(
        checkpoint[0], tokenizer=PairTokenizer.from_pairs([("abé", chars), ("c ", chars)])
    )
    shown = [{"\n": r"\n", "\r": r"\r"}.get(char, char) for char in chars]
    assert run(*flags, stdin=LINES) == plain.translate(dict(zip(b"wxyz", shown, strict=True)))


def answers(params, line, beam=1):
    ids = TOKENIZER.source.encode(line)[None]
    return search(ids, params.tree, CONFIG, beam)[0]


@pytest.mark.parametrize("beam", [1, 4])
def test_each_line_is_answered_by_a_line(run, checkpoint, beam):
    expected = [
        TOKENIZER.target.decode(answers(checkpoint[1], line, beam)[0].ids) for line in LINES
    ]
    assert run("--beam", beam, stdin=LINES) == "".join(f"{line}\n" for line in expected)
    assert [run("--beam", beam, "--prompt", line) for line in LINES] == [
        f"{line}\n" for line in expected
    ]


def test_forms_of_a_line(run, tmp_path):
    expected = run(stdin=LINES)
    assert run(stdin="\r\n".join(LINES).encode()) == expected
    assert run("--prompt", "\n".join(LINES)) == expected
    (tmp_path / "p.txt").write_text("\n".join(LINES) + "\n", "utf-8")
    assert run("--prompt-file", tmp_path / "p.txt") == expected
    assert run(stdin=b"") == ""


def test_many_lines_are_those_of_few(run, monkeypatch):
    expected, search, sizes = run(stdin=LINES * 3), beam.search, []
    monkeypatch.setattr(prompt, "LINES", 5)
    monkeypatch.setattr(
        answering, "search", lambda ids, *_: sizes.append(len(ids)) or search(ids, *_)
    )
    assert run(stdin=LINES * 3) == run("--prompt", "\n".join(LINES * 3)) == expected
    assert sizes == [5, 5, 2] * 2


def test_verbose_shows_all_hypotheses_and_their_log_probabilities(run, checkpoint):
    shown = run("--beam", 3, "--verbose", stdin=LINES[:2]).splitlines()
    expected = []
    for line in LINES[:2]:
        expected.append(line)
        for best in answers(checkpoint[1], line, 3):
            text = TOKENIZER.target.decode(best.ids) + " ..." * (not best.ended)
            expected.append(f"{best.log_prob:10.4f} {best.score:9.4f} per token  {text}")
    assert len(expected) == 8 and shown == expected


@pytest.mark.parametrize("width", [1, 3])
def test_answers_from_python_are_those_of_each_line_alone(checkpoint, monkeypatch, width):
    _, params = checkpoint
    lines = LINES * 30
    found = answer_lines(params, CONFIG, TOKENIZER, lines, width)
    assert len(found) == len(lines) == 120  # in batches of 64
    for line, ranked in zip(lines, found, strict=True):
        for one, best in zip(ranked, answers(params, line, width), strict=True):
            assert one.text == TOKENIZER.target.decode(best.ids) and one.ended == best.ended
            np.testing.assert_allclose(one[1:3], best[1:3], rtol=1e-5)
    assert answer_lines(params, CONFIG, TOKENIZER, []) == []


def test_answers_from_python_in_threads_are_those_one_by_one(checkpoint):
    _, params = checkpoint
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda line: answer_lines(params, CONFIG, TOKENIZER, [line]), LINES))
    assert found == [answer_lines(params, CONFIG, TOKENIZER, [line]) for line in LINES]


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "^line 3 has 0 characters, but the model reads 1 to 8"),
        ("a" * 9, "^line 3 has 9 characters, but the model reads 1 to 8"),
        ("aq", "^line 3: 'q' at position 1"),
    ],
)
def test_bad_lines_from_python_are_refused(checkpoint, line, message):
    with pytest.raises(UserError, match=message):
        answer_lines(checkpoint[1], CONFIG, TOKENIZER, ["a", "b", line])


@pytest.mark.cupy
def test_the_backends_write_the_same_text(run, xp):
    assert run("--backend", xp.__name__, "--beam", 2, stdin=LINES) == run("--beam", 2, stdin=LINES)


@pytest.mark.parametrize(
    "flags, stdin, message",
    [
        (("--prompt-file", "none"), b"", "^--prompt-file none cannot be read"),
        (("--temperature", 0), b"", "^--temperature is for a GPT, .* of an encoder-decoder; leave"),
        (("--stop", "a"), b"", "^--stop is for a GPT"),
    ],
)
def test_bad_input(run, flags, stdin, message):
    with pytest.raises(UserError, match=message) as error:
        run(*flags, stdin=stdin)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("beam", ["0", str(2**16)])
def test_a_beam_out_of_bounds(run, capsys, beam):
    with pytest.raises(SystemExit):
        run("--beam", beam)
    assert f"--beam is {beam}; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--beam", "2"), ("--verbose",)])
def test_a_gpt_has_no_beam(tmp_path, flags):
    write_checkpoint(tmp_path / "best.safetensors")
    with pytest.raises(UserError, match=f"{flags[0]} is for an encoder-decoder, .* of a GPT; leav"):
        main(["--out-dir", str(tmp_path), *flags])


def test_it_answers_a_line_before_the_next_one_comes(checkpoint):
    flags = [sys.executable, "-m", "minigpt.sample", "--checkpoint", str(checkpoint[0])]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(flags, cwd=ROOT, env=environment, **pipes) as process:
        for line in LINES:
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            text = TOKENIZER.target.decode(answers(checkpoint[1], line)[0].ids)
            assert process.stdout.readline() == f"{text}\n".encode()
        process.stdin.write(b"aq")
        process.stdin.close()
        *notes, error = process.stderr.read().decode().splitlines()
        assert error.startswith("error: standard input, line 5: 'q' at position 1")
        assert all(": the answer was cut off at 8 characters" in note for note in notes)
        assert process.stdout.read() == b"\n"
        assert process.wait(timeout=60) == 2
