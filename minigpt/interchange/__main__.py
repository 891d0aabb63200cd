"""A trained model for transformers: `minigpt export --out-dir DIR --to FOLDER`.

Then, without code of minigpt:

    model = AutoModelForCausalLM.from_pretrained("FOLDER")
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")

An adapter is merged into its base; with --adapter-only it is written by itself, for peft:

    model = PeftModel.from_pretrained(base, "FOLDER")
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from minigpt import backend, cli
from minigpt.cli import aliases
from minigpt.errors import UserError, memory_for
from minigpt.files import read_metrics
from minigpt.interchange.card import facts_of
from minigpt.interchange.command import CheckpointConfig, build_of, parse
from minigpt.interchange.export import check_folder, export
from minigpt.interchange.peft import export_adapter
from minigpt.model.base import place_of


@dataclass(frozen=True)
class ExportConfig(CheckpointConfig):
    """Export."""

    to: str | None = cli.option(
        None, "folder for the files of transformers", metavar="FOLDER", path=True
    )
    force: bool = cli.option(False, "replace what is in the folder that would be in the way")
    merge: bool = cli.option(True, "merge a LoRA adapter into the weights of its base")
    adapter_only: bool = cli.option(
        False, "write a LoRA adapter by itself, in peft's format, in place of the merged model"
    )


def run_export(config):
    """Export the model that an ExportConfig names, and say what was written.

    Raises
    ------
    UserError
        If there is no --to, or as `export`.
    """
    if config.to is None:
        raise UserError("there is no folder to export to; name one by --to FOLDER")
    check_folder(config.to, config.force)
    if config.adapter_only or not config.merge:
        return run_export_adapter(config)
    checkpoint = config.load()
    name = export(
        config.to,
        checkpoint.params,
        checkpoint.config,
        checkpoint.tokenizer,
        facts_in(config, checkpoint),
        config.force,
    )
    print(f"{cli.printable(config.to)}: a {name} for transformers; its README.md shows its use")


def facts_in(config, checkpoint):
    """Return the Facts of a Checkpoint, with the metrics of its run where there are some."""
    metrics = []
    with contextlib.suppress(OSError):
        metrics = [*read_metrics(Path(config.model or config.checkpoint or config.out_dir))]
    return facts_of(checkpoint.state, metrics)


def run_export_adapter(config):
    """Export the adapter that an ExportConfig names, and say what its base is."""
    checkpoint = config.load_adapter()
    facts = facts_in(config, checkpoint)
    base = export_adapter(config.to, checkpoint, facts, config.force)
    of = base or place_of(checkpoint.base)
    print(cli.printable(f"{config.to}: an adapter for peft, of {of}"))
    if base is None:
        command = cli.command("python -m minigpt.interchange", model=of, to="BASE")
        print(f"its base must be exported, too: {command}")


def main(argv=None, prog="python -m minigpt.interchange"):
    """Write a trained model as a folder that transformers loads.

    A GPT with learnt positions becomes a GPT2LMHeadModel, one with rotary positions a
    Starcoder2ForCausalLM, with the same logits. The folder also has the tokenizer, and a model
    card.
    """
    parser = cli.parser(prog, main.__doc__, aliases.ANYWHERE)
    given, plain = parse(parser, argv, ExportConfig)
    parser.allow_one([name for name in given if given[name]], "merge", "adapter_only")
    with memory_for("while exporting", "export on a machine with more"), backend.plain(plain):
        run_export(build_of(ExportConfig, given))
    return 0


if __name__ == "__main__":
    cli.run(main)
