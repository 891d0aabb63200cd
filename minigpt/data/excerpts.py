"""Excerpts of data sets: as much as is looked at, and no more than takes a second or two to read.

What an excerpt leaves out is tokenized, or made, in vain where somebody looks at a few passages.
Files are read whole all the same: their SHA-256 tells whether they are still those of a run.
"""

from typing import NamedTuple

import numpy as np

from minigpt.data.corpus import builtin_source
from minigpt.data.datasets import split_place
from minigpt.data.dates import TRAINING, VALIDATION, date_pairs
from minigpt.data.pair_files import read_pairs
from minigpt.data.pairs import SPLITS, Pairs, digest
from minigpt.data.sources import find_sources, hold
from minigpt.data.survey import survey
from minigpt.data.token_files import encode_beginnings

CHARACTERS, SUBWORDS = 10**7, 120_000  # of each part of a text, by what its tokens are
PAIRS = 10_000  # of each part


class Excerpt(NamedTuple):
    """A part of a data set, or all of a small one. Attributes that a data set has are as there.

    Attributes
    ----------
    tokenizer : Tokenizer or PairTokenizer
    train, val : (N,) int, or Pairs
    val_pairs : list of (source, target)
        [] of a text.
    sha256 : str or None
        Of the whole data; None of those that are made, which never change.
    part : str
        What it is of the data, in words; "" if it is all.
    """

    tokenizer: object
    train: np.ndarray | Pairs
    val: np.ndarray | Pairs
    val_pairs: list
    sha256: str | None
    part: str


def text_excerpt(path, tokenizer, name=None):
    """Return the Excerpt of a text: of a long one, the beginnings of its two parts.

    Parameters
    ----------
    path, tokenizer, name : as of TextData
    """
    sources = [builtin_source(name)] if path is None else hold(find_sources(path))
    found = survey(sources)
    most = CHARACTERS if tokenizer.unit == "characters" else SUBWORDS
    split = split_place(found.length)
    ids, border, whole = encode_beginnings(sources, found, tokenizer, split, most)
    lengths = {"training": split, "validation": found.length - split}
    part = " and ".join(beginning(f"{name} part", n, most) for name, n in lengths.items())
    return Excerpt(tokenizer, ids[:border], ids[border:], [], found.sha256, part * (not whole))


def beginning(name, length, most):
    """Return in words what the first `most` characters are of what has so many."""
    if length <= most:
        return f"the whole {name} ({length:,} characters)"
    return f"the first {most:,} of {length:,} characters of the {name}"


def pair_excerpt(path, seed, tokenizer, split):
    """Return the Excerpt of pairs from files, at even distances, or of the dates.

    Parameters
    ----------
    path, seed, tokenizer, split : as of PairData
    """
    if path is None:
        train, val = date_pairs(seed, most=PAIRS)
        sha256, sizes = None, (TRAINING, VALIDATION)
    else:
        pairs, *_ = read_pairs(path, split != "position")
        train, val = SPLITS[split](pairs)
        sha256, sizes = digest(train + val), (len(train), len(val))
        train, val = (part[:: -(-len(part) // PAIRS)] for part in (train, val))
    counts = [f"{len(x):,} of {n:,}" for x, n in zip((train, val), sizes, strict=True)]
    part = f"{counts[0]} pairs for training and {counts[1]} for validation"
    whole = (len(train), len(val)) == sizes
    return Excerpt(
        tokenizer, Pairs(train, tokenizer), Pairs(val, tokenizer), val, sha256, part * (not whole)
    )
