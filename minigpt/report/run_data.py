"""The data of a run, found again for its page; and a batch of them that takes a bounded time."""

import dataclasses
import os

from minigpt.cli import one_line
from minigpt.data.sources import find_sources, locate
from minigpt.errors import UserError
from minigpt.model import count_parameters
from minigpt.model.checkpoint import data_of
from minigpt.sample.evaluation import spread
from minigpt.sample.tasks import task_of

LARGEST = 200 * 10**6  # bytes of data that are read for a page, if their tokens are characters
LARGEST_SUBWORDS = 2 * 10**6  # of a vocabulary whose tokens have to be found, which takes longer
LEAST_TOKENS, MOST_TOKENS = 64, 2048  # of a batch


def open_run_data(checkpoint, folder):
    """Return (data set, None), or (None, why) where a run's data cannot be found any more.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of the run: its state says what it was trained on.
    folder : str or path
        The run's.

    Returns
    -------
    data : TextData or PairData, or None
    why : str or None
        A part of a sentence.
    """
    state, task = checkpoint.state, task_of(checkpoint.config)
    options = state.get("train")
    if not isinstance(options, dict) or data_of(state) is None:
        return None, "the checkpoint does not say what it was trained on"
    trained_on = state.get("data_name", state.get("text"))  # its name in older runs
    split = state.get("split", "position")
    try:
        name = locate(options.get("data"), state.get("data_folder", ""), str(folder))
        size = 0 if name is None else sum(map(size_of, find_sources(name.split("\n"))))
        if size > largest(checkpoint.tokenizer):
            return None, (
                f"{size / 1e6:,.0f} MB of data take too long to read for a page; the one that "
                "training writes has them"
            )
        options = {**options, **dataclasses.asdict(checkpoint.config), "data": name}
        data = task.open_data(options, checkpoint.tokenizer, trained_on, split)
    except (UserError, OSError) as error:
        return None, one_line(error)
    if data.sha256 != data_of(state):
        return None, f"{trained_on} has changed since the run was trained on it"
    return data, None


def largest(tokenizer):
    """Return how many bytes of data are read for a page, by their Tokenizer or PairTokenizer."""
    unit = getattr(getattr(tokenizer, "source", tokenizer), "unit", None)
    return LARGEST if unit == "characters" else LARGEST_SUBWORDS


def size_of(source):
    """Return the bytes of a Source's file; 0 of what has none."""
    return os.path.getsize(source.path) if os.path.exists(source.path) else 0


def validation_batch(checkpoint, data, flops):
    """Return a batch (ids, targets) of validation items at even distances.

    Its size goes by the work of both passes, and is within LEAST_TOKENS and MOST_TOKENS targets, if
    the split has as many.

    Parameters
    ----------
    checkpoint : Checkpoint
    data : TextData or PairData
    flops : float
        That both passes take, about.
    """
    config, task = checkpoint.config, task_of(checkpoint.config)
    tokens = min(max(flops / (6 * count_parameters(config)), LEAST_TOKENS), MOST_TOKENS)
    # A text is cut into shorter windows where one would be too much; pairs are as they are.
    short = dataclasses.replace(config, block_size=min(config.block_size, int(tokens)))
    items, targets = task.eval_size(data.val, short)
    rows = min(max(1, int(tokens * items / targets)), items)
    return next(task.eval_batches(data.val, short, rows, spread(items, rows)))
