"""From the ids of a text to batches: random ones for training, consecutive windows.

Run `python -m minigpt.data` for a walk from a text to the examples that a GPT learns from.
"""

import numpy as np

from minigpt.backend import array_module, overridable, to_device
from minigpt.errors import UserError

PART = 1 << 16  # tokens looked at together
LARGEST = 1 << 32  # tokens that `weyl` can tell apart


def only_in(ids, others, vocab_size):
    """Return the tokens that are in `ids` and not in `others`, ascending: (K,) int."""
    only = np.zeros(vocab_size, bool)
    for part in (ids, others):
        for start in range(0, len(part), PART):
            only[part[start : start + PART]] = part is ids
            if not only.any():
                break
    return only.nonzero()[0]


def count_of(tokens, ids):
    """Return how many of the ids are one of some tokens."""
    starts = range(0, len(ids), PART)
    return sum(int(np.isin(ids[start : start + PART], tokens).sum()) for start in starts)


def check_length(train, val, block_size):
    """Make sure that both parts hold a block and the token that follows it.

    Raises
    ------
    UserError
        If not; if block_size is below 1; or if there are more tokens than a sampler can tell apart.
    """
    if len(train) > LARGEST:
        raise UserError(
            f"the text is too long: its train part has {len(train):,} tokens, but at most "
            f"{LARGEST:,} can be drawn from; give --data with less"
        )
    if block_size < 1:
        raise UserError(f"--block-size is {block_size}, but must be at least 1")
    name, part = ("train", train) if len(train) < len(val) else ("validation", val)
    needed = block_size + 1
    if len(part) < needed:
        largest = len(part) - 1
        smaller = f" or --block-size {largest} or less" if largest > 0 else ""
        raise UserError(
            f"the text is too short: its {name} part has {len(part)} of {len(train) + len(val)} "
            f"tokens, but --block-size {block_size} needs {needed}; give --data with "
            f"{10 * block_size + 1} tokens or more{smaller}"
        )


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def uniform(n, seed, number, row, batch_size):
    """Draw (batch_size,) int64, each of 0 .. n - 1 as likely as any other, at every draw."""
    # Philox numbers its output by a counter. The batch's number is in the second 64-bit word of it,
    # which the draws of a batch never reach. Raw bits: the one stream that NumPy promises to keep.
    bits = np.random.Philox(key=seed, counter=number << 64).random_raw(batch_size)
    return (bits % np.uint64(n)).astype(np.int64)


def weyl(n, seed, number, row, batch_size):
    """Return (batch_size,) int64 that fill 0 .. n - 1 evenly from batch to batch.

    A Weyl sequence: each start lies 0.618 of the whole after the one before, modulo the whole; the
    seed draws the first. At any time its gaps have three lengths at most, none longer than 2.62
    times the shortest (Knuth, The Art of Computer Programming, volume 3, section 6.4, theorem S).
    After as many windows as fit a text side by side, nearly nine tenths of it have been seen; by
    uniform starts it is 1 - 1/e, just under two thirds.
    """
    first = np.random.Philox(key=seed).random_raw(1)
    i = np.arange(row, row + batch_size, dtype=np.uint64)
    fraction = (first + i * GOLDEN) >> np.uint64(32)  # of 2^32; the product wraps as it should
    return (fraction * np.uint64(n) >> np.uint64(32)).astype(np.int64)


SAMPLERS = {"uniform": uniform, "weyl": weyl}


def random_batch(ids, seed, number, batch_size, block_size, sampler="uniform", row=None):
    """Take windows of the ids from here and there: the batch of a training step.

    The same arguments always give the same batch, so that its number of steps is all that a run
    has to know to resume where it was.

    Parameters
    ----------
    ids : (N,) of any dtype of integers, block_size < N <= 2**32
        On a GPU the windows are gathered there; their starts are the same.
    seed, number : int, not negative
        Of the run, and of the batch in it.
    batch_size, block_size : int
    sampler : str
        How the starts of the windows are drawn: a key of SAMPLERS.
    row : int, optional
        Windows that the run has taken before; if left out, as many as in `number` such batches.

    Returns
    -------
    x, y : (batch_size, block_size) int32, on the device that ids are on
        y is x moved on by one token.
    """
    row = number * batch_size if row is None else row
    starts = SAMPLERS[sampler](len(ids) - block_size, seed, number, row, batch_size)
    return windows(ids, to_device(starts, array_module(ids)), block_size)


@overridable
def windows(ids, starts, block_size):
    """Return x and y (B, block_size) int32, the windows of ids (N,) that begin at starts (B,) int64
    and one token later; all of them lie within ids.
    """
    where = starts[:, None] + array_module(ids).arange(block_size)
    return as_int32(ids[where]), as_int32(ids[1:][where])


def as_int32(ids):
    """Return ids as models take them; a text's are smaller."""
    return ids.astype(np.int32, copy=False)


def count_windows(ids, block_size):
    """Return the number of windows of `eval_batches`, and of the tokens that they ask for."""
    n = max(len(ids) - 1, 0)
    return -(-n // block_size), n


def eval_batches(ids, block_size, batch_size, which=None):
    """Iterate over consecutive windows, which together ask for every token but the first once.

    Parameters
    ----------
    ids : (N,) of any dtype of integers
    block_size, batch_size : int
    which : (k,) int, optional
        Numbers of windows, ascending, if not all are wanted.

    Yields
    ------
    x, y : (B, block_size) int32, B <= batch_size; views of ids where those are int32
        y is x moved on by one token. What is left over at the end comes last, as (1, rest).
    """
    n = max(len(ids) - 1, 0)  # predictions
    whole = n - n % block_size
    x, y = (ids[i : i + whole].reshape(-1, block_size) for i in (0, 1))
    full = len(x) if which is None else int(np.searchsorted(which, len(x)))
    for row in range(0, full, batch_size):
        rows = slice(row, min(row + batch_size, full))
        rows = rows if which is None else to_device(which[rows], array_module(ids))
        yield as_int32(x[rows]), as_int32(y[rows])
    if whole < n and (which is None or full < len(which)):
        yield as_int32(ids[None, whole:n]), as_int32(ids[None, whole + 1 :])


def count_targets(targets):
    """Return how many targets of a text's batch count: all, and no GPU has to be asked."""
    return targets.size
