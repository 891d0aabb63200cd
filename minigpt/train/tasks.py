"""The tasks: what is read, how it is measured, and what is shown of it at the end.

text      a GPT goes on from a text
seq2seq   an encoder-decoder turns one text into another: pairs from a TSV file, or dates
"""

import hashlib

from minigpt.backend import to_device
from minigpt.data.batches import check_length, split
from minigpt.data.corpus import REFERENCE, load_text, reference_text
from minigpt.data.dates import date_pairs
from minigpt.data.pairs import (
    Pairs,
    PairTokenizer,
    all_pairs,
    check_lengths,
    digest,
    read_pairs,
    split_pairs,
)
from minigpt.data.tokenizers import CharTokenizer
from minigpt.sample.beam import search

MEASURED = 2000  # validation pairs that are answered at an evaluation
ANSWERED = 64  # of them side by side
SHOWN = 5  # answers at the end of a run
SAMPLE = 300  # characters of a text at the end of a run


class TextTask:
    """A text, nine tenths of it for training.

    Parameters
    ----------
    train : TrainConfig
    share_embedding : bool
        Without a meaning here.
    tokenizer : CharTokenizer, optional
        That of a run begun before; made from the text if left out.
    name : str, optional
        What a run begun before was trained on.

    Attributes
    ----------
    train, val : (N,) int32
    sizes : tuple of int
        Vocabulary sizes.
    sha256 : str
        Of what is learnt.
    """

    def __init__(self, train, share_embedding=False, tokenizer=None, name=None):
        if train.data is None and name == REFERENCE:  # even if there is a network now
            text, self.name = reference_text(), REFERENCE
        else:
            text, self.name = load_text(train.data)
        self.tokenizer = tokenizer or CharTokenizer.from_text(text)
        self.sizes = (self.tokenizer.vocab_size,)
        self.sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self.train, self.val = split(self.tokenizer.encode_array(text))
        self.description = f"{self.name}: {len(text):,} characters, {self.sizes[0]} different"
        self.sample_flags = [f"--max-new-tokens={SAMPLE}"]

    def check(self, config):
        """Raise a UserError if the text is too short for a model."""
        check_length(self.train, self.val, config.block_size)

    def move(self, xp):
        """Bring the ids to where batches are gathered. All have been made by the tokenizer, and so
        are in the vocabulary: a device would not tell.
        """
        self.train, self.val = (to_device(part, xp) for part in (self.train, self.val))

    def batch_description(self, train, config):
        """Say what a batch is."""
        return f"{train.batch_size} x {config.block_size} tokens"

    def measures(self, trainer):
        """Return what is measured beside the loss: nothing."""
        return {}


class PairTask:
    """Pairs from --data, or the built-in dates; parameters and attributes as those of TextTask.

    Attributes
    ----------
    train, val, measured : Pairs
        Of val, `measured` are the first ones.
    """

    def __init__(self, train, share_embedding=False, tokenizer=None, name=None):
        if train.data is None:
            parts, self.name = date_pairs(train.seed), f"dates, seed {train.seed}"
        else:
            parts, self.name = split_pairs(read_pairs(train.data)), train.data
        self.pairs = sum(parts, [])
        self.tokenizer = tokenizer or PairTokenizer.from_pairs(self.pairs, share_embedding)
        self.sizes = self.tokenizer.vocab_size, self.tokenizer.source.vocab_size
        self.sha256 = digest(self.pairs)
        parts = (*parts, parts[1][:MEASURED])
        self.train, self.val, self.measured = (Pairs(part, self.tokenizer) for part in parts)
        self.description = (
            f"{self.name}: {len(self.train):,} pairs, {len(self.val):,} more for validation, "
            f"{self.sizes[1]} characters in sources, {self.sizes[0] - 1} in targets"
        )
        shown = "\n".join(source for source, _ in parts[1][:SHOWN])
        self.sample_flags = [f"--prompt={shown}", "--verbose"]

    def check(self, config):
        """Raise a UserError if pairs are too long for a model."""
        check_lengths(self.pairs, config.block_size)

    def move(self, xp):
        """Leave the pairs on the host: batches are padded there, and brought to a device whole."""

    def batch_description(self, train, config):
        """Say what a batch is."""
        return f"{train.batch_size} pairs"

    def measures(self, trainer):
        """Return {"exact_match": share of `measured` that greedy search solves}."""

        def solved(batch):
            source, targets = batch
            found = search(source, trainer.params.tree, trainer.config)
            rows = zip(found, targets.tolist(), strict=True)
            return sum(best.ended and best.ids == t[: t.index(end)] for (best,), t in rows)

        end, batches = self.sizes[0] - 1, all_pairs(self.measured, None, ANSWERED)
        return {"exact_match": sum(trainer.workers.map(solved, batches)) / len(self.measured)}


TASKS = {"text": TextTask, "seq2seq": PairTask}
