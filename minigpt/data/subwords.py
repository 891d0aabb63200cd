"""Subword tokens: byte-level BPE, as GPT-2's, by the library `tokenizers`.

A text is first cut into words, a space in front of a word being a part of it, and runs of
punctuation, digits and white space. Each of these is a sequence of bytes, which are joined two at a
time: of all neighbours, those whose merge was learnt first. Training learns the merges: it counts
how often any two tokens are neighbours, joins the most frequent two everywhere to a new token, and
starts again.

Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", arXiv:1508.07909;
bytes in place of characters: Radford et al., "Language Models are Unsupervised Multitask Learners",
2019, section 2.2.

`python -m minigpt.data --tokenizer bpe` shows the merges of a text.
"""

import codecs
import functools
import json
import re

import numpy as np

from minigpt.cli.characters import described
from minigpt.data.bpe_files import BYTE_OF, Table, json_of, read_files, table_of
from minigpt.data.tokenizer import StreamDecoder, Tokenizer
from minigpt.errors import UserError

SMALLEST = 257  # tokens: the bytes and one merge
RARE = 2  # how often two tokens must be neighbours to be merged
PART = 1 << 16  # characters encoded at a time: the library takes 20 times the memory of a text
# Words end before white space, and no more than that is needed to tell: each side of this cut is
# cut into words as if the other one were not there.
SAFE_CUT = re.compile(r"(?s:.*)\S(?=[ \n])")


class BpeTokenizer(Tokenizer):
    """Tokens of one byte or several, a character being a part of one token or of several.

    The library is needed to train and to encode; without it, ids still become text.

    Parameters
    ----------
    table : Table

    Attributes
    ----------
    vocab, special : dict
        Ids of the ordinary and of the special tokens, see Table.
    merges : list of (str, str)
        In the order in which they were learnt, in the characters that stand for bytes.
    """

    kind = "bpe"
    unseen_share = 0.1  # GPT-2's table has 2 % of such tokens for the end of tiny Shakespeare

    def __init__(self, table):
        self.vocab, self.merges, self.special, end = table
        self.end_of_text = self.special.get(end)
        self._end = end
        self._bytes = [b""] * self.vocab_size
        for token, i in self.vocab.items():
            self._bytes[i] = bytes([BYTE_OF[char] for char in token])
        self.byte_lengths = np.array([*map(len, self._bytes)], np.int64)
        self._lacks = {*range(256)} - {raw[0] for raw in self._bytes if len(raw) == 1}
        for token, i in self.special.items():
            self._bytes[i] = token.encode("utf-8", "surrogatepass")

    @classmethod
    def train(cls, parts, vocab_size):
        """Learn the merges of a text, the same for the same text.

        Parameters
        ----------
        parts : iterable of str
            As in `encode_parts`.
        vocab_size : int
            Tokens, 257 or more; fewer come out if no two neighbours that are left come twice.

        Raises
        ------
        UserError
            If vocab_size is too small, or the library is not installed.
        """
        check_vocab_size(vocab_size)
        tokenizers = library()
        model = new_model({}, [])
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=RARE,
            show_progress=False,
            initial_alphabet=[*BYTE_OF],
        )
        model.train_from_iterator(separate(parts), trainer)
        return cls(table_of(json.loads(model.to_str()), "what the library has trained"))

    @classmethod
    def read(cls, path, where="--tokenizer"):
        """Read the tokenizer of a folder, or a tokenizer.json; see data/bpe_files.py.

        Raises
        ------
        UserError
            If there is none, or another kind; begins with `where`, which names the path.
        """
        return cls(read_files(path, where))

    @classmethod
    def from_json(cls, table):
        """Read back what `to_json` wrote, or raise a UserError."""
        where = "the table of a BPE tokenizer"
        try:
            fields = json.loads(table)
            found = table_of(fields["tokenizer"], where)
            end = fields["end_of_text"]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"not {where}: {str(table)[:60]!r}") from None
        return cls(found._replace(end_of_text=end))

    def to_json(self):
        """Return {"kind": "bpe", "tokenizer": as in tokenizer.json, "end_of_text": str or null}."""
        fields = {"kind": self.kind, "tokenizer": json_of(self._table), "end_of_text": self._end}
        return json.dumps(fields)

    def tokenizer_json(self):
        """Return the text of a Hugging Face tokenizer.json."""
        return json.dumps(json_of(self._table), ensure_ascii=False, indent=2)

    @property
    def _table(self):
        return Table(self.vocab, self.merges, self.special, self._end)

    @property
    def vocab_size(self):
        """Number of tokens, special ones included."""
        return len(self.vocab) + len(self.special)

    @functools.cached_property
    def _model(self):
        """The library's tokenizer. It knows no special tokens: what looks like one is text."""
        return new_model(self.vocab, self.merges)

    def encode(self, text):
        """Return the ids of a text: (N,) int32; what looks like a special token is text, too."""
        if len(text) <= PART:
            return self._encode(text, 0)
        starts = range(0, len(text), PART)
        parts = self.encode_parts(text[start : start + PART] for start in starts)
        return np.concatenate([np.empty(0, np.int32), *parts])

    def encode_parts(self, parts):
        """Iterate over the ids of a text that comes in parts, as Tokenizer's."""
        position = 0
        for text in separate(parts):
            yield self._encode(text, position)
            position += len(text)

    def _encode(self, text, position):
        """Return the ids of a text that begins at a position of a longer one: (N,) int32."""
        for i in range(len(text) if self._lacks or not is_text(text) else 0):
            self._check(text[i], position + i)
        ids = self._model.encode(text, add_special_tokens=False).ids if text else []
        return np.array(ids, np.int32)

    def _check(self, char, position):
        """Raise a UserError if a character cannot be encoded."""
        raw = char.encode("utf-8", "surrogatepass")
        if self._lacks.isdisjoint(raw) and is_text(char):
            return
        why = "one of its bytes has no token" if is_text(char) else "it is half of a character"
        raise UserError(
            f"{described(char)} at position {position}, counted from 0, has no token: {why}; "
            "remove it"
        )

    def decode(self, ids):
        """Return the text of `ids`, an iterable of integers; U+FFFD for bytes that are none."""
        return self._joined(ids).decode("utf-8", "replace")

    def _joined(self, ids):
        """Return the bytes that ids stand for, special tokens as they are written."""
        return b"".join([self._bytes[i] for i in self.check_ids(ids)])

    def decoder(self):
        """Return a new ByteDecoder."""
        return ByteDecoder(self._joined)

    def label(self, i):
        """Return the text of a token, bytes that are no whole character as escapes."""
        return self._bytes[i].decode("utf-8", "backslashreplace")

    def default_prompt(self):
        """Return the end of a text, if there is such a token, or else a new line: (N,) int32."""
        if self.end_of_text is None:
            return super().default_prompt()
        return np.array([self.end_of_text], np.int32)

    def prompt_notes(self, prompt):
        """Return a note on a space at the end of a prompt."""
        if not prompt.endswith(" "):
            return []
        return [
            "the prompt ends in a space, which is a part of the next word's token: without the "
            "space, the text that follows is better"
        ]


