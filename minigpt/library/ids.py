"""Token ids from Python: whatever is passed becomes a batch that a model can read, or an error."""

import numpy as np

from minigpt.backend import to_host
from minigpt.errors import UserError
from minigpt.sample.prompt import encode_text


def as_ids(ids, tokenizer, vocab_size, block_size, name="ids", least=0):
    """Return a batch of token ids.

    Parameters
    ----------
    ids : str, (T,) int or (B, T) int
        A text, or its ids.
    tokenizer : Tokenizer or None
        For a text.
    vocab_size, block_size : int
        Ids are below the one, and as many as the other at most.
    name : str
        What an error calls them.
    least : int
        The lowest id: 0, or -1 where that stands for padding.

    Returns
    -------
    ids : (B, T) int32, NumPy
        B is 1 for a text and for (T,).

    Raises
    ------
    UserError
        If a model could not read them. On a GPU, ids beyond the vocabulary would go unnoticed.
    """
    if isinstance(ids, str):
        ids = encode_text(name, ids, tokenizer)
    try:
        array = np.asarray(to_host(ids))
    except (ValueError, TypeError, OverflowError):  # rows of different lengths, ...
        array = np.empty(0)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
        came = f"{array.dtype} {array.shape}" if array.size else f"{ids!r:.60}"
        raise UserError(
            f"{name}: found {came}, but a model reads a text, or whole numbers of shape (T,) or "
            "(B, T), all rows of one length"
        )
    array = np.atleast_2d(array)
    if array.shape[1] > block_size:
        raise UserError(
            f"{name}: found {array.shape[1]} tokens, but the model reads at most {block_size}"
        )
    wrong = (array < least) | (array >= vocab_size)
    if wrong.any():
        raise UserError(
            f"{name}: token id {array[wrong][0]} is out of range: the {vocab_size} tokens have ids "
            f"0 to {vocab_size - 1}"
        )
    return array.astype(np.int32)


def as_batch(ids, targets, tokenizer, config):
    """Return (ids, targets) as a loss takes them; errors as `as_ids`.

    Parameters
    ----------
    ids, targets : str, (T,) int or (B, T) int
    tokenizer : CharTokenizer or PairTokenizer
    config : GPTConfig or Seq2SeqConfig

    Returns
    -------
    ids, targets : (B, Tx), (B, T) int32, NumPy
        For a GPT, Tx is T.
    """
    V, T = config.vocab_size, config.block_size
    sources = getattr(config, "source_vocab_size", None)
    if sources is None:
        ids = as_ids(ids, tokenizer, V, T)
        targets = as_ids(targets, tokenizer, V, T, "targets", -1)
        fit = ids.shape == targets.shape
    else:
        ids = as_ids(ids, tokenizer.source, sources, T, "source", -1)
        targets = ended(targets, tokenizer.target, V - 1)
        targets = as_ids(targets, tokenizer.target, V, T, "targets", -1)
        fit = len(ids) == len(targets)
        if (ids[:, 0] < 0).any() or ((ids[:, 1:] >= 0) & (ids[:, :-1] < 0)).any():
            raise UserError("source: -1 is padding, which comes only after the ids of a row")
    if not fit:
        raise UserError(
            f"the targets are of shape {targets.shape}, which does not fit the shape {ids.shape} "
            "of what the model reads"
        )
    if (targets < 0).all():
        raise UserError("targets: all are -1, so there is no loss to take the mean of")
    return ids, targets


def ended(targets, tokenizer, end):
    """Return the ids of a text with END after them; ids as they are."""
    return [*tokenizer.encode(targets), end] if isinstance(targets, str) else targets
