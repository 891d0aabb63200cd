"""Which checkpoint to use, for all commands that load one."""

import itertools
from dataclasses import dataclass

from minigpt import cli
from minigpt.backend.devices import BACKENDS, load_backend
from minigpt.errors import UserError
from minigpt.interchange.loading import load_model, open_on_host
from minigpt.interchange.peft import adapted
from minigpt.model.base import load_plain
from minigpt.model.checkpoint import find_checkpoint, load


@dataclass(frozen=True)
class CheckpointConfig(cli.Config):
    """Which trained model, and where it computes."""

    out_dir: str = cli.option(
        "out", "folder of a run: its best checkpoint, else its last", metavar="DIR", path=True
    )
    checkpoint: str | None = cli.option(
        None, "a checkpoint, instead of --out-dir", metavar="FILE", path=True
    )
    model: str | None = cli.option(
        None,
        "a model of transformers, instead of --out-dir: its folder, or its name on the hub, such "
        "as openai-community/gpt2",
        metavar="FOLDER",
        path=True,
    )
    adapter: str | None = cli.option(
        None,
        "a LoRA adapter of that model, in peft's format: it is merged into the weights",
        metavar="FOLDER",
        path=True,
    )
    backend: str = cli.option("numpy", "where to compute", BACKENDS)

    def load(self):
        """Return the Checkpoint, without the optimizer's moments."""
        xp = load_backend(self.backend)
        if self.model is not None:
            found = load_model(self.model, xp)
        else:
            path = find_checkpoint(self.checkpoint or self.out_dir)
            found = load_plain(path, xp, open_on_host)
        return found if self.adapter is None else adapted(found, self.adapter)

    def load_adapter(self):
        """Return the Checkpoint of an adapter that was trained here, without its base."""
        if self.model is not None or self.adapter is not None:
            raise UserError(
                "--adapter-only is for an adapter that was trained here: name it by --out-dir or "
                "--checkpoint; what --adapter names is in peft's format already"
            )
        return load(find_checkpoint(self.checkpoint or self.out_dir), with_optimizer=False)


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
    for one, other in itertools.combinations(("model", "checkpoint", "out_dir"), 2):
        parser.allow_one(given, one, other)
    return given, given.pop("plain")


def build_of(cls, given):
    """Make a config of those options in a dict that are its own."""
    return cli.build(cls, {name: given[name] for name in cli.fields_of(cls).keys() & given})
