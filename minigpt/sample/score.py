"""A trained model's loss on other data, and its wrong answers: `minigpt score --data FILE`.

Of a text every token but the first is predicted, each from those before it in its window: the text
is cut into consecutive windows of the model's block size, as in training. Of pairs the loss is that
of the targets, and exact match is the fraction of all sources that are answered as their targets
say.

What the model cannot have is left out and named on standard error; the exit code is 2 then.
"""

import json
import sys
from dataclasses import dataclass

from minigpt import backend, cli
from minigpt.cli import aliases
from minigpt.errors import SMALLER_DATA, UserError, memory_for
from minigpt.interchange.command import CheckpointConfig, build_of, parse
from minigpt.sample.answers import on_one_line
from minigpt.sample.command import check_flags
from minigpt.sample.progress import Progress
from minigpt.sample.tasks import TASKS, task_of

NAMED = 20  # lines that could not be scored


@dataclass(frozen=True)
class ScoreConfig(CheckpointConfig):
    """Scoring."""

    data: str | None = cli.option(
        None,
        "text; for an encoder-decoder, pairs as TSV, CSV or JSONL. One file or several, folders, "
        "globs in quotes, or - for standard input",
        metavar="FILE",
        path=True,
        several=True,
    )
    json: bool = cli.option(False, "print one JSON object")


def print_score(score):
    """Print the numbers of a score, and what it lists of wrong answers."""
    for name, value in score.items():
        if not isinstance(value, list | None):
            print(f"{name.replace('_', ' '):<20}{number(name, value)}")
    wrong = score.get("wrong")
    if wrong:
        which = "" if len(wrong) == score["wrong_answers"] else ", spread evenly over all"
        print(f"\n{cli.plural(len(wrong), 'wrong answers')}{which}:\n" + "\t".join(wrong[0]))
    for answer in wrong or ():
        print("\t".join(map(cell, answer.values())))
    sys.stdout.flush()


def number(name, value):
    """Return a number of a score, or a text, as it is shown."""
    if isinstance(value, float):
        unit = " nats per token" * (name == "loss")
        return f"{value:.2%}" if name == "exact_match" else f"{value:.4f}{unit}"
    return f"{value:,}" if isinstance(value, int) else cli.printable(value)


def cell(text):
    """Return a text as a cell of a table, in one line."""
    return cli.printable(on_one_line(text).replace("\t", r"\t"))


def print_faults(faults):
    """Print on standard error what could not be scored."""
    more = len(faults) - NAMED
    rest = [f"{cli.plural(more, 'more lines')} could not be scored"] if more > 0 else []
    for line in [*faults[:NAMED], *rest]:
        cli.say(f"error: {cli.one_line(line)}")


def score(given):
    """Print how a model does on data; return the exit code.

    Parameters
    ----------
    given : dict
        The options that were given, by name: of ScoreConfig and of the tasks' `score_options`.
    """
    config = build_of(ScoreConfig, given)
    options = {task.name: build_of(task.score_options, given) for task in TASKS.values()}
    if config.data is None:
        raise UserError("there is nothing to score; name a file by --data FILE")
    checkpoint, progress = config.load(), Progress()
    task = task_of(checkpoint.config)
    check_flags(given.keys(), task, "score_options")
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    try:
        found = task.score(task, *model, config.data, options[task.name], progress.show)
    finally:
        progress.clear()
    if config.json:
        print(json.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        print_score(found)
    print_faults(found["not_scored"])
    return 2 if found["not_scored"] else 0


def main(argv=None, prog="python -m minigpt score"):
    """Measure the loss of a trained model on other data.

    For an encoder-decoder, also the fraction of pairs that it answers exactly, with a list of wrong
    answers. What cannot be scored is left out and reported on standard error; the exit code is then
    2.
    """
    parser = cli.parser(prog, main.__doc__, aliases.SCORE)
    classes = ScoreConfig, *(task.score_options for task in TASKS.values())
    given, plain = parse(parser, argv, *classes)
    with memory_for("while scoring", SMALLER_DATA), backend.plain(plain):
        return score(given)
