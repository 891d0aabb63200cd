"""What a text is made of, found out in one pass over its parts."""

import hashlib
from typing import NamedTuple

import numpy as np

from minigpt.data.characters import code_points
from minigpt.data.sources import read_parts
from minigpt.errors import UserError
from minigpt.files import MARK

UNICODE = 0x110000  # code points


class Survey(NamedTuple):
    """What a text is made of.

    Attributes
    ----------
    size, length : int
        In bytes of UTF-8, and in characters.
    chars : str
        Its different characters, sorted.
    sha256 : str
        Of its UTF-8.
    cr, crlf, marks : int
        How often it has a carriage return, one with a line feed after it, a byte order mark.
    """

    size: int
    length: int
    chars: str
    sha256: str
    cr: int
    crlf: int
    marks: int

    @property
    def notes(self):
        """What a user might not know of the text, a sentence each."""
        found, alone = [], self.cr - self.crlf
        if self.crlf:
            lines = f"{self.crlf:,} lines of the text end"
            lines = "1 line of the text ends" if self.crlf == 1 else lines
            found.append(
                f"{lines} in CR LF, and each CR is a character to learn; to leave them out: "
                "tr -d '\\r' < old.txt > new.txt"
            )
        if alone:
            found.append(
                f"the text has {alone:,} CR without LF, the line ends of old Macs; to convert "
                "them: tr '\\r' '\\n' < old.txt > new.txt"
            )
        if self.marks:
            marks = "byte order mark" if self.marks == 1 else "byte order marks"
            found.append(
                f"the text has {self.marks:,} {marks} (U+FEFF) within it, as files that were "
                "joined have; to leave them out: sed 's/\\xEF\\xBB\\xBF//g' old.txt > new.txt"
            )
        if self.chars.startswith("\0"):
            found.append(
                "the text has NUL characters; if it is UTF-16 without a byte order mark, convert "
                "it: iconv -f UTF-16LE -t UTF-8 old.txt > new.txt"
            )
        return found


def survey(sources):
    """Read all sources and return their Survey.

    Raises
    ------
    UserError
        If one cannot be read or is not UTF-8, or if there is no text in them.
    """
    sha256, seen, present = hashlib.sha256(), b"", np.zeros(UNICODE, bool)
    size = length = cr = crlf = marks = 0
    last = b""
    for raw, text in read_parts(sources):
        sha256.update(raw)
        size, length = size + len(raw), length + len(text)
        if new := raw.translate(None, seen):  # and all that is not ASCII
            present[code_points(new.decode("utf-8"))] = True
            seen = present[:128].nonzero()[0].astype(np.uint8).tobytes()
        if b"\r" in raw or last.endswith(b"\r"):
            cr += raw.count(b"\r")
            crlf += raw.count(b"\r\n") + (last.endswith(b"\r") and raw.startswith(b"\n"))
        if not text.isascii():
            marks += raw.count(MARK)
        last = raw
    if not length:
        raise UserError(f"{sources[0].where} is empty; name a file with text in it")
    chars = "".join(map(chr, present.nonzero()[0].tolist()))
    return Survey(size, length, chars, sha256.hexdigest(), cr, crlf, marks)
