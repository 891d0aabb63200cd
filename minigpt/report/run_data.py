"""The data of a run, found again for its page: as much of them as is looked at."""

import os

from minigpt.cli import one_line
from minigpt.data.sources import find_sources, locate
from minigpt.errors import UserError
from minigpt.model.checkpoint import data_of
from minigpt.sample.tasks import task_of

LARGEST = 200 * 10**6  # bytes of data that are read for a page


def open_run_data(checkpoint, folder):
    """Return (Excerpt, None), or (None, why) where a run's data cannot be found any more.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of the run: its state says what it was trained on.
    folder : str or path
        The run's.

    Returns
    -------
    data : Excerpt or None
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
        if size > LARGEST:
            return None, (
                f"{size / 1e6:,.0f} MB of data take too long to read for a page; the one that "
                "training writes has them"
            )
        data = task.excerpt(options | {"data": name}, checkpoint.tokenizer, trained_on, split)
    except (UserError, OSError) as error:
        return None, one_line(error)
    if data.sha256 not in (None, data_of(state)):
        return None, f"{trained_on} has changed since the run was trained on it"
    return data, None


def size_of(source):
    """Return the bytes of a Source's file; 0 of what has none."""
    return os.path.getsize(source.path) if os.path.exists(source.path) else 0
