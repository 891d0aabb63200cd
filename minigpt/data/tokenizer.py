"""A tokenizer as the rest of the program knows it: no other file takes a token for a character."""

import itertools

import numpy as np

from minigpt.errors import UserError


class Tokenizer:
    """What every tokenizer of one text can do.

    A subclass gives `kind`, `vocab_size`, `byte_lengths`, `encode`, `decode`, `label`, `to_json`
    and `from_json`; and `decoder`, where a character may be spread over several tokens.

    Attributes
    ----------
    kind : str
        Its name in KINDS and in the JSON of `to_json`.
    unit : str
        What its tokens are, in the plural, for messages.
    concatenates : bool
        Whether the ids of a text are those of its two halves, wherever it is cut.
    unseen_share : float
        Of the tokens of a validation part: so many may never come in training without a note.
    vocab_size : int
        Number of tokens; ids run from 0 to one less.
    byte_lengths : (vocab_size,) int64
        Bytes of UTF-8 that each token stands for; 0 for special tokens, which are no text.
    end_of_text : int or None
        The special token after which another text begins: sampling stops there.
    """

    kind = ""
    unit = "tokens"
    concatenates = False
    unseen_share = 0.0
    vocab_size: int
    byte_lengths: np.ndarray
    end_of_text = None

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
        """Encode a text that comes in parts, or several; this one puts each together first.

        Parameters
        ----------
        parts : iterable of str
            Of a text, cut anywhere. An empty one ends it, and another text begins.

        Returns
        -------
        parts : iterable of (N,) int32
            One after the other they are the ids of the texts; N is 0 only between two texts.
        """
        for is_text, text in itertools.groupby(parts, bool):
            if is_text:
                yield self.encode("".join(text))
            else:
                yield from (np.empty(0, np.int32) for _ in text)

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

    def prompt_notes(self, prompt):
        """Return what a user should know of a prompt, a text that is continued: a sentence each."""
        return []

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
