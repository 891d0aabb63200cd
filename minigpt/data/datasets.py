"""Data sets: a text, or pairs of texts, each with its tokenizer and its split.

Both have the same attributes:

    name, description    what it is, in words
    tokenizer
    sizes                {"vocab_size": ...}, and of pairs {"source_vocab_size": ...} too
    sha256               of the whole data, as text
    train, val           the two parts of the split
"""

import hashlib

from minigpt.backend import to_device
from minigpt.data.batches import check_length, split
from minigpt.data.corpus import REFERENCE, load_text, reference_text
from minigpt.data.dates import date_pairs
from minigpt.data.pairs import Pairs, check_lengths, digest, read_pairs, split_pairs
from minigpt.data.tokenizers import CharTokenizer, PairTokenizer


class TextData:
    """A text as token ids: the first nine tenths are for training.

    Parameters
    ----------
    path : str, optional
        A text file; tiny Shakespeare if left out.
    tokenizer : Tokenizer, optional
        That of a run that is resumed; made from the text if left out.
    name : str, optional
        What a run that is resumed was trained on.

    Attributes
    ----------
    train, val : (N,) int32
    """

    def __init__(self, path=None, tokenizer=None, name=None):
        if path is None and name == REFERENCE:  # even if there is a network now
            text, self.name = reference_text(), REFERENCE
        else:
            text, self.name = load_text(path)
        self.tokenizer = tokenizer or CharTokenizer.from_text(text)
        self.sizes = {"vocab_size": self.tokenizer.vocab_size}
        self.sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        ids = self.tokenizer.encode(text)
        self.train, self.val = split(ids)
        unit = self.tokenizer.unit
        tokens = "" if unit == "characters" else f"{len(ids):,} {unit}, "
        self.description = (
            f"{self.name}: {len(text):,} characters, {tokens}{self.tokenizer.vocab_size} different"
        )

    def check(self, block_size):
        """Raise a UserError if the text is too short for a model of this block size."""
        check_length(self.train, self.val, block_size)

    def move(self, xp):
        """Move the ids to where batches are gathered.

        All ids are in the vocabulary, since the tokenizer made them: a GPU does not check them.
        """
        self.train, self.val = (to_device(part, xp) for part in (self.train, self.val))


class PairData:
    """Pairs of a source and a target from a TSV file, or the built-in dates.

    Parameters
    ----------
    path : str, optional
        A TSV file; the dates if left out.
    seed : int
        Of the dates.
    shared : bool
        Whether source and target have one vocabulary.
    tokenizer : PairTokenizer, optional
        That of a run that is resumed; made from the pairs if left out.

    Attributes
    ----------
    pairs : list of (source, target)
    train, val : Pairs
    val_pairs : list of (source, target)
    """

    def __init__(self, path=None, seed=0, shared=False, tokenizer=None):
        if path is None:
            (train, val), self.name = date_pairs(seed), f"dates, seed {seed}"
        else:
            (train, val), self.name = split_pairs(read_pairs(path)), path
        self.pairs, self.val_pairs = train + val, val
        self.tokenizer = tokenizer or PairTokenizer.from_pairs(self.pairs, shared)
        self.sizes = {
            "vocab_size": self.tokenizer.vocab_size,
            "source_vocab_size": self.tokenizer.source.vocab_size,
        }
        self.sha256 = digest(self.pairs)
        self.train, self.val = (Pairs(part, self.tokenizer) for part in (train, val))
        source, target = self.tokenizer
        self.description = (
            f"{self.name}: {len(self.train):,} pairs, {len(self.val):,} more for validation, "
            f"{source.vocab_size} different {source.unit} in sources, "
            f"{target.vocab_size} in targets"
        )

    def check(self, block_size):
        """Raise a UserError if pairs are too long for a model of this block size."""
        check_lengths(block_size, self.train, self.val, unit=self.tokenizer.source.unit)

    def move(self, xp):
        """Leave the pairs on the host: batches are padded there, and move to a GPU whole."""
