"""The commands under one name: `minigpt train`, or `python -m minigpt train`, and so on."""

import importlib
import sys

from minigpt import cli

COMMANDS = {  # where the main of each is, and what it does
    "train": ("train.__main__", "train a model on a text, or on pairs of texts"),
    "sample": ("sample.__main__", "write text with a trained model, or answer lines"),
    "score": ("sample.score", "score a trained model on a file: its loss, its wrong answers"),
    "data": ("report.step.command", "walk from a text to its examples, or through one step"),
    "attention": ("report.attention", "show what a trained model looks at"),
    "report": ("report.run_page", "write a page on a run: curves, samples, attention, the model"),
    "export": ("interchange.__main__", "write a trained model in the format of transformers"),
    "doctor": ("backend.__main__", "check what this machine has, and how to get what is missing"),
}
USAGE = "\n".join(
    (
        "usage: minigpt COMMAND [flags]",
        "",
        *(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "`minigpt COMMAND --help` lists the flags of a command.",
    )
)


def main(argv=None):
    """Run the command that the first argument names; return its exit code.

    Parameters
    ----------
    argv : list of str, optional
        The program's own arguments if left out.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if name == "--version":
        print(f"minigpt {cli.VERSION}")
        return 0
    if name not in COMMANDS:
        if not name:
            print(USAGE, file=sys.stderr)
        else:
            near = cli.nearest(name, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
            kind = "flag" if name.startswith("-") else "command"
            print(f"minigpt: error: unknown {kind} {name!r}{near}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    command = importlib.import_module(f"minigpt.{module}")
    return command.main(rest, prog=f"minigpt {name}")


def program():
    """Run as the console script `minigpt`."""
    cli.run(main)


if __name__ == "__main__":
    program()
