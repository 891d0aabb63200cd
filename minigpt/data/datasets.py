"""Data sets: a text, or pairs of texts, each with its tokenizer and its split.

Both have the same attributes:

    name, description    what it is, in words
    tokenizer
    sizes                {"vocab_size": ...}; of pairs also "source_vocab_size" and "block_size",
                         what they need at least (0: that is left to the user)
    sha256               of the whole data, as text
    train, val           the two parts of the split
    split                how it is made: a resumed run keeps its own
    notes                what is odd about the data, a sentence each
"""

from minigpt.backend import to_device
from minigpt.cli import first_of
from minigpt.cli.characters import visible
from minigpt.data.batches import check_length, only_in, split
from minigpt.data.characters import CharTokenizer
from minigpt.data.corpus import builtin_source
from minigpt.data.dates import date_pairs
from minigpt.data.pair_files import read_pairs
from minigpt.data.pairs import SPLITS, Pairs, check_lengths, digest, needed_length, notes_on
from minigpt.data.sources import describe, empty_note, find_sources, hold
from minigpt.data.survey import survey
from minigpt.data.token_files import encode_text
from minigpt.data.tokenizers import PairTokenizer

MAX_SHOWN = 20  # tokens in a note


class TextData:
    """A text as token ids: the first nine tenths are for training.

    Parameters
    ----------
    path : str, optional
        What --data names, see `find_sources`; tiny Shakespeare if left out.
    tokenizer : Tokenizer, optional
        That of a run that is resumed; made from the text if left out.
    name : str, optional
        What a run that is resumed was trained on.

    Attributes
    ----------
    train, val : (N,) uint8, uint16 or int32, by the size of the vocabulary
        Not to be written to.
    sources : list of Source
    size, length : int
        Of the text, in bytes and in characters.
    """

    split = "position"

    def __init__(self, path=None, tokenizer=None, name=None):
        sources = [builtin_source(name)] if path is None else hold(find_sources(path))
        self.name, found = describe(sources), survey(sources)
        self.tokenizer = tokenizer or CharTokenizer.from_text(found.chars)
        self.sizes = {"vocab_size": self.tokenizer.vocab_size}
        self.sha256, self.sources = found.sha256, sources
        self.size, self.length = found.size, found.length
        ids, notes = encode_text(sources, found, self.tokenizer)
        self.train, self.val = split(ids)
        where = "the validation part only (the last tenth)"
        unseen = unseen_note(self.train, self.val, self.tokenizer, where)
        self.notes = [*empty_note(sources), *found.notes, *unseen, *notes]
        unit = self.tokenizer.unit
        tokens = "" if unit == "characters" else f"{len(ids):,} {unit}, "
        self.description = (
            f"{self.name}: {found.length:,} characters, {tokens}{self.tokenizer.vocab_size} "
            "different"
        )

    def check(self, block_size):
        """Raise a UserError if the text is too short for a model of this block size."""
        check_length(self.train, self.val, block_size)

    def move(self, xp):
        """Move the ids to where batches are gathered.

        All ids are in the vocabulary, since the tokenizer made them: a GPU does not check them.
        """
        self.train, self.val = (to_device(part, xp) for part in (self.train, self.val))


def unseen_note(train, val, tokenizer, where):
    """Return a note, in a list, if the validation part has tokens that training never sees.

    Parameters
    ----------
    train, val : (N,) int
        Ids of the tokenizer, and the one after its last.
    tokenizer : Tokenizer
    where : str
        What the validation part is called.
    """
    unseen = only_in(val, train, tokenizer.vocab_size + 1)
    if not len(unseen):
        return []
    shown = first_of([visible(tokenizer.label(i)) for i in unseen.tolist()], MAX_SHOWN, " ")
    return [
        f"{len(unseen)} of {tokenizer.vocab_size} different {tokenizer.unit} occur in {where}, so "
        f"training never sees them: {shown}"
    ]


class PairData:
    """Pairs of a source and a target from files, or the built-in dates.

    Parameters
    ----------
    path : str, optional
        As in pair_files.read_pairs; the dates if left out.
    seed : int
        Of the dates.
    shared : bool
        Whether source and target have one vocabulary.
    tokenizer : PairTokenizer, optional
        That of a run that is resumed; made from the pairs if left out.
    split : str
        Which pairs are for validation: a key of pairs.SPLITS. The dates have their own split.

    Attributes
    ----------
    pairs : list of (source, target)
    train, val : Pairs
    val_pairs : list of (source, target)
    fixed : bool
        Whether there is a model already, that of a run that is resumed.
    """

    def __init__(self, path=None, seed=0, shared=False, tokenizer=None, split="source"):
        self.split, self.notes, self.fixed = split, [], tokenizer is not None
        if path is None:
            (train, val), self.name = date_pairs(seed), f"dates, seed {seed}"
        else:
            header = split != "position"  # with that split, a header counts as a pair
            pairs, self.notes, self.name = read_pairs(path, header)
            train, val = SPLITS[split](pairs)
            self.notes += notes_on(train, val)
        self.pairs, self.val_pairs = train + val, val
        self.tokenizer = tokenizer or PairTokenizer.from_pairs(self.pairs, shared)
        self.train, self.val = (Pairs(part, self.tokenizer) for part in (train, val))
        source, target = self.tokenizer
        self.notes += self.unseen()
        self.sizes = {
            "vocab_size": self.tokenizer.vocab_size,
            "source_vocab_size": source.vocab_size,
            "block_size": needed_length(self.train, self.val),
        }
        self.sha256 = digest(self.pairs)
        self.description = (
            f"{self.name}: {len(self.train):,} pairs, {len(self.val):,} more for validation; "
            f"sources are written with {source.vocab_size} different {source.unit}, targets with "
            f"{target.vocab_size}"
        )

    def unseen(self):
        """Return notes on tokens that training never sees."""
        train, val = self.train, self.val
        sides = (
            (train.source, val.source, self.tokenizer.source, "sources"),
            (train.target, val.target, self.tokenizer.target, "targets"),
        )
        return [
            note
            for train, val, tokenizer, name in sides
            for note in unseen_note(
                train.ids, val.ids, tokenizer, f"{name} of the validation part only"
            )
        ]

    def check(self, block_size):
        """Raise a UserError if pairs are too long for a model of this block size."""
        unit = self.tokenizer.source.unit
        check_lengths(block_size, self.train, self.val, unit=unit, fixed=self.fixed)

    def move(self, xp):
        """Leave the pairs on the host: batches are padded there, and move to a GPU whole."""
