"""`minigpt data`: from a text to its examples, or with --step through a step of training on one."""

import re
import sys
from dataclasses import dataclass

from minigpt import cli
from minigpt.cli.terminal import has_colours
from minigpt.data.__main__ import WalkConfig, head, walk_text
from minigpt.errors import SMALLER_DATA, UserError, memory_for
from minigpt.report.page import check_place
from minigpt.report.step.page import write_walk
from minigpt.report.step.record import TINY, record_step
from minigpt.report.step.terminal import intro_lines, walk_lines
from minigpt.report.step.walk import walk_of

TEXT_ONLY = "encode", "decode"  # options of the walk from a text to its examples


@dataclass(frozen=True)
class StepConfig(cli.Config):
    """One training step."""

    step: bool = cli.option(
        False, "walk through a training step of a tiny model on --prompt, op by op"
    )
    prompt: str | None = cli.option(
        None, "sentence that the step is on, of 2 tokens or more (default: the first word)"
    )
    page: str | None = cli.option(
        None,
        "write the walk as a page for a browser, in place of the text",
        metavar="FILE",
        path=True,
    )
    force: bool = cli.option(False, "replace the file that --page names")
    head: int = cli.option(0, "attention head that is shown", min=0, below=TINY.n_head)


def main(argv=None, prog="minigpt data"):
    """Walk from a text to the examples that a GPT learns from, or through one training step."""
    parser = cli.parser(prog, main.__doc__)
    cli.add_flags(parser, WalkConfig, StepConfig)
    given = vars(parser.parse_args(argv))
    config, step = (
        cli.build(cls, {name: given[name] for name in cli.fields_of(cls) if name in given})
        for cls in (WalkConfig, StepConfig)
    )
    if not step.step:
        wrong = [name for name in cli.fields_of(StepConfig) if name in given and name != "step"]
        if wrong:
            raise UserError(f"--{wrong[0]} is for a training step; add --step")
        return walk_text(config)
    wrong = [name for name in TEXT_ONLY if name in given]
    if wrong:
        raise UserError(f"--{wrong[0]} is for the walk without --step; name a sentence by --prompt")
    return walk_step(config, step)


@memory_for("while the text was read", SMALLER_DATA)
def walk_step(config, step):
    """Walk through a training step, with the vocabulary of the text that a WalkConfig names."""
    if step.page is not None:
        check_place("--page", step.page, "walk.html", step.force)
    elif step.force:
        raise UserError("--force is for --page FILE")
    data = config.read()
    prompt = first_word(head(data.sources)) if step.prompt is None else step.prompt
    record = record_step(prompt, data.tokenizer, config.block_size)
    walk = walk_of(record, data.name, step.head)
    if step.page is None:
        print("\n".join(walk_lines(walk, has_colours(sys.stdout))))
    else:
        write_walk(step.page, walk)
        print("\n".join(intro_lines(walk)))
        print(f"page: {cli.printable(step.page)}")
    return 0


def first_word(text):
    """Return the first word of a text that has two characters or more, else its beginning."""
    found = re.search(r"\w{2,}", text)
    return found[0] if found else text[: TINY.block_size + 1]
