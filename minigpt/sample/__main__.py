"""Text from a trained model: `python -m minigpt.sample --out-dir DIR`.

A GPT continues the prompt. With --stop, a text ends before the first place where the string
occurs after the prompt. One text appears as it is made; several are made side by side, and
printed one after the other.

An encoder-decoder answers each line of the prompt, or of standard input, by a line. One that is
empty, too long, not UTF-8, or holds an unknown character spoils no other.
"""

from minigpt import backend, cli
from minigpt.cli import aliases
from minigpt.errors import memory_for
from minigpt.interchange.command import parse
from minigpt.sample.command import SampleConfig, sample
from minigpt.sample.tasks import TASKS


def main(argv=None, prog="python -m minigpt.sample"):
    """Write text with a trained model.

    An encoder-decoder writes one line for each line that it reads. For a line that it cannot
    answer it writes an empty one and an error on standard error, and the exit code is 2. Answers
    that were cut off are reported there as well.

    Input and output are UTF-8. Control characters are shown as escapes, such as \\x1b, on a
    terminal; a file or a pipe gets them as they are.
    """
    parser = cli.parser(prog, main.__doc__, aliases.SAMPLE)
    classes = SampleConfig, *(task.options for task in TASKS.values())
    given, plain = parse(parser, argv, *classes)
    parser.allow_one(given, "prompt", "prompt_file")
    less = "take fewer --num-samples, a smaller --beam or model, or another --backend"
    with memory_for("while sampling", less), backend.plain(plain):
        return sample(given)


if __name__ == "__main__":
    cli.run(main)
