"""Data sets: a text, or pairs of texts, each with its tokenizer and its split.

Both have the same attributes:

    name, description    what it is, in words
    tokenizer
    sizes                {"vocab_size": ...}; of pairs also "source_vocab_size" and "block_size",
                         what they need at least (0: that is left to the user)
    sha256               of the whole data, as text
    train, val           the two parts of the split
    split                how it is made: a resumed run keeps its own
    part                 "": they are all there is, unlike those of excerpts.py
    notes                what is odd about the data, a sentence each
"""

import itertools

from minigpt.backend import to_device, to_host
from minigpt.cli import first_of
from minigpt.cli.characters import visible
from minigpt.data.batches import check_length, count_of, only_in
from minigpt.data.corpus import builtin_source
from minigpt.data.dates import date_pairs
from minigpt.data.pair_files import read_pairs
from minigpt.data.pairs import SPLITS, Pairs, check_lengths, digest, needed_length, notes_on
from minigpt.data.sources import describe, empty_note, find_sources, hold, read_parts
from minigpt.data.survey import survey
from minigpt.data.token_files import cut_at, encode_text
from minigpt.data.tokenizers import (
    BPE_VOCAB_SIZE,
    PairTokenizer,
    few_tokens_note,
    new_tokenizer,
)

MAX_SHOWN = 20  # tokens in a note


def split_place(length):
    """Return how many of the characters of a text are for training: the first nine tenths."""
    return int(0.9 * length)


class TextData:
    """A text as token ids: those of the first nine tenths of its characters are for training.

    Parameters
    ----------
    path : str, optional
        What --data names, see `find_sources`; tiny Shakespeare if left out.
    tokenizer : Tokenizer, optional
        That of a run that is resumed; made from the text if left out.
    name : str, optional
        What a run that is resumed was trained on.
    kind, vocab_size : str, int
        Of a tokenizer that is to be made: see `new_tokenizer`. BPE is trained on the first nine
        tenths alone.

    Attributes
    ----------
    train, val : (N,) uint8, uint16 or int32, by the size of the vocabulary
        Not to be written to.
    sources : list of Source
    size, length : int
        Of the text, in bytes and in characters.
    split_at : int
        Characters of the part for training.
    """

    split, part = "position", ""

    def __init__(self, path=None, tokenizer=None, name=None, kind="char", vocab_size=None):
        sources = [builtin_source(name)] if path is None else hold(find_sources(path))
        self.name, found = describe(sources), survey(sources)
        self.split_at = split_place(found.length)
        few = []
        if tokenizer is None:
            tokenizer = self.new_tokenizer(found.chars, sources, kind, vocab_size)
            few = few_tokens_note(tokenizer, vocab_size or BPE_VOCAB_SIZE) * (kind == "bpe")
        self.tokenizer = tokenizer
        self.sizes = {"vocab_size": self.tokenizer.vocab_size}
        self.sha256, self.sources = found.sha256, sources
        self.size, self.length = found.size, found.length
        ids, border, notes = encode_text(sources, found, tokenizer, self.split_at)
        self.train, self.val = ids[:border], ids[border:]
        part = "the validation part", " (the last tenth)"
        unseen = unseen_note(self.train, self.val, self.tokenizer, *part)
        self.notes = [*empty_note(sources), *found.notes, *few, *unseen, *notes]
        unit = self.tokenizer.unit
        tokens = "" if unit == "characters" else f"{len(ids):,} {unit}, "
        self.description = (
            f"{self.name}: {found.length:,} characters, {tokens}{self.tokenizer.vocab_size} "
            "different"
        )

    def new_tokenizer(self, chars, sources, kind, vocab_size):
        """Return a tokenizer for the text: of all its characters, or trained on the first part."""
        if kind == "char":
            return new_tokenizer(kind, [chars])
        texts = cut_at((text for _, text in read_parts(sources)), self.split_at)
        return new_tokenizer(kind, itertools.takewhile(bool, texts), vocab_size)

    def check(self, block_size):
        """Raise a UserError if the text is too short for a model of this block size."""
        check_length(self.train, self.val, block_size)

    def move(self, xp):
        """Move the ids, wherever they are, to where batches are gathered.

        All ids are in the vocabulary, since the tokenizer made them: a GPU does not check them.
        """
        self.train, self.val = (to_device(to_host(part), xp) for part in (self.train, self.val))


def unseen_note(train, val, tokenizer, part, which=""):
    """Return a note, in a list, if the validation part has tokens that training never sees.

    Parameters
    ----------
    train, val : (N,) int
        Ids of the tokenizer, and the one after its last.
    tokenizer : Tokenizer
    part, which : str
        What the validation part is called, and which it is.
    """
    unseen = only_in(val, train, tokenizer.vocab_size + 1)
    if not len(unseen):
        return []
    if tokenizer.unseen_share:
        share = count_of(unseen, val) / len(val)
        if share <= tokenizer.unseen_share:
            return []
        return [
            f"{share:.1%} of the {tokenizer.unit} in {part} are never seen in training: the table "
            "is of other texts, or the text changes on its way"
        ]
    shown = first_of([visible(tokenizer.label(i)) for i in unseen.tolist()], MAX_SHOWN, " ")
    return [
        f"{len(unseen)} of {tokenizer.vocab_size} different {tokenizer.unit} occur in {part} "
        f"only{which}, so training never sees them: {shown}"
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
    kind, vocab_size : str, int
        As of TextData, the size being that of each table; BPE is trained on the pairs for training.

    Attributes
    ----------
    pairs : list of (source, target)
    train, val : Pairs
    val_pairs : list of (source, target)
    fixed : bool
        Whether there is a model already, that of a run that is resumed.
    """

    part = ""

    def __init__(
        self,
        path=None,
        seed=0,
        shared=False,
        tokenizer=None,
        split="source",
        kind="char",
        vocab_size=None,
    ):
        self.split, self.notes, self.fixed = split, [], tokenizer is not None
        if path is None:
            (train, val), self.name = date_pairs(seed), f"dates, seed {seed}"
        else:
            header = split != "position"  # with that split, a header counts as a pair
            pairs, self.notes, self.name = read_pairs(path, header)
            train, val = SPLITS[split](pairs)
            self.notes += notes_on(train, val)
        self.pairs, self.val_pairs = train + val, val
        if tokenizer is None:
            known = self.pairs if kind == "char" else train
            tokenizer = PairTokenizer.from_pairs(known, shared, kind, vocab_size)
            if kind == "bpe":
                asked = vocab_size or BPE_VOCAB_SIZE
                notes = [note for side in {*tokenizer} for note in few_tokens_note(side, asked)]
                self.notes += notes
        self.tokenizer = tokenizer
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
            for note in unseen_note(train.ids, val.ids, tokenizer, f"{name} of the validation part")
        ]

    def check(self, block_size):
        """Raise a UserError if pairs are too long for a model of this block size."""
        unit = self.tokenizer.source.unit
        check_lengths(block_size, self.train, self.val, unit=unit, fixed=self.fixed)

    def move(self, xp):
        """Leave the pairs on the host: batches are padded there, and move to a GPU whole."""
