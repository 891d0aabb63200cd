"""The tokenizer of characters, one token each."""

import itertools
import json
import unicodedata

import numpy as np

from minigpt import cli
from minigpt.cli.characters import described, quoted
from minigpt.data.tokenizer import Tokenizer
from minigpt.errors import UserError

MAX_SHOWN = 100  # characters of a vocabulary that an error message lists
PART = 1 << 16  # characters encoded at a time, for speed and little memory besides
CLUSTER = 5  # characters, at most, that may be one in another form
FORMS = {  # of Unicode, and how to get a text into them
    "NFC": "compose",
    "NFD": "decompose",
    "NFKC": "convert",
    "NFKD": "convert",
}


class CharTokenizer(Tokenizer):
    """One token per character; the ids number the characters in sorted order.

    Parameters
    ----------
    chars : str
        The vocabulary, no character twice: `chars[i]` is the token with id i.
    """

    kind = "char"
    unit = "characters"
    concatenates = True

    def __init__(self, chars):
        self.chars = chars
        codes = code_points(chars)
        # Indexed by code point, -1 where there is no token; the last entry is for all beyond.
        self._ids = np.full(max(codes.max(initial=0) + 2, 256), -1, np.int32)
        self._ids[codes] = np.arange(len(chars))
        # bytes.translate is four times as fast. -1 is 255 there: sorted, ASCII's ids are below.
        self._ascii = self._ids[:256].astype(np.uint8).tobytes()
        self._is_sorted = bool((codes[1:] > codes[:-1]).all())

    @classmethod
    def from_text(cls, text):
        """Make the tokenizer whose vocabulary is the sorted set of characters of `text`."""
        return cls("".join(sorted(set(text))))

    @classmethod
    def from_json(cls, table):
        """Read back what `to_json` wrote.

        Raises
        ------
        UserError
            If `table` is anything else.
        """
        try:
            fields = json.loads(table)
            chars = "".join(fields["chars"])
            if fields == {"kind": "char", "chars": sorted(set(chars))}:
                return cls(chars)
        except (ValueError, TypeError, KeyError):
            pass  # the same message for all that is wrong with it
        raise UserError(
            f"not the table of a character tokenizer: {str(table)[:60]!r}; "
            'it should be {"kind": "char", "chars": [...]} with sorted characters'
        )

    def to_json(self):
        """Return the table as text, for a checkpoint: {"kind": "char", "chars": [...]}."""
        return json.dumps({"kind": "char", "chars": list(self.chars)})

    @property
    def vocab_size(self):
        """Number of characters."""
        return len(self.chars)

    @property
    def byte_lengths(self):
        """Bytes of UTF-8 of each character: (vocab_size,) int64."""
        return np.array([len(char.encode("utf-8", "surrogatepass")) for char in self.chars], int)

    def encode(self, text):
        """Return the ids of a text, one per character: (N,) int32."""
        starts = range(0, len(text), PART)
        parts = self.encode_parts(text[start : start + PART] for start in starts)
        return np.concatenate([np.empty(0, np.int32), *parts])

    def encode_parts(self, parts):
        """Iterate over the ids of a text that comes in parts, as Tokenizer's, each by itself."""
        position, lines, column, newline = 0, 0, 0, self._ids[ord("\n")]
        for part in parts:
            ids = self._encode(part)
            if ids.min(initial=0) < 0:
                raise UserError(self._unknown(part, int(ids.argmin()), position, lines, column))
            yield ids
            position, column = position + len(part), column + len(part)
            if breaks := np.count_nonzero(ids == newline):
                lines, column = lines + breaks, len(part) - part.rindex("\n") - 1

    def _encode(self, part):
        """Return the ids of a short text, -1 where a character has none: (N,) int32."""
        if part.isascii() and self._is_sorted:
            ids = part.encode("ascii").translate(self._ascii)
            if b"\xff" not in ids:
                return np.frombuffer(ids, np.uint8).astype(np.int32)
        return self._ids.take(code_points(part), mode="clip")

    def encode_each(self, texts):
        """Encode many texts at once: (M,) int32, and the length of each."""
        return self.encode("".join(texts)), np.array([*map(len, texts)], int)

    def decode(self, ids):
        """Return the text of `ids`, an iterable of integers."""
        return "".join([self.chars[i] for i in self.check_ids(ids)])

    def label(self, i):
        """Return the character."""
        return self.chars[i]

    def _unknown(self, part, at, position, lines, column):
        """Say that a character has no token, and which characters have one.

        Parameters
        ----------
        part : str
            Of a text.
        at : int
            Where it is in there.
        position, lines, column : int
            Of the text before the part: its characters, its line breaks, and the characters after
            the last of them.
        """
        before = part[:at].split("\n")
        position, lines = position + at, lines + len(before)
        column = len(before[-1]) + 1 + (column if len(before) == 1 else 0)
        place = f" (line {lines}, column {column})" if lines > 1 or "\n" in part else ""
        rest = self.vocab_size - MAX_SHOWN
        return (
            f"{described(part[at])} at position {position}, counted from 0{place}, is not in "
            f"the vocabulary, which holds {cli.plural(self.vocab_size, self.unit)}: "
            f"{quoted(self.chars[:MAX_SHOWN])}{f' and {rest} more' if rest > 0 else ''}; "
            f"{self._remedy(part, at)}"
        )

    def _remedy(self, text, position):
        """Say what to do about the character at `position`, which has no token."""
        if text[position] == "\r":
            return "convert the line ends, for example by `sed 's/\\r$//' old.txt > new.txt`"
        chars, starts = set(self.chars), range(max(0, position - CLUSTER + 1), position + 1)
        parts = {text[a:b] for a in starts for b in range(position + 1, a + CLUSTER + 1)}
        for part, form in itertools.product(
            sorted(parts, key=lambda part: (len(part), part)), FORMS
        ):
            other = unicodedata.normalize(form, part)
            if other != part and chars.issuperset(other):
                return f"it has {quoted(other)} for {quoted(part)}: {FORMS[form]} the text ({form})"
        return "remove it, or train on a text that has it"


def code_points(text):
    """Unicode code points of `text`: (len(text),) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