class ByteDecoder(StreamDecoder):
    """Shows a character with the last of its bytes.

    Parameters
    ----------
    joined : callable
        ids -> the bytes that they stand for.
    """

    def __init__(self, joined):
        self._joined = joined
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids):
        """Return the text that `ids` complete."""
        return self._decoder.decode(self._joined(ids))

    def flush(self):
        """Return U+FFFD for bytes that are waiting for the rest of their character, else ""."""
        return self._decoder.decode(b"", final=True)


def separate(parts):
    """Iterate over the same text in parts that are encoded as they are in the whole text.

    Parameters
    ----------
    parts : iterable of str
        Cut anywhere. After an empty one, another text begins.

    Yields
    ------
    part : str
        Empty where another text begins, and only there.
    """
    held = []
    for part in parts:
        found = SAFE_CUT.match(part)
        cut = found.end() if found else 0
        if (cut or not part) and (whole := "".join([*held, part[:cut]])):
            yield whole
        if not part:
            yield ""
        held = [part[cut:]] if cut or not part else [*held, part]
    if whole := "".join(held):
        yield whole


def is_text(text):
    """Tell whether a str can be written in UTF-8: it has no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_vocab_size(vocab_size):
    """Raise a UserError if so many tokens are too few for BPE."""
    if vocab_size < SMALLEST:
        raise UserError(
            f"vocab_size is {vocab_size}, but bpe needs at least {SMALLEST}: a token for each of "
            "the 256 bytes, and one that is merged of two"
        )


def library():
    """Return the module `tokenizers`, or raise a UserError."""
    try:
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise UserError(
            f"BPE needs the library tokenizers ({error}): pip install 'minigpt[bpe]'"
        ) from None
    return tokenizers


def new_model(vocab, merges):
    """Return a tokenizer of the library, which cuts a text into words as GPT-2's does."""
    tokenizers = library()
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model
