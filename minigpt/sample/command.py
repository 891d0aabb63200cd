"""What `minigpt sample` prints: a checkpoint, its task, and how the task decodes."""

from dataclasses import dataclass

from minigpt import cli
from minigpt.backend.blas import blas_threads
from minigpt.backend.devices import BACKENDS, load_backend
from minigpt.errors import UserError
from minigpt.model.checkpoint import find_checkpoint, load
from minigpt.sample.tasks import TASKS, task_of


@dataclass(frozen=True)
class SampleConfig:
    """Sampling."""

    out_dir: str = cli.option("out", "a run: its best, else its last checkpoint", None, "DIR")
    checkpoint: str | None = cli.option(None, "a checkpoint, instead of --out-dir", None, "FILE")
    prompt: str = cli.option(
        "", "text to go on from (left out: a new line) or to answer (left out: standard input)"
    )
    prompt_file: str | None = cli.option(None, "file with that text", None, "FILE")
    max_new_tokens: int = cli.option(500, "tokens to write for each text")
    temperature: float = cli.option(0.8, "the higher, the bolder; 0 always takes the likeliest")
    top_k: int = cli.option(200, "draw from the N likeliest tokens; 0: from all")
    top_p: float = cli.option(1.0, "draw from the likeliest tokens that hold X of the probability")
    num_samples: int = cli.option(1, "texts to write")
    seed: int = cli.option(1337, "the same seed draws the same text")
    stop: str = cli.option("", "end the text before this string")
    beam: int = cli.option(1, "encoder-decoder: answers to keep in mind; 1 is greedy")
    verbose: bool = cli.option(False, "encoder-decoder: all of them, with log-probabilities")
    backend: str = cli.option("numpy", "where to compute", BACKENDS)

    def __post_init__(self):
        for name, good, needed in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("num_samples", self.num_samples >= 1, "1 or more"),
            ("beam", 1 <= self.beam < 2**16, "1 or more and below 2**16"),
            ("seed", 0 <= self.seed < 2**64, "0 or more and below 2**64"),
        ):
            if not good:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} is {getattr(self, name)}, but must be {needed}")


def check_flags(given, task):
    """Raise a UserError if a flag has no meaning for the model at hand."""
    wrong = given & task.foreign_flags
    if wrong:
        name = min(wrong)
        fit = next(t for t in TASKS.values() if name not in t.foreign_flags)
        raise UserError(
            f"--{name.replace('_', '-')} is for {fit.kind}, but this checkpoint is of {task.kind}; "
            "leave it out"
        )


def print_samples(options, given):
    """Print what the model makes of the prompt; `given` are the names of the flags given."""
    xp = load_backend(options.backend)
    checkpoint = load(find_checkpoint(options), xp, with_optimizer=False)
    task = task_of(checkpoint.config)
    check_flags(given, task)
    # A step reads all weights to multiply one vector. One thread uses up the memory's bandwidth;
    # those of BLAS would wait for each other in every product, long where cores are busy.
    with blas_threads(1):
        task.decode(checkpoint, options, given)
