"""Pairs of texts, source and target: their split, and batches of their ids."""

import hashlib
from typing import NamedTuple

import numpy as np

from minigpt.cli import plural
from minigpt.errors import UserError

LONG, TOO_LONG = 256, 1024  # tokens: up to which a pair is never, or may be, worth its cost
BUCKET = 8  # tokens: sources in a batch differ in length by less, and so do targets


def padded(rows):
    """Return ids (B, T) int32 of rows of ids, with -1 after the shorter ones."""
    ids = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for into, row in zip(ids, rows, strict=True):
        into[: len(row)] = row
    return ids


class Sequences(NamedTuple):
    """Many sequences of ids, one after the other.

    Attributes
    ----------
    ids : (M,) int32
    starts, lengths : (N,) int
        Where each sequence begins in `ids`, and how many ids it has.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, texts, tokenizer, end=None):
        """Encode texts, each with the id `end` after it if there is one."""
        ids, lengths = tokenizer.encode_each(texts)
        if end is not None:
            ids, lengths = np.insert(ids, lengths.cumsum(), end), lengths + 1
        return cls(ids, lengths.cumsum() - lengths, lengths)

    def rows(self, which):
        """Return the sequences `which` (B,), one a row, padded with -1 to the longest of them."""
        lengths = self.lengths[which, None]
        t = np.arange(lengths.max())
        ids = self.ids.take(self.starts[which, None] + t, mode="clip")
        return np.where(t < lengths, ids, np.int32(-1))


class Pairs:
    """Encoded pairs, and batches of them in which lengths are alike.

    Parameters
    ----------
    pairs : list of (source, target)
    tokenizer : PairTokenizer
    """

    def __init__(self, pairs, tokenizer):
        sources, targets = zip(*pairs, strict=True)
        self.source = Sequences.of(sources, tokenizer.source)
        self.target = Sequences.of(targets, tokenizer.target, tokenizer.end)
        buckets = [-(-x.lengths // BUCKET) for x in (self.source, self.target)]
        bucket = buckets[0] * (buckets[1].max() + 1) + buckets[1]
        self.order = np.argsort(bucket, kind="stable")
        self.bucket = bucket[self.order]

    def __len__(self):
        return len(self.order)

    @property
    def lengths(self):
        """Return the tokens that a model needs for each pair: (N,) int, of its longer side."""
        return np.maximum(self.source.lengths, self.target.lengths)

    def rows(self, which):
        """Return (source, targets) of the pairs `which`: (B, Ts), (B, T) int32, -1 is padding."""
        return self.source.rows(which), self.target.rows(which)


def random_pairs(pairs, seed, number, batch_size):
    """Draw the batch of a training step, as batches.random_batch: a function of its arguments.

    The bucket is that of a pair drawn from all, and the batch is drawn from the bucket: every
    pair comes as often as any other.

    Parameters
    ----------
    pairs : Pairs
    seed, number, batch_size : int, not negative

    Returns
    -------
    source, targets : (batch_size, Ts), (batch_size, T) int32
    """
    bits = np.random.Philox(key=seed, counter=number << 64).random_raw(batch_size + 1)
    bucket = pairs.bucket[bits[0] % np.uint64(len(pairs))]
    first, last = (np.searchsorted(pairs.bucket, bucket, side) for side in ("left", "right"))
    return pairs.rows(pairs.order[first + (bits[1:] % np.uint64(last - first)).astype(np.int64)])


def eval_batches(pairs, batch_size, which=None):
    """Iterate over batches (source, targets) of all pairs, short ones first; see random_pairs.

    Parameters
    ----------
    pairs : Pairs
    batch_size : int
    which : (k,) int, optional
        Places in this order, ascending, if not all are wanted.
    """
    order = pairs.order if which is None else pairs.order[which]
    for start in range(0, len(order), batch_size):
        yield pairs.rows(order[start : start + batch_size])


def count_targets(targets):
    """Return how many targets of a batch, still on the host, are not padding."""
    return int((targets >= 0).sum())


def digest(pairs):
    """Return the SHA-256 of a list of pairs, as text."""
    return sha256("\n".join("\t".join(pair) for pair in pairs))


def sha256(text):
    """Return the SHA-256 of a text, as text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split_by_source(pairs):
    """Return (train, val): all pairs of a tenth of the sources are for validation.

    Those are the sources whose SHA-256 is lowest: a choice that depends on the texts alone, not on
    their order, and that leaves no source on both sides. Both parts are in the order of `pairs`.

    Raises
    ------
    UserError
        If there are fewer than ten sources.
    """
    sources = dict.fromkeys(source for source, _ in pairs)
    if len(sources) < 10:
        raise UserError(
            f"--data holds {plural(len(sources), 'different sources')}; a tenth of them is for "
            "validation: give 10"
        )
    chosen = set(sorted(sources, key=sha256)[: len(sources) // 10])
    train, val = [], []
    for pair in pairs:
        (val if pair[0] in chosen else train).append(pair)
    return train, val


def split_by_position(pairs):
    """Return (train, val): every tenth pair is for validation.

    So it is in older runs, whose checkpoints name no split.

    Raises
    ------
    UserError
        If there are fewer than ten.
    """
    if len(pairs) < 10:
        raise UserError(f"--data holds {len(pairs)} pairs; every tenth is for validation: give 10")
    return [pair for i, pair in enumerate(pairs, 1) if i % 10], pairs[9::10]


SPLITS = {"source": split_by_source, "position": split_by_position}


def notes_on(train, val):
    """Return what is odd about the two parts of a split, a sentence each.

    Parameters
    ----------
    train, val : list of (source, target)
    """
    pairs, targets, several = [*train, *val], {}, set()
    for source, target in pairs:
        if targets.setdefault(source, target) != target:
            several.add(source)
    repeated = len(pairs) - len(set(pairs))
    known = {source for source, _ in train}
    both = sum(source in known for source, _ in val)
    broken = sum(has_break(source) or has_break(target) for source, target in pairs)
    notes = {
        f"{repeated:,} of {len(pairs):,} pairs repeat another pair": repeated,
        f"{len(several):,} of {len(targets):,} sources have several targets": several,
        f"the sources of {both:,} validation pairs are trained on as well": both,
        f"{broken:,} of {len(pairs):,} pairs have a line break; `minigpt sample` reads and writes "
        r"lines: a source is one line, and a line break in an answer is printed as \n": broken,
    }
    return [note for note, found in notes.items() if found]


def has_break(text):
    """Tell whether a text has a line break: LF or CR."""
    return "\n" in text or "\r" in text


def needed_length(*parts):
    """Return the tokens of the longest pair, or 0 if a model should not be made for it unasked.

    That is so where it is far longer than nearly all others, and a model of its length would be
    many times as costly as theirs.

    Parameters
    ----------
    *parts : Pairs
    """
    longest, usual = longest_of(parts)
    return longest if longest <= max(LONG, min(4 * usual, TOO_LONG)) else 0


def longest_of(parts):
    """Return the tokens of the longest pair, and what 99 % of the pairs need at most."""
    needed = np.concatenate([part.lengths for part in parts])
    return int(needed.max()), int(np.quantile(needed, 0.99, method="higher"))


def check_lengths(block_size, *parts, unit="tokens", fixed=False):
    """Make sure that all sources, and all targets with END, fit the model.

    Parameters
    ----------
    block_size : int
    *parts : Pairs
    unit : str
        What the tokens are, in the plural.
    fixed : bool
        Whether the block size is that of a model that there is.

    Raises
    ------
    UserError
        If not: how many do not, the longest, and what to set.
    """
    needed = np.concatenate([part.lengths for part in parts])
    longer = int((needed > block_size).sum())
    if longer:
        longest, usual = longest_of(parts)
        start = "begin a new run with " if fixed else "set "
        raise UserError(
            f"{longer} of {len(needed)} pairs are longer than --block-size {block_size}: the "
            f"longest needs {longest} ({unit} of a source, or of a target and its end), 99 % of "
            f"all at most {usual}; {start}--block-size {longest}, or leave them out"
        )
