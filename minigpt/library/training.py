"""Training as a function call, in a program or a notebook."""

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from minigpt import cli
from minigpt.data.pair_files import problem_of
from minigpt.data.sources import STDIN, find_sources
from minigpt.errors import UserError
from minigpt.library.model import load
from minigpt.sample.tasks import TASKS
from minigpt.train.begin import new_run
from minigpt.train.config import TrainConfig, check_options
from minigpt.train.interrupt import NEVER
from minigpt.train.loop import reported, started, train_or_save
from minigpt.train.options import options as options_of
from minigpt.train.page import stop_page
from minigpt.train.progress import Bar, Silent, progress_of
from minigpt.train.resume import folder_of, resume_run
from minigpt.train.run_dir import check_folder, keep, locked


def fit(
    data=None,
    preset=None,
    *,
    text=None,
    pairs=None,
    out_dir=None,
    resume=False,
    overwrite=False,
    progress=True,
    **options,
):
    """Train a model as `minigpt train` does, with the same result to the bit; return it.

    >>> model = minigpt.fit("my.txt", preset="quick", max_iters=300)
    >>> print(model.generate("ROMEO:"))
    >>> dates = minigpt.fit(pairs=[("one", "1"), ("two", "2"), ...], max_iters=500)
    >>> dates.answer("one")

    Ctrl-C, or interrupting the cell of a notebook, raises KeyboardInterrupt; with an out_dir, the
    run is saved there, from its first step on, and can be resumed. Signal handlers, warning filters
    and the current folder stay as they are; BLAS has its own number of threads again at the end. It
    works in any thread, but two trainings at once share the processor, and BLAS on one core each.

    Parameters
    ----------
    data : str or path or list of them, optional
        UTF-8 files, folders or globs: texts, or with task="seq2seq" pairs as TSV, CSV or JSONL.
        Left out: tiny Shakespeare, or dates.
    preset : str, optional
        "quick" if left out, "dates" for pairs; `minigpt train --help` lists them.
    text : str, optional
        In place of data: the text itself. With an out_dir it is kept there.
    pairs : list of (source, target), optional
        In place of data: what an encoder-decoder is to learn, as strings.
    out_dir : str or path, optional
        Folder for checkpoints and metrics. Left out: a temporary one, gone at the end.
    resume : bool
        Resume the run in out_dir. Options given here win over its own.
    overwrite : bool
        Replace the run in out_dir. Its files stay until the new one has its first checkpoint.
    progress : bool
        Show a progress bar and a line per evaluation.
    **options
        Those of the command, as n_layer=4, max_iters=500, backend="cupy".

    Returns
    -------
    model : Model
        The best checkpoint, by validation loss. Its `history` holds the metrics of the run.

    Raises
    ------
    UserError
        With the sentences of the command, if the data or an option cannot be used, or if training
        has diverged.
    """
    if resume and out_dir is None:
        raise UserError("resume needs out_dir: name the folder of the run")
    for name, given in (("preset", preset), ("overwrite", overwrite)):
        if resume and given:
            raise UserError(f"resume keeps the run's settings: leave out {name}")
    if sum(x is not None for x in (data, text, pairs)) > 1:
        raise UserError("give one of data, text and pairs")
    if data is not None:
        options["data"] = existing(data)
    if pairs is not None:
        options = {"task": "seq2seq", **options}
        text = as_lines(pairs)
    with cli.standard_streams(), reported(), contextlib.ExitStack() as stack:
        if out_dir is None:
            out_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="minigpt-"))
        options["out_dir"] = os.fspath(out_dir)
        own = {"preset": preset, "resume": resume, "overwrite": overwrite}
        return fit_in(stack, own, options, text, progress)


def fit_in(stack, own, options, text, progress):
    """Train in the folder options["out_dir"], which `stack` locks; return the Model.

    Parameters
    ----------
    stack : ExitStack
    own : dict
        preset, resume, overwrite.
    options : dict
    text : str or None
        What is to be kept in the folder and trained on.
    progress : bool
    """
    folder = folder_of(options)
    stack.enter_context(locked(folder, make=not own["resume"]))
    keeping = contextlib.nullcontext()
    if text is not None:
        if not own["resume"]:
            check_folder(folder, own["overwrite"])
        task = cli.choose(options.get("task", TrainConfig.task), TASKS, "task")
        raw = as_bytes(text)
        options["data"] = str(folder / task.file_name(raw))
        keeping = keep(raw, Path(options["data"]))
    with keeping as file:
        options = options_of(own, check_options(options))
        run = resume_run(options) if own["resume"] else new_run(options, own["overwrite"])
        run.files.kept = file or run.files.kept
    run.pages.at_end = run.pages.at_end and bool(run.train_config.report_every)
    with started(run), progress_in(run, progress) as shown:
        train_or_save(run, shown, NEVER)
        stop_page(run)
    return load(folder, run.train_config.backend)


def existing(data):
    """Return the names of data files as option data holds them, or raise a UserError."""
    names = data if isinstance(data, list | tuple) else [data]
    if not names or not all(isinstance(name, str | os.PathLike) for name in names):
        raise UserError(
            f"data is {data!r:.60}; it must be the path of a file, or a list of paths; give a text "
            "itself by text=, a list of (source, target) by pairs="
        )
    for name in names:
        if not any(s.path == STDIN or os.path.exists(s.path) for s in find_sources([name])):
            raise UserError(f"data {str(name)!r:.60} is no file; give a text itself by text=")
    return "\n".join(map(os.fspath, names))


def as_lines(pairs):
    """Return pairs as the text of a TSV file, or raise a UserError if they are none."""
    if not isinstance(pairs, Iterable):
        raise UserError(f"pairs is {pairs!r:.60}; it must be a list of (source, target)")
    text = "".join(as_line(i, pair) for i, pair in enumerate(pairs))
    if not text:
        raise UserError("pairs is empty; give a list of (source, target), two strings each")
    return text


def as_line(i, pair):
    """Return the line of a TSV file for pair i, or raise a UserError if it would not be one."""
    sides = [*pair] if isinstance(pair, Iterable) else []
    if len(sides) != 2 or not all(isinstance(side, str) for side in sides):
        raise UserError(f"pairs[{i}] is {pair!r:.60}; it must be two strings, (source, target)")
    if any(char in side for side in sides for char in "\t\n\r"):
        raise UserError(f"pairs[{i}] holds a TAB or a line break, which part pairs: replace it")
    if problem := problem_of(sides):
        raise UserError(f"pairs[{i}] {problem}")
    return "\t".join(sides) + "\n"


def as_bytes(text):
    """Return a text as UTF-8, or raise a UserError if it is none."""
    if not isinstance(text, str):
        raise UserError(f"text is {text!r:.60}; it must be a string")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"text holds {text[error.start]!r} at position {error.start}, half of a surrogate "
            "pair, which is no character"
        ) from None


def in_notebook():
    """Tell whether this is a notebook, where standard error is no terminal and yet is seen."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    return hasattr(shell, "kernel")


def progress_in(run, progress):
    """Return what shows the progress of a run: of widgets in a notebook that has them."""
    if not progress:
        return Silent(run)
    if not in_notebook():
        return progress_of(run)
    if importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    return Bar(run, tqdm)
