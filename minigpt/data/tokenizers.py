"""The tokenizers by name: from text to token ids and back, and the table that says which is which.

A new kind is a subclass of Tokenizer with an entry in KINDS.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt import cli
from minigpt.data import hub
from minigpt.data.bpe_files import TOKENIZER, characters_of, read_json
from minigpt.data.characters import CharTokenizer
from minigpt.data.subwords import BpeTokenizer
from minigpt.data.tokenizer import Tokenizer
from minigpt.errors import UserError


class PairTokenizer(NamedTuple):
    """The two tokenizers of an encoder-decoder; where they are one, both are that one.

    The last id of the target, END, stands for no text.
    """

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def from_pairs(cls, pairs, shared=False, kind="char", vocab_size=None):
        """Make the tokenizers of a list of (source, target); shared is one for both.

        The other parameters are those of `new_tokenizer`.
        """
        sides = [*zip(*pairs, strict=True)]
        if shared:
            sides = [sum(sides, ())]
        made = [
            new_tokenizer(kind, (part for text in side for part in (text, "")), vocab_size)
            for side in sides
        ]
        return cls(made[0], made[-1])

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
    def byte_lengths(self):
        """Bytes of UTF-8 of each token of the target, 0 for END: (vocab_size,) int64."""
        return np.append(self.target.byte_lengths, 0)

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


BPE_VOCAB_SIZE = 1024  # tokens of a table that is trained, unless asked otherwise
KINDS = {"char": CharTokenizer, "bpe": BpeTokenizer, "pair": PairTokenizer}


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


def new_tokenizer(kind, parts, vocab_size=None):
    """Return the tokenizer that --tokenizer and --vocab-size ask for.

    Parameters
    ----------
    kind : str
        "char": the characters of the text; "bpe": trained on it; else a path, see read_tokenizer,
        or a name on the hub.
    parts : iterable of str
        The text, as in `Tokenizer.encode_parts`.
    vocab_size : int, optional
        Of "bpe".

    Raises
    ------
    UserError
        If there is no such tokenizer, or it cannot be made.
    """
    if kind == "char":
        return CharTokenizer.from_text("".join(parts))
    if kind == "bpe":
        return BpeTokenizer.train(parts, vocab_size or BPE_VOCAB_SIZE)
    path = Path(kind).expanduser()
    if path.exists():
        return read_tokenizer(path)
    name = hub.repository(kind)
    if name is None:
        raise UserError(
            f"--tokenizer {kind} is neither char nor bpe, no folder or {TOKENIZER} has that name, "
            "and names on the hub are owner/model"
        )
    return read_tokenizer(hub.fetch(name, hub.OF_TOKENIZERS, "--tokenizer"))


def few_tokens_note(tokenizer, asked):
    """Return a note, in a list, if training has given a tokenizer fewer tokens than asked for."""
    if tokenizer.vocab_size >= asked:
        return []
    return [
        f"BPE has found {tokenizer.vocab_size:,} tokens, not the {asked:,} of --vocab-size: no "
        "other two neighbours come twice in what it is trained on"
    ]


def read_tokenizer(path, where="--tokenizer"):
    """Return the tokenizer of a folder or of a tokenizer.json: BPE, or characters as exported.

    Raises
    ------
    UserError
        If there is none, or another kind; begins with `where`, which names the path.
    """
    file = Path(path) / TOKENIZER if Path(path).is_dir() else Path(path)
    if file.exists():
        chars = characters_of(read_json(file, where))
        if chars is not None:
            return CharTokenizer(chars)
    return BpeTokenizer.read(path, where)
