"""Around the program: what its terminal shows, and command lines that its shell reads.

Output is UTF-8 whatever the locale, as the files are that minigpt reads.
"""

import codecs
import contextlib
import os
import re
import shlex
import subprocess
import sys

from minigpt.errors import UserError

# Obeyed by terminals, or moved about in them: C0 but for tab and new line, DEL, C1; line
# separators; overrides of the direction, which can make a line read as another.
CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
SURROGATES = re.compile("[\ud800-\udfff]")  # as which Python keeps bytes that do not fit
UNPRINTABLE = "minigpt.unprintable"  # name of `encode_rest` as a handler of errors


def command(prog, **flags):
    """Return a command line that can be pasted into a shell.

    Parameters
    ----------
    prog : str
        How the program is called, such as "python -m minigpt.train".
    **flags
        By the options' names. True is a flag alone, None and False are left out, and a list is
        the flag once per item. Values are quoted where the shell needs it.

    Examples
    --------
    >>> command("minigpt train", resume=True, out_dir="my run", stop="-x")
    "minigpt train --resume --out-dir 'my run' --stop=-x"
    """
    words = [prog]
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is True:
                words.append(flag)
            elif item is not None and item is not False:
                text = in_utf8(str(item))
                words.append(flag + ("=" if text.startswith("-") else " ") + shell_word(text))
    return " ".join(words)


def shell_word(text):
    """Return a text as one word of a command line, in printable characters."""
    if os.name == "nt":
        return subprocess.list2cmdline([text])
    if text.isprintable():
        return shlex.quote(text)
    raw = text.encode("utf-8", "surrogateescape")
    plain = "".join(chr(b) if 32 <= b < 127 and b not in b"\\'" else f"\\x{b:02x}" for b in raw)
    return f"$'{plain}'"


def plural(n, noun, how=""):
    """Return a number with its noun, which may be given in the plural: "1 layer", "2 layers".

    `how` it is written, as of format(): "," for "1,400 steps".
    """
    return f"{n:{how}} {noun.removesuffix('s')}{'s' * (n != 1)}"


def first_of(items, n, separator=", "):
    """Return the first n of some texts, and how many there are beside: "a, b and 3 more"."""
    more = f" and {len(items) - n:,} more" if len(items) > n else ""
    return separator.join(items[:n]) + more


def printable(text, stream=None):
    r"""Return a text as a terminal may see it: control characters as escapes, such as \x1b.

    New lines and tabs stay. Where the stream is no terminal the text is returned as it is, so
    that a program or a file gets what was written.

    Parameters
    ----------
    text : str
    stream : file, optional
        Standard output if left out.
    """
    stream = sys.stdout if stream is None else stream
    return escape(text) if stream is not None and stream.isatty() else text


def escape(text):
    r"""Return a text with its control characters, but for new line and tab, as escapes."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def has_colours(stream):
    """Tell whether a stream is a terminal that shows colours; NO_COLOR says that none are wanted.

    See https://no-color.org. A terminal says what it is in TERM; where there is none, as on
    Windows, it may not know the codes.
    """
    if stream is None or os.environ.get("NO_COLOR") or not stream.isatty():
        return False
    return os.environ.get("TERM", "dumb") not in ("", "dumb")


def use_utf8(*streams):
    r"""Let streams write UTF-8 whatever the locale, unless PYTHONIOENCODING says otherwise.

    What the encoding lacks becomes an escape in ASCII; a part of a file's name that Python keeps
    as surrogates is written as it was, where it was UTF-8.
    """
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    for stream in streams:
        if hasattr(stream, "reconfigure"):  # not None, as one that is closed, nor a stand-in
            stream.reconfigure(encoding=encoding or "utf-8", errors=errors or UNPRINTABLE)


def encode_rest(error):
    """Handle what an encoder cannot: surrogates that stand for bytes of UTF-8, else escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if error.encoding == "utf-8":
        part = error.object[error.start : error.end]
        with contextlib.suppress(UnicodeError):
            name = part.encode("ascii", "surrogateescape").decode("utf-8")
            return escape(name).encode(), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error(UNPRINTABLE, encode_rest)


def in_utf8(text):
    """Return an argument or a name, whose bytes the locale took for others, as UTF-8 if it is."""
    with contextlib.suppress(UnicodeError):
        return os.fsencode(text).decode("utf-8")
    return text


def as_utf8(text, flag):
    """Return a flag's text, an argument, read as UTF-8 whatever the locale.

    Raises
    ------
    UserError
        If bytes of it fit neither.
    """
    text = in_utf8(text)
    wrong = SURROGATES.search(text)
    if wrong:
        raise UserError(f"{flag} is not UTF-8: byte 0x{ord(wrong[0]) & 0xFF:02x} does not fit")
    return text
