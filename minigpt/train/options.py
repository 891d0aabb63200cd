"""From a command line to the options of a run: preset, TOML file, flags."""

import os
import tomllib

from minigpt import cli
from minigpt.cli import aliases
from minigpt.errors import UserError
from minigpt.files import read_text
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.train.config import BIGRAM_MAX_VOCAB, TrainConfig, check_options
from minigpt.train.presets import (
    DEFAULT,
    DEFAULTS,
    FINETUNE,
    PRESETS,
    check_length,
    merge,
    options_of,
    put_together,
    training_options,
)

PROG = "python -m minigpt.train"
BIGRAM_DEFAULT = f"on, if the text has at most {BIGRAM_MAX_VOCAB} different tokens"
WHAT = (
    "Train a GPT on text, or an encoder-decoder on pairs. Defaults shown are those of the preset "
    f"{DEFAULT}."
)
OTHERS = (f"; {name} for --task {task}" for task, name in DEFAULTS.items() if name != DEFAULT)
PRESET_HELP = (
    f"set of options: {', '.join(PRESETS)} (default: {DEFAULT}{''.join(OTHERS)}; {FINETUNE} with "
    "--init-from)"
)
OWN = ("preset", "config", "resume", "overwrite", "dry_run", "plain")


def parse(argv, prog=PROG):
    """Return (dict of what is not an option of a config, dict of the options given).

    The options are those of --config, then those of the flags, which win: so does a length among
    them over one of another kind.
    """
    parser = cli.parser(prog, WHAT, aliases.TRAIN)
    parser.add_argument("--preset", help=PRESET_HELP)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of options, with lines such as n_layer = 6; flags win over it. none, in "
        "quotes there, takes a limit of the preset away: --max-seconds none",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from --out-dir/last.safetensors"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run in --out-dir, once the new one has a checkpoint",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the cost of the run and exit")
    cli.add_plain(parser)
    shown = {"vocab_size": None, "bigram": BIGRAM_DEFAULT}
    cli.add_flags(parser, TrainConfig, GPTConfig, Seq2SeqConfig, defaults=shown)
    given = vars(parser.parse_args(argv))
    own = {name: given.pop(name) for name in OWN}
    preset, from_file = read_config(own["config"])
    for other in ("preset", "overwrite"):
        if own["resume"] and own[other]:
            parser.error(f"--resume keeps the run's settings: leave out --{other}")
    if own["resume"] and preset is not None:
        raise UserError(
            f"--config {own['config']}: --resume keeps the run's settings: leave out preset"
        )
    own["preset"] = own["preset"] or preset
    return own, merge(from_file, given)


def options(own, given):
    """Return the options of a run: the preset's, with those given on top.

    With --resume, the run's own options take the place of a preset; they are not among these.
    """
    if own["resume"]:
        return given
    if given.get("init_from") is not None:
        lora = bool(given.get("lora_rank"))
        return put_together(training_options(own["preset"] or FINETUNE, lora), given)
    if own["preset"] == FINETUNE:
        raise UserError(f"preset {FINETUNE} is for a model that there is: name it by --init-from")
    task = given.get("task", TrainConfig.task)
    return put_together(options_of(own["preset"] or DEFAULTS[task], given.get("task")), given)


def read_config(path):
    """Return (preset or None, options) of a TOML file; none without one.

    Raises
    ------
    UserError
        If it cannot be read, or as check_options and check_length; it names the file and the key.
    """
    if path is None:
        return None, {}
    path = os.path.expanduser(path)
    try:
        found = tomllib.loads(read_text(path, "--config", "TOML file"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--config {path} is not a TOML file: {error}") from None
    where = f"--config {path}: "
    preset = found.pop("preset", None)
    if preset is not None:
        cli.choose(preset, PRESETS, f"{where}preset")
    for name, value in found.items():
        if isinstance(value, dict):
            raise UserError(
                f"{where}[{name}] is a table, but options stand without one: n_layer = 6"
            )
    given = check_options(aliases.rename(found), where)
    check_length(given, where)
    return preset, given
