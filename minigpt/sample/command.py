"""Which checkpoint to use, for all commands that load one; and what `minigpt sample` does."""

from dataclasses import dataclass

from minigpt import cli
from minigpt.backend.blas import blas_threads
from minigpt.backend.devices import BACKENDS, load_backend
from minigpt.errors import UserError
from minigpt.model.checkpoint import find_checkpoint, load
from minigpt.sample.prompt import read_prompt
from minigpt.sample.tasks import TASKS, task_of


@dataclass(frozen=True)
class CheckpointConfig(cli.Config):
    """Which trained model, and where it computes."""

    out_dir: str = cli.option(
        "out", "folder of a run: its best checkpoint, else its last", metavar="DIR", path=True
    )
    checkpoint: str | None = cli.option(
        None, "a checkpoint, instead of --out-dir", metavar="FILE", path=True
    )
    backend: str = cli.option("numpy", "where to compute", BACKENDS)

    def load(self):
        """Return the Checkpoint, without the optimizer's moments."""
        xp = load_backend(self.backend)
        return load(find_checkpoint(self.checkpoint or self.out_dir), xp, with_optimizer=False)


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


def parse(parser, argv, *classes):
    """Parse the arguments of a command that loads a checkpoint.

    Returns
    -------
    given : dict
        The options that were given, of the config classes, by name.
    plain : bool
        Whether --plain was given.
    """
    cli.add_flags(parser, *classes)
    cli.add_plain(parser)
    given = vars(parser.parse_args(argv))
    parser.allow_one(given, "checkpoint", "out_dir")
    return given, given.pop("plain")


def build_of(cls, given):
    """Make a config of those options in a dict that are its own."""
    return cli.build(cls, {name: given[name] for name in cli.fields_of(cls).keys() & given})


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
    # A step reads all weights to multiply one vector. One thread uses up the memory's bandwidth;
    # those of BLAS would wait for each other in every product, long where cores are busy.
    with blas_threads(1):
        prompt = read_prompt(config.prompt, config.prompt_file)
        return task.decode(checkpoint, prompt, options[task.name])
