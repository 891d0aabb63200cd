"""How a run begins: from its options, its data and, if it is given one, a model that there is."""

import dataclasses
import time
from pathlib import Path

from minigpt.sample.tasks import TASKS
from minigpt.train.base import base_of, open_base
from minigpt.train.config import resolve, train_config_of
from minigpt.train.input import keep_pipe
from minigpt.train.ranks import ALONE
from minigpt.train.run import Run, backend_of
from minigpt.train.run_dir import check_folder
from minigpt.train.state import RunState
from minigpt.train.trackers import check_trackers

BEFORE = {"learning_rate": 0.0, "grad_norm": None}  # in the metrics of step 0: no step is taken


def open_data(train_config, options, base=None):
    """Return the data set that a new run is trained on.

    Parameters
    ----------
    train_config : TrainConfig
    options : dict
        Of the run; share_embedding is one of the model's.
    base : Checkpoint, optional
        Of the model that it begins from, whose tokenizer reads the data.
    """
    options = {**dataclasses.asdict(train_config), **options}
    tokenizer = None if base is None else base.tokenizer
    return TASKS[train_config.task].open_data(options, tokenizer)


def new_run(options, overwrite, ranks=ALONE):
    """Return the Run that a dict of options describes, in a folder of its own."""
    began = time.perf_counter()
    base, options = open_base(options)
    train_config = train_config_of(options)  # reports what is wrong with them before any work
    ranks.use(train_config.backend)
    backend_of(train_config)
    ranks.first(lambda: check_trackers(train_config))
    ranks.first(lambda: check_folder(Path(train_config.out_dir), overwrite))
    with keep_pipe(train_config, ranks) as (name, file):
        options = {**options, "data": name}
        adapted = base_of(train_config, base)
        data = open_data(train_config, options, base)
        config, train_config = resolve(options, data.sizes)
        if config.block_size > options.get("block_size", config.block_size):
            data.notes.append(
                f"block_size is {config.block_size}, as the longest pair needs "
                f"{data.sizes['block_size']} tokens"
            )
        state = RunState.of(train_config, data)
        if base is not None:
            state.due = dict(BEFORE)
        run = Run(config, train_config, data, state, None, began, base, adapted, ranks)
        run.files.kept = file
        return run
