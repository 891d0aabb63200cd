"""Command lines and configs: a frozen dataclass gives the flags, their help and the checks."""

from minigpt.cli.fields import (
    Config,
    Field,
    build,
    check_values,
    choose,
    fields_of,
    nearest,
    option,
    option_of,
)
from minigpt.cli.flags import Parser, add_flags, add_plain, parser
from minigpt.cli.program import (
    FAILURES,
    device_failures,
    exit_code,
    note,
    one_line,
    run,
    say,
    standard_streams,
)
from minigpt.cli.terminal import command, first_of, plural, printable

VERSION = "0.1.0"

__all__ = [
    "FAILURES",
    "VERSION",
    "Config",
    "Field",
    "Parser",
    "add_flags",
    "add_plain",
    "build",
    "check_values",
    "choose",
    "command",
    "device_failures",
    "exit_code",
    "fields_of",
    "first_of",
    "nearest",
    "note",
    "one_line",
    "option",
    "option_of",
    "parser",
    "plural",
    "printable",
    "run",
    "say",
    "standard_streams",
]
