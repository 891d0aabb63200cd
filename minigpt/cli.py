"""Command lines and configs: a frozen dataclass gives the flags, their help and the checks.

A config class holds fields of type int, float, bool or str, each possibly `| None`:

    @dataclass(frozen=True)
    class TrainConfig:
        '''Training.'''

        max_iters: int = option(2000, "training steps")

Fields made by `option` become flags; plain fields are for code and checkpoints only.
"""

import argparse
import dataclasses
import difflib
import os
import sys
import typing
from types import NoneType

from minigpt.errors import UserError

VERSION = "0.1.0"

# Errors of a device at run time, and where CuPy has them. One of memory is a MemoryError.
FAILURES = {
    "CUDARuntimeError": "cupy_backends.cuda.api.runtime",
    "CUDADriverError": "cupy_backends.cuda.api.driver",
    "CUBLASError": "cupy_backends.cuda.libs.cublas",
    "NVRTCError": "cupy_backends.cuda.libs.nvrtc",
    "CompileException": "cupy.cuda.compiler",
}
METAVARS = {int: "N", float: "X", str: "TEXT"}


def option(default, help, choices=None, metavar=None, flag=True):
    """Make a dataclass field that knows its help and is a flag as well.

    Parameters
    ----------
    default : int, float, bool, str or None
        `dataclasses.MISSING` makes the field required. The help shows no default for None: there
        the text has to say what leaving it out means.
    help : str
        Units belong here.
    choices : sequence of str, optional
        The only values that `build` and the flag accept.
    metavar : str, optional
        Stands for the value in the help: N, X or TEXT by type if left out.
    flag : bool
        False for what the program finds out by itself.
    """
    metadata = {"help": help, "choices": choices, "metavar": metavar, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


def field_types(cls):
    """Types that each field of a config class takes, such as {"min_lr": (float, NoneType)}."""
    hints = typing.get_type_hints(cls)
    return {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}


def add_flags(parser, *config_classes, defaults=None):
    """Add a flag per option: `n_layer` becomes `--n-layer`, a bool `--bias` and `--no-bias`.

    The parsed namespace holds only what was given, so that presets and stored configs can fill in
    the rest. Each class is a group of the help, under the first line of its docstring; fields that
    it has from a class before it are not repeated.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    *config_classes : dataclasses
    defaults : dict, optional
        Values that the help shows in place of the fields' own defaults.
    """
    known = set()
    for cls in config_classes:
        group = parser.add_argument_group(cls.__doc__.splitlines()[0].rstrip("."))
        types = field_types(cls)
        for field in dataclasses.fields(cls):
            if field.metadata.get("flag") and field.name not in known:
                known.add(field.name)
                kind = next(t for t in types[field.name] if t is not NoneType)
                add_flag(group, field, kind, (defaults or {}).get(field.name, field.default))


def add_flag(group, field, kind, default):
    """Add the flag of one field; `default` is only shown."""
    help = field.metadata["help"]
    if default not in (None, dataclasses.MISSING, ""):
        shown = ("off", "on")[default] if isinstance(default, bool) else default
        help += f" (default: {shown})"
    settings = {"default": argparse.SUPPRESS, "help": help.replace("%", "%%")}
    if kind is bool:
        settings |= {"action": argparse.BooleanOptionalAction}
    else:
        choices, metavar = field.metadata["choices"], field.metadata["metavar"]
        metavar = metavar or (None if choices else METAVARS[kind])
        settings |= {"type": kind, "choices": choices, "metavar": metavar}
    group.add_argument("--" + field.name.replace("_", "-"), **settings)


class Parser(argparse.ArgumentParser):
    """argparse's, with errors of one line and the nearest flag for an unknown one."""

    def parse_args(self, args=None, namespace=None):
        """Parse all arguments; what is left over is an error that exits with code 2."""
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            word = rest[0].split("=")[0]
            kind = "flag" if word.startswith("-") else "argument"
            near = nearest(word, self._option_string_actions) or "; --help lists the flags"
            self.error(f"unknown {kind} {word!r}{near}")
        return known

    def error(self, message):
        """Write `prog: error: message` to standard error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def parser(prog, description):
    """Make a parser that takes no abbreviated flags, which a later flag could make ambiguous.

    Parameters
    ----------
    prog : str
        What the user types, such as "python -m minigpt.train".
    description : str
    """
    return Parser(
        prog=prog,
        usage="%(prog)s [flags]",
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )


def build(cls, values):
    """Make a config from a dict of flags, a preset or a checkpoint.

    Parameters
    ----------
    cls : dataclass
    values : dict
        By field name. An int up to 2**53 is taken for a float; otherwise types must match.

    Raises
    ------
    UserError
        If a key is unknown or missing, or a value has the wrong type, is not a number or is not
        among the field's choices; and what `cls` itself raises.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types = field_types(cls)
    config = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{cls.__name__}: unknown key {name!r}{nearest(name, fields)}")
        if type(value) is int and int not in types[name] and float in types[name]:
            value = float(value) if abs(value) <= 2**53 else value  # beyond, not every int is one
        if type(value) not in types[name] or value != value:
            needed = " or ".join("None" if t is NoneType else t.__name__ for t in types[name])
            raise UserError(f"{cls.__name__}: {name} is {value!r}, but needs {needed}")
        choices = fields[name].metadata.get("choices")
        if choices and value is not None:
            choose(value, dict.fromkeys(choices), f"{cls.__name__} {name}")
        config[name] = value
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    missing = [name for name in missing if name not in config]
    if missing:
        raise UserError(f"{cls.__name__}: no value for {', '.join(missing)}")
    return cls(**config)


def choose(name, table, what):
    """Return table[name].

    Raises
    ------
    UserError
        If there is no such name: it lists all and names the nearest. `what` is what the names are
        names of, such as "preset".
    """
    if not isinstance(name, str) or name not in table:  # a config file may hold a list
        names = ", ".join(table)
        raise UserError(f"unknown {what} {name!r}, not one of {names}{nearest(name, table)}")
    return table[name]


def nearest(word, words):
    """Return "; did you mean 'x'?" with the word most like `word`, or "" if none is."""
    near = difflib.get_close_matches(str(word), words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def device_failures():
    """Return the classes of FAILURES, of what has been imported."""
    modules = ((sys.modules.get(module), name) for name, module in FAILURES.items())
    return tuple(getattr(module, name) for module, name in modules if hasattr(module, name))


def one_line(error):
    """Text of an exception, or a text, without line breaks."""
    text = str(error)
    if isinstance(error, MemoryError):
        text = f"out of memory; a smaller batch, context or model needs less. {text}".rstrip()
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, device_failures()):
        line = next(filter(None, text.splitlines()), type(error).__name__)
        text = f"the device failed ({line}); `python -m minigpt.backend` checks it"
    return " ".join(text.splitlines())


def run(main):
    """Call `main` as a program: `if __name__ == "__main__": cli.run(main)`.

    What the user or the machine is the cause of ends without a traceback. Exit codes: what main
    returns; 2 after `error: ...` on standard error for a UserError, a lack of memory or a failing
    file or device; 130 after Ctrl-C; 141 if the reader of standard output has gone, as with
    `| head`. All else is a fault of the program, and its traceback is shown.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a text may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            status = main()
        except SystemExit as leaving:  # from --help and the parser's errors
            status = leaving.code
        sys.stdout.flush()  # here, where a failure can still be told
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except (UserError, MemoryError, OSError, *device_failures()) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 2
    try:
        sys.stdout.flush()
    except OSError:  # already told; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
