"""Tokenizers: from text to token ids and back, and the table that says which is which."""

import json
import unicodedata
from typing import NamedTuple

import numpy as np

from minigpt.errors import UserError

SHOWN = 100  # characters of a vocabulary that an error message lists


class CharTokenizer:
    """One token per character; the ids number the characters in sorted order.

    Parameters
    ----------
    chars : str
        The vocabulary, no character twice: `chars[i]` is the token with id i.
    """

    def __init__(self, chars):
        self.chars = chars
        codes = _code_points(chars)
        # Indexed by code point, -1 where there is no token; the last entry is for all beyond.
        self._ids = np.full(codes.max(initial=0) + 2, -1, np.int32)
        self._ids[codes] = np.arange(len(chars))

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
        """Number of tokens; ids run from 0 to one less."""
        return len(self.chars)

    def fits(self, config):
        """Tell whether a model of this config has these tokens; it may have more, as padding."""
        return self.vocab_size <= config.vocab_size and not hasattr(config, "source_vocab_size")

    def encode(self, text):
        """Return the ids of `text` as a list of int; see `encode_array`."""
        return self.encode_array(text).tolist()

    def encode_array(self, text):
        """Return the ids of `text` as an array.

        Returns
        -------
        ids : (len(text),) int32, a NumPy array

        Raises
        ------
        UserError
            If a character is not in the vocabulary: names the first one and its place.
        """
        ids = self._ids.take(_code_points(text), mode="clip")
        if ids.min(initial=0) < 0:
            raise UserError(self._unknown(text, int(ids.argmin())))
        return ids

    def decode(self, ids):
        """Return the text of `ids`, an iterable of integers.

        Raises
        ------
        UserError
            If an id is not in the vocabulary: names the first one and its place.
        """
        ids = list(ids)
        for position, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"token id {i} at position {position}, counted from 0, is out of range: "
                    f"the {self.vocab_size} tokens have ids 0 to {self.vocab_size - 1}"
                )
        return "".join(self.chars[i] for i in ids)

    def _unknown(self, text, position):
        """Say that the character at `position` has no token, and which characters have one."""
        lines = text[:position].split("\n")
        place = f" (line {len(lines)}, column {len(lines[-1]) + 1})" if "\n" in text else ""
        rest = self.vocab_size - SHOWN
        return (
            f"{text[position]!r} at position {position}, counted from 0{place}, is not in the "
            f"vocabulary, which holds {self.vocab_size} characters: {self.chars[:SHOWN]!r}"
            f"{f' and {rest} more' if rest > 0 else ''}; "
            "leave it out, or train on a text that has it"
        )


class PairTokenizer(NamedTuple):
    """The two vocabularies of an encoder-decoder; where they are one, both are that one.

    The last id of the target, END, stands for no character.
    """

    source: CharTokenizer
    target: CharTokenizer

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
                return cls(*map(CharTokenizer.from_json, sides))
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

    def fits(self, config):
        """Tell whether a model of this config has exactly these tokens."""
        return (self.vocab_size, self.source.vocab_size) == (
            config.vocab_size,
            getattr(config, "source_vocab_size", None),
        )


KINDS = {"char": CharTokenizer, "pair": PairTokenizer}


def tokenizer_from_json(table):
    """Return the tokenizer that some `to_json` wrote.

    Raises
    ------
    UserError
        If `table` is anything else.
    """
    try:
        kind = json.loads(table)["kind"]
        cls = KINDS[kind]
    except (ValueError, TypeError, KeyError):
        cls = CharTokenizer
    return cls.from_json(table)


def _code_points(text):
    """Unicode code points of `text`: (len(text),) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def visible(char):
    r"""Return `char` in a form that can be seen and takes known room: a tab is \t, a space ' '."""
    if char == " ":
        return "' '"
    combines = unicodedata.category(char).startswith("M")  # it would change the one before it
    return char if char.isprintable() and not combines else ascii(char)[1:-1]


def token_table(tokens, columns=12):
    """Return the `id token` pairs as a grid of text, filled row by row.

    Parameters
    ----------
    tokens : sequence of str
        Characters, in the order of their ids.
    columns : int
    """
    digits = len(str(len(tokens) - 1))
    cells = [f"{i:{digits}} {visible(token)}" for i, token in enumerate(tokens)]
    widths = [max(map(_width, cells[column::columns])) for column in range(len(cells[:columns]))]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return "\n".join("  ".join(map(_pad, row, widths)).rstrip() for row in rows)


def _pad(text, width):
    return text + " " * (width - _width(text))


def _width(text):
    """Columns that `text` takes in a terminal: Chinese, Japanese and Korean take two each."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
