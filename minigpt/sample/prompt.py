"""Prompts: from flags, a file or standard input."""

import sys
from pathlib import Path

from minigpt.errors import UserError

LINES = 64  # that an encoder-decoder answers side by side


def read_prompt(options):
    """Text of --prompt, or of the file (UTF-8) that --prompt-file names."""
    path = options.prompt_file
    if path is None:
        return options.prompt
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--prompt-file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompt-file {path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} (counted from 0) does not fit"
        ) from None


def in_parts(lines):
    """Return an iterator over lists of at most LINES of the lines."""
    return (lines[start : start + LINES] for start in range(0, len(lines), LINES))


def arriving(file):
    """Yield lists of lines, bytes without their ends, as they arrive, at most LINES at a time."""
    rest = b""
    while chunk := file.read1(2**16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from in_parts(lines)
    if rest:
        yield [rest]


def prompt_lines(options, given):
    """Yield lists of (where it stands, line): of the prompt if there is one, else of stdin."""
    if {"prompt", "prompt_file"} & given:
        lines = read_prompt(options).removesuffix("\n").split("\n")
        name = "--prompt" if options.prompt_file is None else f"--prompt-file {options.prompt_file}"
        parts = in_parts([line.encode("utf-8", "surrogatepass") for line in lines])
    else:
        name, parts = "standard input", arriving(sys.stdin.buffer)
        if sys.stdin.isatty():
            print("lines to answer, from the keyboard:", file=sys.stderr)
    number = 0
    for part in parts:
        batch = []
        for raw in part:
            number += 1
            where = f"{name}, line {number}"
            try:
                batch.append((where, raw.removesuffix(b"\r").decode("utf-8", "surrogatepass")))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} does not fit"
                ) from None
        yield batch


def encode_line(where, line, tokenizer, block_size):
    """Ids of a line, or a UserError that says where it stands."""
    if not 0 < len(line) <= block_size:
        raise UserError(
            f"{where} has {len(line)} characters, but the model reads 1 to {block_size}"
        )
    try:
        return tokenizer.encode_array(line)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
