"""Lines to answer are items of their own: one that is bad spoils no other."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.sample import prompt as prompts
from minigpt.sample.__main__ import main
from minigpt.sample.prompt import Prompt, prompt_lines, read_lines, read_prompt
from tests.sample.test_sample import write_checkpoint
from tests.sample.test_sample_seq2seq import write_checkpoint_of_pairs

ROOT = Path(__file__).parents[2]
BAD = [
    (b"x", "'x' at position 0"),
    (b"", "has 0 characters, but the model reads 1 to 8"),
    (b"a" * 9, "has 9 characters, but the model reads 1 to 8"),
    (b"ab ab ab ", "has 9 characters"),
    (b"a\tb", "'\\t' (U+0009 TAB) at position 1"),
    (b"ab\xe9", "is not UTF-8: byte 0xe9 at offset 2"),
    (b"a\rb", "'\\r' (U+000D CARRIAGE RETURN) at position 1"),
]


@pytest.fixture
def ask(tmp_path, capsys, monkeypatch):
    """Run the command on bytes; return (exit code, lines of output, lines of standard error)."""
    checkpoint, _ = write_checkpoint_of_pairs(tmp_path / "best.safetensors")

    def ask(raw, *flags, way="stdin"):
        given = ["--checkpoint", str(checkpoint), *flags]
        if way == "stdin":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        elif way == "--prompt":
            given += [way, raw.decode()]
        else:
            (tmp_path / "lines").write_bytes(raw)
            given += [way, str(tmp_path / "lines")]
        status = main(given)
        out, err = capsys.readouterr()
        lines = err.splitlines()
        return status, out.split("\n")[:-1], [line for line in lines if "cut off" not in line]

    return ask


@pytest.mark.report("11")
@pytest.mark.parametrize("way", ["stdin", "--prompt", "--prompt-file"])
def test_a_bad_line_has_an_empty_answer_and_a_line_of_error_and_the_rest_is_answered(
    ask, way, tmp_path
):
    name = {"stdin": "standard input", "--prompt-file": f"--prompt-file {tmp_path / 'lines'}"}
    where = name.get(way, way)
    good = ask(b"ab\nc\n", way=way)
    assert (good[0], len(good[1]), good[2]) == (0, 2, [])
    for bad, message in BAD:
        if way == "--prompt" and not bad.isascii():
            continue  # refused as a whole
        status, answers, errors = ask(b"ab\n" + bad + b"\nc\n", way=way)
        assert status == 2 and answers == [good[1][0], "", good[1][1]]
        (error,) = errors
        assert error.startswith(f"error: {where}, line 2") and message in error


@pytest.mark.report("11")
def test_bad_lines_keep_their_numbers_over_many_batches(ask):
    lines = [b"x" if i % 7 == 0 else b"ab" for i in range(1, 201)]
    status, answers, errors = ask(b"\n".join(lines))
    good = ask(b"ab\n")[1][0]
    assert status == 2
    assert answers == ["" if line == b"x" else good for line in lines]
    assert [e.split(":")[1] for e in errors] == [
        f" standard input, line {i}" for i in range(7, 201, 7)
    ]
    status, answers, errors = ask(b"x\n" * 130)
    assert (status, answers, len(errors)) == (2, [""] * 130, 130)


@pytest.mark.report("11")
def test_with_verbose_a_bad_line_stands_there_and_has_no_answer(ask):
    status, lines, errors = ask(b"ab\na\xe9\nc\n", "--verbose", "--beam=2")
    assert (status, len(errors)) == (2, 1)
    assert lines[:1] + lines[3:6] == ["ab", "a\\xe9", " no answer", "c"]


@pytest.mark.report("11")
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_empty_line_at_the_end_is_a_line_and_the_end_of_the_last_is_none(ask, end):
    assert ask(b"ab" + end)[:2] == (0, ask(b"ab\n")[1])
    status, answers, (error,) = ask(b"ab\n\n")
    assert (status, len(answers)) == (2, 2) and error.startswith(
        "error: standard input, line 2 has"
    )
    assert ask(b"") == (0, [], [])
    assert ask(b"", way="--prompt")[:2] == (2, [""])


@pytest.mark.report("6")
@pytest.mark.parametrize("way", ["stdin", "--prompt", "--prompt-file"])
def test_byte_order_marks_are_dropped_in_front_and_where_files_were_joined(ask, way):
    expected = ask(b"ab\nc\n", way=way)
    assert expected[0] == 0
    for raw in ("\ufeffab\nc\n", "\ufeffab\n\ufeffc\n", "\ufeffab\r\n\ufeffc\r\n"):
        assert ask(raw.encode(), way=way) == expected


@pytest.mark.report("6")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_one_error_not_one_for_each_line(ask, encoding):
    raw = "\ufeff".encode(encoding) * (encoding != "utf-16") + "ab\nc\n".encode(encoding)
    with pytest.raises(UserError, match="^standard input is UTF-16; convert it"):
        ask(raw)


@pytest.mark.report("23")
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("way", ["stdin", "--prompt", "--prompt-file"])
def test_lines_end_as_on_any_system(ask, end, way):
    expected = ask(b"ab\nc\na", way=way)
    for last in ("", end):
        assert ask((end.join(["ab", "c", "a"]) + last).encode(), way=way) == expected


class Pieces:
    """A stream that gives bytes in pieces."""

    def __init__(self, raw, sizes):
        self.raw, self.sizes = io.BytesIO(raw), [*sizes, 10**6]

    def read1(self, _):
        return self.raw.read(self.sizes.pop(0) if len(self.sizes) > 1 else 10**6)


@given(
    st.lists(st.text("ab", max_size=3), min_size=1, max_size=5),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(1, 4), max_size=20),
)
@pytest.mark.report("23")
def test_lines_are_the_same_however_they_arrive(lines, end, sizes):
    raw = b"".join(line.encode() + end for line in lines)
    found = sum(read_lines(Pieces(raw, sizes)), [])
    assert found == [line.encode() for line in lines]


@pytest.mark.report("23")
def test_a_carriage_return_in_a_line_of_other_ends_is_its_own():
    assert sum(read_lines(io.BytesIO(b"a\rb\nc\n")), []) == [b"a\rb", b"c"]


@pytest.mark.report("3")
def test_a_standard_input_that_is_closed_is_named(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="there is no standard input; give lines by --prompt"):
        list(prompt_lines(None))


def test_a_prompt_with_surrogates_is_reported_not_a_crash():
    for text in ("a\udce9", "a\ud800"):
        with pytest.raises(UserError, match="^--prompt is not UTF-8"):
            read_prompt(text, None).text(None)


@pytest.mark.report("11")
def test_lines_are_answered_as_they_arrive_and_a_closed_pipe_ends_it_quietly(tmp_path):
    checkpoint, _ = write_checkpoint_of_pairs(tmp_path / "best.safetensors")
    flags = [sys.executable, "-m", "minigpt.sample", "--checkpoint", str(checkpoint)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(flags, cwd=ROOT, bufsize=0, **pipes) as process:
        for line, bad in ((b"x\n", True), (b"ab\n", False), (b"\xe9\n", True)):
            process.stdin.write(line)
            answer = process.stdout.readline()
            assert answer.endswith(b"\n") and (len(answer) == 1) == bad
        process.stdout.close()
        try:
            process.stdin.write(b"ab\n" * 1000)
            process.stdin.close()
        except BrokenPipeError:
            pass
        said = process.stderr.read().decode().splitlines()
        assert process.wait(timeout=60) == 141
    assert [line.split(":")[0] for line in said if "cut off" not in line] == ["error"] * 2


@pytest.mark.report("3")
def test_a_standard_error_that_fails_stops_no_answer(ask, monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    status, answers, _ = ask(b"ab\nx\nc\n")
    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert ask(b"ab\nx\nc\n") == (status, answers, [])


@pytest.mark.report("27")
@pytest.mark.parametrize("flag", ["--prompt", "--prompt-file", "--stop"])
def test_an_accent_that_stands_alone_is_seen_and_its_letter_named(tmp_path, flag):
    tokenizer = CharTokenizer.from_text("le café à côté, un\n")
    write_checkpoint(tmp_path / "best.safetensors", tokenizer=tokenizer)
    (tmp_path / "p").write_text("cafe\u0301", "utf-8")
    value = str(tmp_path / "p") if flag == "--prompt-file" else "cafe\u0301"
    with pytest.raises(UserError) as error:
        main(["--out-dir", str(tmp_path), flag, value])
    text = str(error.value)
    assert (
        text.startswith(flag) and "'\\u0301' (U+0301 COMBINING ACUTE ACCENT) at position 4" in text
    )
    assert text.endswith("it has 'é' for 'e\\u0301': compose the text (NFC)")


def test_a_dash_is_standard_input(tmp_path, capsys, monkeypatch):
    checkpoint, _ = write_checkpoint_of_pairs(tmp_path / "best.safetensors")
    write_checkpoint(tmp_path / "gpt")

    def run(*flags):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\nc\n")))
        main(["--checkpoint", *map(str, flags)])
        return capsys.readouterr().out

    assert run(checkpoint, "--prompt-file=-") == run(checkpoint)
    flags = tmp_path / "gpt", "--max-new-tokens=9"
    assert run(*flags, "--prompt-file=-") == run(*flags, "--prompt=ab\nc\n")


def test_parts_have_at_most_as_many_lines(monkeypatch):
    monkeypatch.setattr(prompts, "LINES", 3)
    parts = list(prompt_lines(Prompt("--prompt", b"a\n" * 7)))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [where for part in parts for where, _ in part] == [
        f"--prompt, line {i}" for i in range(1, 8)
    ]
