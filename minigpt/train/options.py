"""From a command line to the options of a run: preset, TOML file, flags."""

import tomllib
from pathlib import Path

from minigpt import cli
from minigpt.errors import UserError
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.train.config import FEW, TrainConfig
from minigpt.train.presets import DEFAULT, DEFAULTS, PRESETS, put_together


def parse(argv):
    """Return (dict of what is not an option of a config, dict of the options given)."""
    parser = cli.parser("python -m minigpt.train", "Train a GPT on text.")
    default = " or, by --task, ".join(DEFAULTS.values())
    parser.add_argument("--preset", help=f"{', '.join(PRESETS)} (default: {default})")
    parser.add_argument("--config", metavar="FILE", help="TOML file with options, as n_layer = 6")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out-dir")
    parser.add_argument("--overwrite", action="store_true", help="lose the run in --out-dir")
    parser.add_argument("--dry-run", action="store_true", help="print the cost of the run and exit")
    defaults = {"vocab_size": None} | PRESETS[DEFAULT]
    defaults["bigram"] = f"up to {FEW} different characters"
    cli.add_flags(parser, TrainConfig, GPTConfig, Seq2SeqConfig, defaults=defaults)
    given = vars(parser.parse_args(argv))
    names = ("preset", "config", "resume", "overwrite", "dry_run")
    own = {name: given.pop(name) for name in names}
    for other in ("preset", "overwrite"):
        if own["resume"] and own[other]:
            parser.error(f"--resume goes on with the run as it is: leave out --{other}")
    return own, given


def options(own, given):
    """Return the options of a run: the preset's, then those of --config, then the flags'.

    With --resume, the run's own options take the place of a preset; they are not among these.
    """
    given = {**read_config(own["config"]), **given}
    if own["resume"]:
        return given
    task = given.get("task", TrainConfig.task)
    default = cli.choose(task, DEFAULTS, "task")
    preset = cli.choose(own["preset"] or default, PRESETS, "preset")
    if task == "seq2seq":  # these are of a text
        preset = {name: preset[name] for name in preset if name not in ("places", "vocab_size")}
    return put_together(preset, given)


def read_config(path):
    """Return the options in a TOML file, or none without one."""
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # of the encoding or the syntax
        raise UserError(f"--config {path} is not a TOML file: {error}") from None
