"""What `minigpt sample` does."""

from dataclasses import dataclass

from minigpt import cli
from minigpt.backend.blas import blas_threads
from minigpt.errors import UserError
from minigpt.interchange.command import CheckpointConfig, build_of
from minigpt.sample.prompt import check_tokenizer, read_prompt
from minigpt.sample.tasks import TASKS, task_of


@dataclass(frozen=True)
class SampleConfig(CheckpointConfig):
    """Sampling."""

    prompt: str | None = cli.option(
        None,
        "text for a GPT to continue (default: a line break), or for an encoder-decoder to answer "
        "(default: standard input)",
    )
    prompt_file: str | None = cli.option(
        None,
        "file with the prompt, in UTF-8, or - for standard input. A GPT sees its last line break, "
        "too; an encoder-decoder answers each line",
        metavar="FILE",
        path=True,
    )


def check_flags(given, task, kind="options"):
    """Raise a UserError if an option of a `kind`, a field of Task, is for another task's models."""
    own = cli.fields_of(getattr(task, kind)).keys()
    for other in TASKS.values():
        foreign = given & cli.fields_of(getattr(other, kind)).keys() - own
        if foreign:
            raise UserError(
                f"--{min(foreign).replace('_', '-')} is for {other.kind}, but this checkpoint is "
                f"of {task.kind}; leave it out"
            )


def sample(given):
    """Print what a model makes of a prompt; return the exit code.

    Parameters
    ----------
    given : dict
        The options that were given, by name: of SampleConfig and of the tasks' `options`.
    """
    config = build_of(SampleConfig, given)
    options = {task.name: build_of(task.options, given) for task in TASKS.values()}
    checkpoint = config.load()
    task = task_of(checkpoint.config)
    check_flags(given.keys(), task)
    check_tokenizer(checkpoint.tokenizer)
    # A step reads all weights to multiply one vector. One thread uses up the memory's bandwidth;
    # those of BLAS would wait for each other in every product, long where cores are busy. Where
    # more threads gain something, `generate` has its own.
    with blas_threads(1):
        prompt = read_prompt(config.prompt, config.prompt_file)
        return task.decode(checkpoint, prompt, options[task.name])
