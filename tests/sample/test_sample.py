"""The sampling command as a user runs it."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import cli
from minigpt.backend import is_plain
from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.model.checkpoint import save
from minigpt.model.gpt import GPTConfig, shapes
from minigpt.params import Params
from minigpt.sample.__main__ import main
from minigpt.sample.answers import AnswerOptions
from minigpt.sample.command import SampleConfig
from minigpt.sample.generate import generate
from minigpt.sample.text import SEPARATOR, TextOptions, cut_at_stop, generate_text
from tests.tools.options import gpt_config

ROOT = Path(__file__).parents[2]
TOKENIZER = CharTokenizer.from_text("\n abcdefgh")
CONFIG = gpt_config(vocab_size=10, block_size=8, n_layer=2, n_head=2, n_embd=8)


def write_checkpoint(path, seed=0, tokenizer=TOKENIZER):
    config = GPTConfig(**{**vars(CONFIG), "vocab_size": tokenizer.vocab_size})
    params = Params(shapes(config), np, "float32")
    params.flat[...] = 0.5 * np.random.default_rng(seed).standard_normal(params.size)
    save(path, params, config, tokenizer=tokenizer, state={})
    return params, config


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command on a checkpoint; return what it prints."""
    write_checkpoint(tmp_path / "best.safetensors")

    def run(*flags):
        main(["--out-dir", str(tmp_path), "--max-new-tokens=40", *map(str, flags)])
        return capsys.readouterr().out

    return run


def test_the_text_is_what_generate_yields(run, tmp_path):
    params, config = write_checkpoint(tmp_path / "best.safetensors")
    prompt = TOKENIZER.encode("abc")[None]
    settings = {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "seed": 3}
    ids = [i for (i,) in generate(params.tree, config, prompt, 30, **settings)]
    flags = ("--temperature", 0.9, "--top-k", 5, "--top-p", 0.9, "--seed", 3)
    printed = run("--prompt", "abc", "--max-new-tokens", 30, *flags)
    assert printed == "abc" + TOKENIZER.decode(ids) + "\n"


