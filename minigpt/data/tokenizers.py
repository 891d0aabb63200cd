"""Tokenizers: from text to token ids and back, and the table that says which is which.

Tokenizer is what the rest of the program knows of them: no other file takes a token for a
character. A new kind is a subclass with an entry in KINDS.
"""

import itertools
import json
import unicodedata
from typing import NamedTuple

import numpy as np

from minigpt import cli
from minigpt.cli.characters import described, quoted
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


class Tokenizer:
    """What every tokenizer of one text can do.

    A subclass gives `kind`, `vocab_size`, `encode`, `decode`, `label`, `to_json` and `from_json`;
    and `decoder`, where a character may be spread over several tokens.

    Attributes
    ----------
    kind : str
        Its name in KINDS and in the JSON of `to_json`.
    unit : str
        What its tokens are, in the plural, for messages.
    vocab_size : int
        Number of tokens; ids run from 0 to one less.
    """

    kind = ""
    unit = "tokens"
    vocab_size: int

    def encode(self, text):
        """Return the ids of a text: (N,) int32, a NumPy array.

        Raises
        ------
        UserError
            If a part of the text has no token: names the first one and its place.
        """
        raise NotImplementedError

    def decode(self, ids):
        """Return the text of `ids`, an iterable of integers.

        Raises
        ------
        UserError
            If an id is not in the vocabulary: names the first one and its place.
        """
        raise NotImplementedError

    def label(self, i):
        """Return the text that stands for token `i` in tables and pictures; see `visible`."""
        raise NotImplementedError

    def to_json(self):
        """Return the table as text, for a checkpoint: a JSON object with the key "kind"."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, table):
        """Read back what `to_json` wrote, or raise a UserError."""
        raise NotImplementedError

    def decoder(self):
        """Return a new StreamDecoder, for ids that come one after the other."""
        return StreamDecoder(self)

    def encode_parts(self, parts):
        """Encode one text that comes in parts; this one puts it together first.

        Parameters
        ----------
        parts : iterable of str

        Returns
        -------
        parts : iterable of (N,) int32
            One after the other they are the ids of the text.
        """
        return [self.encode("".join(parts))]

    def encode_each(self, texts):
        """Encode many texts at once.

        Returns
        -------
        ids : (M,) int32
            Of all texts, one after the other.
        lengths : (len(texts),) int
            Tokens of each text.
        """
        rows = [self.encode(text) for text in texts]
        return np.concatenate([np.empty(0, np.int32), *rows]), np.array([*map(len, rows)], int)

    def default_prompt(self):
        """Return the ids of a new line or, where it has no token, the first id: (N,) int32."""
        try:
            return self.encode("\n")
        except UserError:
            return np.zeros(1, np.int32)

    def fits(self, config):
        """Tell whether a model of this config has these tokens; it may have more, as padding."""
        return self.vocab_size <= config.vocab_size and not hasattr(config, "source_vocab_size")

    def check_ids(self, ids):
        """Return `ids` as a list; a UserError names the first one that is not in the vocabulary."""
        ids = list(ids)
        for position, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"token id {i} at position {position}, counted from 0, is out of range: "
                    f"the {self.vocab_size} tokens have ids 0 to {self.vocab_size - 1}"
                )
        return ids


class StreamDecoder:
    """Text of tokens that come one after the other. This one is for tokens of whole characters.

    The texts of all `push` and of `flush`, one after the other, are the text of all ids.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def push(self, ids):
        """Return the text that `ids`, an iterable, complete: never a part of a character."""
        return self.tokenizer.decode(ids)

    def flush(self):
        """Return what stands for a character that has not been completed; "" if there is none."""
        return ""


class CharTokenizer(Tokenizer):
    """One token per character; the ids number the characters in sorted order.

    Parameters
    ----------
    chars : str
        The vocabulary, no character twice: `chars[i]` is the token with id i.
    """

    kind = "char"
    unit = "characters"

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


class PairTokenizer(NamedTuple):
    """The two tokenizers of an encoder-decoder; where they are one, both are that one.

    The last id of the target, END, stands for no text.
    """

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def from_pairs(cls, pairs, shared=False):
        """Make the vocabularies of a list of (source, target); shared is one for both."""
        texts = ["".join(side) for side in zip(*pairs, strict=True)]
        if shared:
            texts = ["".join(texts)] * 2
        return cls(*map(CharTokenizer.from_text, texts))

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
            if fields.keys() == {"kind", "source", "target"} and fields["kind"] == "pair":
                sides = (json.dumps(fields[side]) for side in cls._fields)
                kinds = {name: kind for name, kind in KINDS.items() if kind is not cls}
                return cls(*(tokenizer_from_json(side, kinds) for side in sides))
        except (ValueError, TypeError, AttributeError):
            pass  # the same message for all that is wrong with it
        raise UserError(
            f"not the tables of a pair of tokenizers: {str(table)[:60]!r}; "
            'it should be {"kind": "pair", "source": {...}, "target": {...}}'
        )

    def to_json(self):
        """Return the tables as text, for a checkpoint."""
        tables = (json.loads(side.to_json()) for side in self)
        return json.dumps({"kind": "pair", **dict(zip(self._fields, tables, strict=True))})

    @property
    def vocab_size(self):
        """Number of tokens of the target, END included."""
        return self.target.vocab_size + 1

    @property
    def end(self):
        """The id END."""
        return self.target.vocab_size

    def fits(self, config):
        """Tell whether a model of this config has exactly these tokens."""
        return (self.vocab_size, self.source.vocab_size) == (
            config.vocab_size,
            getattr(config, "source_vocab_size", None),
        )


KINDS = {"char": CharTokenizer, "pair": PairTokenizer}


def tokenizer_from_json(table, kinds=None):
    """Return the tokenizer that some `to_json` wrote.

    Parameters
    ----------
    table : str
    kinds : dict of classes, optional
        KINDS if left out.

    Raises
    ------
    UserError
        If `table` is anything else.
    """
    try:
        kind = json.loads(table)["kind"]
    except (ValueError, TypeError, KeyError):
        kind = "char"  # its error shows the table
    return cli.choose(kind, kinds or KINDS, "the kind of tokenizer").from_json(table)


def code_points(text):
    """Unicode code points of `text`: (len(text),) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
