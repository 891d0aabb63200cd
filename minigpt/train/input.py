"""What a run does about its data: what came by a pipe is kept in its folder."""

import contextlib
import os
from pathlib import Path

from minigpt.data.sources import Source, is_pipe
from minigpt.errors import UserError
from minigpt.sample.tasks import TASKS
from minigpt.train.ranks import ALONE
from minigpt.train.run_dir import keep


@contextlib.contextmanager
def keep_pipe(train_config, ranks=ALONE):
    """Keep in the run's folder what can be read but once: standard input, or another pipe.

    The run can be resumed then. What was kept is removed again where the run cannot begin.

    Parameters
    ----------
    train_config : TrainConfig
    ranks : Alone or Ranks
        Several processes cannot read one pipe.

    Yields
    ------
    data : str or None
        The option of that name, with the file's name in place of the pipe's.
    file : KeptFile or None

    Raises
    ------
    UserError
        If there are several pipes, or as Source.read.
    """
    names = [] if train_config.data is None else train_config.data.split("\n")
    pipes = [name for name in names if is_pipe(name)]
    if not pipes:
        yield train_config.data, None
        return
    if len(pipes) > 1:
        raise UserError(f"--data names {len(pipes)} pipes, but one can be kept; join them by cat")
    if ranks.size > 1:
        raise UserError(
            f"--data {pipes[0]} can be read once, but there are {ranks.size} processes; write it "
            "to a file, and name that"
        )
    raw = Source(pipes[0]).read()
    path = Path(train_config.out_dir) / TASKS[train_config.task].file_name(raw)
    with keep(raw, path) as file:
        yield "\n".join(str(path) if name in pipes else name for name in names), file


def folder_given(data):
    """Return the current folder, if --data names anything relative to it; else ""."""
    names = [] if data is None else data.split("\n")
    return "" if all(map(os.path.isabs, names)) else os.getcwd()