def test_the_same_seed_writes_the_same_text(run):
    texts = [run("--seed", seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert [len(text) for text in texts] == [41] * 3


def test_a_text_of_500_tokens_is_the_default(run, tmp_path, capsys):
    main(["--out-dir", str(tmp_path)])
    assert len(capsys.readouterr().out) == 501


def test_greedy_needs_no_seed(run):
    assert run("--temperature", 0, "--seed", 1) == run("--temperature", 0, "--seed", 2)


def test_no_tokens_are_just_the_prompt(run):
    assert run("--prompt", "abc", "--max-new-tokens", 0) == "abc\n"
    assert run("--max-new-tokens", 0) == "\n"


def test_an_empty_prompt_is_a_new_line_or_the_first_character(run, tmp_path):
    assert run() == run("--prompt", "") == run("--prompt", "\n").removeprefix("\n")
    write_checkpoint(tmp_path / "best.safetensors", tokenizer=CharTokenizer("xyz"))
    assert "x" + run() == run("--prompt", "x")


def test_the_prompt_from_a_file(run, tmp_path):
    (tmp_path / "p.txt").write_bytes(b"ab\nc\n")
    assert run("--prompt-file", tmp_path / "p.txt") == run("--prompt", "ab\nc\n")


def test_a_long_prompt_is_printed_whole_and_seen_in_part(run, tmp_path, capsys):
    folder = ["--out-dir", str(tmp_path), "--max-new-tokens=40"]
    main([*folder, "--prompt", "bcdefgha"])
    main([*folder, "--prompt", "aaabcdefgha"])
    out, err = capsys.readouterr()
    seen = run("--prompt", "bcdefgha")
    assert out == seen + "aaa" + seen
    assert err == "note: of the prompt's 11 tokens, the model sees the last 8\n"


@pytest.mark.cupy
def test_the_backends_write_the_same_text(run, xp):
    flags = ("--temperature", 0, "--max-new-tokens", 12)
    assert run(*flags, "--backend", xp.__name__) == run(*flags)


def test_several_samples_are_those_that_come_alone(run, monkeypatch):
    out = run("--num-samples", 3, "--prompt", "ab", "--max-new-tokens", 60)
    texts = out.split(f"\n{SEPARATOR}\n")
    assert len(set(texts)) == 3 and all(text.startswith("ab") for text in texts)
    assert texts[0] + "\n" == run("--prompt", "ab", "--max-new-tokens", 60)
    for fit in (1, 2):  # rows that fit in memory side by side
        monkeypatch.setattr("minigpt.sample.memory.ROWS", fit)
        assert run("--num-samples", 3, "--prompt", "ab", "--max-new-tokens", 60) == out


def test_the_text_ends_before_the_stop_string(run):
    text = run("--max-new-tokens", 60)[:-1]
    for stop in (text[0], text[9:11], text[20:25], text[57:60], text):
        assert run("--max-new-tokens", 60, "--stop", stop) == text[: text.find(stop)] + "\n"
    assert run("--max-new-tokens", 60, "--stop", "aaaaaaaaaa") == text + "\n"
    assert run("--max-new-tokens", 60, "--stop", text[-1] + "hhhh") == text + "\n"


def test_a_stop_string_in_the_prompt_does_not_count(run):
    whole = run("--prompt", "hahb", "--max-new-tokens", 9)[4:-1]
    stopped = run("--prompt", "hahb", "--max-new-tokens", 9, "--stop", "hah")
    assert stopped == "hahb" + whole.partition("hah")[0] + "\n"


def test_each_sample_ends_at_its_own_stop_string(run):
    texts = run("--num-samples", 4).split(f"\n{SEPARATOR}\n")
    stopped = run("--num-samples", 4, "--stop", "ab").split(f"\n{SEPARATOR}\n")
    texts, stopped = ([*t[:3], t[3][:-1]] for t in (texts, stopped))
    assert stopped == [text.partition("ab")[0] for text in texts]
    assert len({len(text) for text in stopped}) > 1


@given(st.text("ab", max_size=30), st.text("ab", max_size=4))
def test_what_is_shown_is_never_taken_back(text, stop):
    shown = ""
    for n in range(len(text) + 1):
        now = cut_at_stop(text[:n], stop, more=True)
        assert now.startswith(shown)
        shown = now
    final = cut_at_stop(text, stop, more=False)
    assert final.startswith(shown)
    assert final == (text.split(stop)[0] if stop else text)
    assert not stop or len(final) - len(shown) < len(stop)


def test_the_text_appears_as_it_is_made(run, monkeypatch, tmp_path):
    class Screen:
        def __init__(self):
            self.text, self.flushed = "", []

        def write(self, text):
            self.text += text

        def flush(self):
            self.flushed.append(self.text)

        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    main(["--out-dir", str(tmp_path), "--prompt", "abc", "--max-new-tokens", "20"])
    assert {len(text) for text in screen.flushed} == set(range(3, 24))


def test_pieces_of_a_text_from_python_are_what_the_command_prints(run, tmp_path):
    params, config = write_checkpoint(tmp_path / "best.safetensors")
    options = TextOptions(max_new_tokens=30, stop="ab", seed=5)
    for prompt in ("abc", "", "bcdefghabc"):
        pieces = list(generate_text(params, config, TOKENIZER, prompt, options))
        assert all(pieces)
        flags = ("--max-new-tokens=30", "--stop=ab", "--seed=5")
        assert run("--prompt", prompt, *flags) == prompt + "".join(pieces) + "\n"


def test_texts_from_python_in_threads_are_those_one_by_one(tmp_path):
    params, config = write_checkpoint(tmp_path / "best.safetensors")

    def text(seed):
        options = TextOptions(max_new_tokens=40, seed=seed)
        return "".join(generate_text(params, config, TOKENIZER, "a", options))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, range(8))) == list(map(text, range(8)))


def test_bad_input_from_python_is_refused_before_the_first_piece(tmp_path):
    params, config = write_checkpoint(tmp_path / "best.safetensors")
    with pytest.raises(UserError, match="^prompt: 'z' at position 0"):
        generate_text(params, config, TOKENIZER, "z", TextOptions())
    with pytest.raises(UserError, match="^stop: 'z' at position 1"):
        generate_text(params, config, TOKENIZER, "a", TextOptions(stop="az"))
    with pytest.raises(UserError, match="^temperature is -1.0; it must be at least 0"):
        TextOptions(temperature=-1)


