"""Prompts: from flags, a file or standard input, as text and as ids.

An encoder-decoder answers lines, and each is an item of its own: one that cannot be read spoils no
other. They end with LF or CR LF; in a text without any LF, with CR.
"""

import io
import itertools
import sys
from typing import NamedTuple

from minigpt.cli import plural, say
from minigpt.data.sources import STDIN
from minigpt.errors import UserError
from minigpt.files import FOREIGN, decode_utf8, read_bytes

PUT_TOKENIZER = (
    "put tokenizer.json, or vocab.json and merges.txt, into its folder of transformers, and load "
    "it from there"
)
LINES = 64  # that an encoder-decoder answers side by side, at most


class Prompt(NamedTuple):
    """A prompt as it came.

    Attributes
    ----------
    name : str
        What named it, such as "--prompt".
    raw : bytes
    """

    name: str
    raw: bytes

    def text(self, tokenizer):
        """Return it as one text, without a byte order mark.

        Line ends of other systems become new lines, unless the vocabulary has a carriage return.

        Raises
        ------
        UserError
            If it is not UTF-8.
        """
        text = decode_utf8(self.raw, self.name)
        if "\r" in text and not knows(tokenizer, "\r"):
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return text


def read_prompt(text, path):
    """Return the Prompt of --prompt or of the file of --prompt-file, or None."""
    if path == STDIN:
        return Prompt("standard input", open_stdin().read())
    if path is not None:
        return Prompt(f"--prompt-file {path}", read_bytes(path, "--prompt-file"))
    # Surrogates, which are no text, stay what they are and are found when it is decoded.
    return None if text is None else Prompt("--prompt", text.encode("utf-8", "surrogatepass"))


def open_stdin():
    """Return standard input as a file of bytes."""
    if sys.stdin is None:
        raise UserError("there is no standard input; give lines by --prompt or --prompt-file")
    return sys.stdin.buffer


def check_tokenizer(tokenizer):
    """Raise a UserError if a model has no tokenizer, where a text is to be read or written."""
    if tokenizer is None:
        raise UserError(
            f"this model has no tokenizer: it takes ids alone, by Model.generate_ids and "
            f"Model.logits from Python; for text, {PUT_TOKENIZER}"
        )


def knows(tokenizer, text):
    """Tell whether all of a text has tokens."""
    try:
        tokenizer.encode(text)
    except UserError:
        return False
    return True


def in_parts(items, size):
    """Return an iterator over lists of at most `size` of the items of a list."""
    return (items[start : start + size] for start in range(0, len(items), size))


def read_lines(file):
    """Yield lists of lines, bytes without their ends, as they arrive, at most LINES at a time."""
    rest, end = b"", None
    while chunk := file.read1(2**16):
        rest += chunk
        if end is None and b"\n" in rest:
            end = b"\n"
        elif end is None and b"\r" in rest[:-1]:  # at the very end, an LF may follow
            end = b"\r"
        if end:
            *lines, rest = rest.split(end)
            yield from in_parts([line.removesuffix(b"\r") for line in lines], LINES)
    if rest:
        yield [rest.removesuffix(b"\r")]


def prompt_lines(prompt):
    """Yield lists of (what names it, line in bytes): of a Prompt, of standard input if None.

    Raises
    ------
    UserError
        If there is no standard input, or the text is UTF-16 or the like.
    """
    name, parts = prompt_parts(prompt)
    first = 1
    for part in parts:
        if first == 1 and part[0].startswith((*FOREIGN,)):
            decode_utf8(part[0], name)  # raises a UserError: no line can be read
        yield [(f"{name}, line {number}", line) for number, line in enumerate(part, first)]
        first += len(part)


def prompt_parts(prompt):
    """Return (what names a Prompt, its lines in parts), of standard input if it is None."""
    if prompt is not None:
        parts = read_lines(io.BytesIO(prompt.raw))
        return prompt.name, in_parts([*itertools.chain.from_iterable(parts)] or [b""], LINES)
    if sys.stdin is not None and sys.stdin.isatty():
        say("lines to answer, from the keyboard:")
    return "standard input", read_lines(open_stdin())


class Line(NamedTuple):
    """A line to answer, or why it cannot be.

    Attributes
    ----------
    where : str
        What names it.
    text : str
        Of bytes that are not UTF-8, escapes.
    ids : (T,) int32, or None
    error : UserError, or None
    """

    where: str
    text: str
    ids: object = None
    error: UserError | None = None


def read_line(where, line, tokenizer, block_size):
    """Return the Line of a str, or of bytes; see `encode_line`."""
    text = line
    try:
        if isinstance(line, bytes):
            text = line.decode("utf-8", "backslashreplace")
            text = decode_utf8(line, where)  # a byte order mark may come with an appended file
        return Line(where, text, encode_line(where, text, tokenizer, block_size))
    except UserError as error:
        return Line(where, text, error=error)


def encode_text(where, text, tokenizer):
    """Return the ids of a text, or raise a UserError that begins with `where`.

    Without a tokenizer it is that of `check_tokenizer`.
    """
    check_tokenizer(tokenizer)
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
            f"{where} has {plural(len(ids), tokenizer.unit)}, but the model reads 1 to {block_size}"
        )
    return ids
