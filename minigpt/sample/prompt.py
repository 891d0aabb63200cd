"""Prompts: from flags, a file or standard input, as text and as ids."""

import itertools
import sys

from minigpt.errors import UserError
from minigpt.files import decode_utf8, read_text

LINES = 64  # that an encoder-decoder answers side by side


def read_prompt(text, path):
    """Return (what names it, text) of --prompt or of the file of --prompt-file, or None."""
    if path is not None:
        return f"--prompt-file {path}", read_text(path, "--prompt-file")
    return None if text is None else ("--prompt", text)


def in_parts(items):
    """Return an iterator over lists of at most LINES of the items of a list."""
    return (items[start : start + LINES] for start in range(0, len(items), LINES))


def read_lines(file):
    """Yield lists of lines, bytes without their ends, as they arrive, at most LINES at a time."""
    rest = b""
    while chunk := file.read1(2**16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from in_parts(lines)
    if rest:
        yield [rest]


def prompt_lines(prompt):
    """Yield lists of (where it stands, line): of what `read_prompt` returned, of stdin if None."""
    if prompt is None:
        return stdin_lines(sys.stdin)
    name, text = prompt
    lines = enumerate(text.removesuffix("\n").split("\n"), 1)
    return in_parts([(f"{name}, line {i}", line.removesuffix("\r")) for i, line in lines])


def stdin_lines(stdin):
    """Yield lists of (where it stands, line) of standard input, as they arrive."""
    if stdin is None:
        raise UserError("there is no standard input; give lines by --prompt or --prompt-file")
    if stdin.isatty():
        print("lines to answer, from the keyboard:", file=sys.stderr)
    numbers = itertools.count(1)
    for part in read_lines(stdin.buffer):
        batch = []
        for raw in part:
            where = f"standard input, line {next(numbers)}"
            batch.append((where, decode_utf8(raw, where).removesuffix("\r")))
        yield batch


def encode_text(where, text, tokenizer):
    """Return the ids of a text, or raise a UserError that begins with `where`."""
    try:
        return tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def encode_line(where, line, tokenizer, block_size):
    """Return the ids of a line that a model reads whole: (T,) int32, 1 <= T <= block_size.

    Raises
    ------
    UserError
        If it has no token, too many, or something that has no token; begins with `where`.
    """
    ids = encode_text(where, line, tokenizer)
    if not 0 < len(ids) <= block_size:
        raise UserError(
            f"{where} has {len(ids)} {tokenizer.unit}, but the model reads 1 to {block_size}"
        )
    return ids