def test_with_plain_the_ops_run_as_they_are_written(run, monkeypatch):
    flags = ("--max-new-tokens=12", "--temperature=0")
    seen, expected = [], run(*flags)

    def record(*args, **settings):
        seen.append(is_plain())
        return generate(*args, **settings)

    monkeypatch.setattr("minigpt.sample.text.generate", record)
    assert run("--plain", *flags) == run(*flags) == expected
    assert seen == [True, False]


def test_best_comes_before_last(tmp_path, capsys):
    def text(*flags):
        main([*flags, "--max-new-tokens", "30"])
        return capsys.readouterr().out

    for seed, name in enumerate(("last", "best")):
        write_checkpoint(tmp_path / f"{name}.safetensors", seed)
    last, best = (
        text("--checkpoint", f"{tmp_path}/{name}.safetensors") for name in ("last", "best")
    )
    assert text("--out-dir", str(tmp_path)) == best != last
    (tmp_path / "best.safetensors").unlink()
    assert text("--out-dir", str(tmp_path)) == last


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--prompt", "abz"), "^--prompt: 'z' at position 2, .* not in the vocabulary, .* 10 char"),
        (("--stop", "\\n"), r"^--stop: '\\\\' at position 0"),
        (("--prompt-file", "none"), "^--prompt-file none cannot be read: No such file"),
        (("--prompt-file", "."), "^--prompt-file . is a folder; name a text file"),
        (("--prompt-file", "latin"), "latin is not UTF-8: byte 0xe9 at offset 3 .* fit; convert"),
        (("--prompt-file", "z"), "^--prompt-file z: 'z' at position 0"),
    ],
)
def test_bad_input(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("latin").write_bytes(b"abc\xe9")
    Path("z").write_bytes(b"z")
    with pytest.raises(UserError, match=message) as caught:
        run(*flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--checkpoint", "a"), "--checkpoint and --out-dir: give one of the two"),
        (("--prompt", "a", "--prompt-file", "b"), "--prompt and --prompt-file: give one of the"),
        (("--topk", "3"), "unknown flag '--topk'; did you mean '--top-k'"),
        (("--temperature", "nan"), "--temperature is nan; it must be a number"),
        (("--temperature", "-0.1"), "--temperature is -0.1; it must be at least 0"),
        (("--top-k", "-1"), "--top-k is -1; it must be at least 0"),
        (("--top-p", "0"), "--top-p is 0.0; it must be above 0"),
        (("--top-p", "1.01"), "--top-p is 1.01; it must be above 0 and at most 1"),
        (("--num-samples", "0"), "--num-samples is 0; it must be at least 1"),
        (("--max-new-tokens", "-1"), "--max-new-tokens is -1; it must be at least 0"),
        (("--seed", "-1"), "--seed is -1; it must be at least 0"),
        (("--seed", str(2**64)), "--seed is 18446744073709551616; it must be at least 0 and below"),
        (("--top-k", "three"), "--top-k is 'three'; it must be a whole number"),
        (("--backend", "jax"), "--backend is 'jax'; choose from numpy, cupy"),
    ],
)
def test_bad_flags(run, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        run(*flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert error.startswith("python -m minigpt.sample: error: ") and message in error


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no best.safetensors or last.safetensors there; train"):
        main(["--out-dir", str(tmp_path)])
    with pytest.raises(UserError, match="none.safetensors: there is no such file"):
        main(["--checkpoint", str(tmp_path / "none.safetensors")])
    with pytest.raises(UserError, match="none: there is no such file or folder; train"):
        main(["--out-dir", str(tmp_path / "none")])


def test_every_option_is_explained():
    for cls in (SampleConfig, TextOptions, AnswerOptions):
        assert cli.build(cls, {}) == cls()
        assert all(field.metadata["help"] for field in cls.__dataclass_fields__.values())


def command(*flags, **settings):
    flags = [sys.executable, "-m", "minigpt.sample", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(flags, cwd=ROOT, **pipes, **settings)


def test_the_command_ends_in_one_line_on_bad_input(tmp_path):
    process = command("--out-dir", tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {tmp_path}: no best.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
@pytest.mark.parametrize("end, code", [("interrupt", 130), ("close", 141)])
def test_it_goes_quietly(tmp_path, end, code):
    write_checkpoint(tmp_path / "best.safetensors")
    process = command("--out-dir", tmp_path, "--max-new-tokens", 10**9)
    assert process.stdout.read(20)
    if end == "interrupt":
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == code
