"""Command lines and configs: a frozen dataclass gives the flags, their help and the checks.

A config class holds fields of type int, float, bool or str, each possibly `| None`:

    @dataclass(frozen=True)
    class TrainConfig(cli.Config):
        '''Training.'''

        max_iters: int = option(2000, "training steps", min=1)
        dropout: float = option(0.0, "fraction of activations set to 0", min=0, below=1)
        optimizer: str = option("adamw", "update rule", choices=("adamw", "muon"))

Types, bounds and choices are checked wherever a value comes from (a flag, a TOML file, a
checkpoint, Python), with the same sentence. Checks of several fields together go into a
`__post_init__` that begins with `super().__post_init__()`. Fields made by `option` become flags;
plain fields are for code and checkpoints only, and their types are checked as well.
"""

import argparse
import dataclasses
import difflib
import functools
import numbers
import os
import sys
import typing
from dataclasses import MISSING
from types import NoneType

from minigpt.errors import UserError

VERSION = "0.1.0"

# Errors of a GPU at run time, and where CuPy has them. One of memory is a MemoryError.
FAILURES = {
    "CUDARuntimeError": "cupy_backends.cuda.api.runtime",
    "CUDADriverError": "cupy_backends.cuda.api.driver",
    "CUBLASError": "cupy_backends.cuda.libs.cublas",
    "NVRTCError": "cupy_backends.cuda.libs.nvrtc",
    "CompileException": "cupy.cuda.compiler",
}
METAVARS = {int: "N", float: "X", str: "TEXT"}
NEEDED = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    NoneType: "None",
}
SWITCH = {"true": True, "false": False}  # values of a flag that is on or off
NEAR = 0.7  # least similarity of a name that is suggested for another
OBVIOUS = 2**31  # upper bounds from here on are mentioned only when they are exceeded


def option(
    default,
    help,
    choices=None,
    metavar=None,
    flag=True,
    *,
    min=None,
    max=None,
    above=None,
    below=None,
    answers=None,
    group=None,
    rare=False,
):
    """Make a dataclass field that knows its help and its bounds, and is a flag as well.

    Parameters
    ----------
    default : int, float, bool, str or None
        `dataclasses.MISSING` makes the field required. The help shows no default for None: there
        the text has to say what leaving it out means.
    help : str
        Units belong here.
    choices : sequence of str, optional
        The only values that are accepted.
    metavar : str, optional
        Stands for the value in the help: N, X or TEXT by type if left out.
    flag : bool
        False for what the program finds out by itself.
    min, max : number, optional
        Bounds that are themselves accepted.
    above, below : number, optional
        Bounds that are not.
    answers : dict, optional
        Of values that other programs accept and this one does not: why, and what to use instead.
    group : str, optional
        Title in the help. If left out, the first line of the class's docstring.
    rare : bool
        Whether only --help-all shows the flag.
    """
    bounds = {"at least": min, "above": above, "at most": max, "below": below}
    metadata = {"help": help, "choices": choices, "metavar": metavar, "flag": flag}
    metadata |= {"bounds": {word: bound for word, bound in bounds.items() if bound is not None}}
    metadata |= {"answers": answers or {}, "group": group, "rare": rare}
    return dataclasses.field(default=default, metadata=metadata)


def option_of(cls, name, default):
    """Return the option `name` of a config class with another default, for a class made from it."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return dataclasses.field(default=default, metadata=field.metadata)


class Config:
    """Base of the config classes: every field is checked when a config is made.

    A whole number is accepted for a float, NumPy's numbers for Python's, a path for a string.

    Raises
    ------
    UserError
        If a value has the wrong type, is out of bounds or is not among the choices.
    """

    def __post_init__(self):
        for name, field in fields_of(type(self)).items():
            object.__setattr__(self, name, field.check(getattr(self, name), name))


class Field(typing.NamedTuple):
    """A field of a config class, with what a value of it has to be.

    Attributes
    ----------
    types : tuple of types
        Such as (float, NoneType).
    option : mapping
        What `option` was given; empty for a plain field.
    default : object
    """

    types: tuple
    option: typing.Mapping
    default: object

    @property
    def kind(self):
        """The type of values that are not None."""
        return next(t for t in self.types if t is not NoneType)

    def check(self, value, name):
        """Return a value as the type that the field needs.

        Raises
        ------
        UserError
            If it cannot be a value of the field. `name` is what the user knows the field by, such
            as "n_layer", "--n-layer" or "run.toml: n_layer".
        """
        value = converted(value, self.kind)
        if type(value) not in self.types or value != value:
            needed = " or ".join(NEEDED.get(t, f"a {t.__name__}") for t in self.types)
            raise UserError(f"{name} is {value!r:.60}; it must be {needed}")
        if value is None:
            return value
        choices, bounds = self.option.get("choices"), self.option.get("bounds", {})
        if choices and value not in choices:
            answer = self.option["answers"].get(value)
            why = f"; {answer}" if answer else nearest(value, choices)
            raise UserError(f"{name} is {value!r}; choose from {', '.join(choices)}{why}")
        wrong = {word for word, bound in bounds.items() if not WITHIN[word](value, bound)}
        if wrong:
            said = [w for w, bound in bounds.items() if w in wrong or bound < OBVIOUS]
            needed = " and ".join(f"{word} {short(bounds[word])}" for word in said)
            raise UserError(f"{name} is {value}; it must be {needed}")
        return value

    def read(self, text, name):
        """Return the value that a flag's text stands for; errors as those of `check`."""
        try:
            return self.check(self.kind(text), name)
        except UserError:
            raise
        except ValueError:
            return self.check(text, name)  # says what is needed


WITHIN = {
    "at least": lambda x, bound: x >= bound,
    "above": lambda x, bound: x > bound,
    "at most": lambda x, bound: x <= bound,
    "below": lambda x, bound: x < bound,
}


def converted(value, kind):
    """Return a value as `kind` where nothing is lost by it; else unchanged."""
    if isinstance(value, bool):
        return value
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and isinstance(value, numbers.Real):
        try:
            same = float(value)
        except OverflowError:
            return value
        return value if isinstance(value, numbers.Integral) and same != value else same
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def short(bound):
    """Return a bound as text: large powers of two as such."""
    power = bound.bit_length() - 1 if isinstance(bound, int) else 0
    return f"2**{power}" if power >= 16 and bound == 1 << power else f"{bound}"


@functools.cache
def fields_of(cls):
    """Return {name: Field} of a config class."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: Field(
            typing.get_args(hints[field.name]) or (hints[field.name],),
            field.metadata,
            field.default if field.default_factory is MISSING else field.default_factory(),
        )
        for field in dataclasses.fields(cls)
    }


def add_flags(parser, *config_classes, defaults=None):
    """Add a flag per option: `n_layer` becomes `--n-layer`, a bool `--bias` and `--no-bias`.

    The parsed namespace holds only what was given, so that presets and stored configs can fill in
    the rest. Options stand in the help under the title of their group, and by default each class
    is a group. Fields that a class has from a class before it are not repeated.

    Parameters
    ----------
    parser : Parser
    *config_classes : dataclasses
    defaults : dict, optional
        Values that the help shows in place of the fields' own defaults.
    """
    known, groups = set(), {}
    for cls in config_classes:
        for name, field in fields_of(cls).items():
            if not field.option.get("flag") or name in known:
                continue
            known.add(name)
            title = field.option["group"] or cls.__doc__.splitlines()[0].rstrip(".")
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            default = (defaults or {}).get(name, field.default)
            action = add_flag(groups[title], name, field, default)
            if field.option["rare"]:
                parser.hide(action)


def add_flag(group, name, field, default):
    """Add the flag of one field and return its action; `default` is only shown."""
    help, flag = field.option["help"], "--" + name.replace("_", "-")
    if default not in (None, MISSING, ""):
        shown = ("off", "on")[default] if isinstance(default, bool) else default
        help += f" (default: {shown})"
    settings = {"default": argparse.SUPPRESS, "help": help.replace("%", "%%")}
    if field.kind is bool:
        return group.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
    choices = field.option["choices"]
    metavar = field.option["metavar"] or METAVARS[field.kind]
    settings["metavar"] = "{" + ",".join(choices) + "}" if choices else metavar
    return group.add_argument(flag, action=Value, field=field, **settings)


class Value(argparse.Action):
    """The flag of a field: its text becomes a value of the field, or ends the program."""

    def __init__(self, option_strings, dest, field, **settings):
        super().__init__(option_strings, dest, **settings)
        self.field = field

    def __call__(self, parser, namespace, text, flag=None):
        try:
            setattr(namespace, self.dest, self.field.read(text, flag))
        except UserError as error:
            parser.error(str(error))


class HelpAll(argparse.Action):
    """Print the help with the flags that --help leaves out, and exit."""

    def __call__(self, parser, namespace, values, flag=None):
        for action, help in parser.hidden.items():
            action.help = help
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse's, with errors of one line, and flags as nanoGPT writes them.

    `--n_layer=4 --bias=False` is `--n-layer 4 --no-bias`.

    Attributes
    ----------
    answers : dict
        By the names of flags that do not exist, such as "--device": what to use instead.
    hidden : dict
        The actions that only --help-all shows, with their help.
    """

    answers, hidden = {}, {}

    def hide(self, action):
        """Leave the flag of an action to --help-all."""
        if not self.hidden:
            self.hidden = {}
            self.add_argument(
                "--help-all",
                action=HelpAll,
                nargs=0,
                default=argparse.SUPPRESS,
                help="show all flags, rare ones too",
            )
        self.hidden[action], action.help = action.help, argparse.SUPPRESS

    def parse_args(self, args=None, namespace=None):
        """Parse all arguments; what is left over is an error that exits with code 2."""
        args = self.canonical(sys.argv[1:] if args is None else args)
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            word = rest[0].split("=")[0]
            answer = self.answers.get(word.replace("_", "-"))
            if answer:
                self.error(f"{word}: {answer}")
            kind = "flag" if word.startswith("-") else "argument"
            near = nearest(word, self._option_string_actions) or "; --help lists the flags"
            self.error(f"unknown {kind} {word!r}{near}")
        return known

    def canonical(self, args):
        """Return arguments with a flag's underscores as dashes, and --bias=False as --no-bias."""
        words, found = [str(word) for word in args], []
        while words:
            word = words.pop(0)
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            action = self._option_string_actions.get(flag) if flag.startswith("--") else None
            if action is None:
                found.append(word)
                continue
            if action.nargs != 0:
                found.append(flag + equals + value)
                continue
            if not equals and words and words[0].lower() in SWITCH:
                equals, value = " ", words.pop(0)
            found += self.switch(flag, value, action) if equals else [flag]
        return found

    def switch(self, flag, value, action):
        """Return the arguments that a flag without a value, given one, stands for."""
        if flag.startswith("--no-") or value.lower() not in SWITCH:
            self.error(f"{flag} is {value!r:.60}; it must be True or False, or {flag} alone")
        if SWITCH[value.lower()]:
            return [flag]
        opposite = "--no-" + flag[2:]
        return [opposite] if opposite in action.option_strings else []

    def error(self, message):
        """Write `prog: error: message` to standard error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def parser(prog, description, answers=None):
    """Make a parser that takes no abbreviated flags, which a later flag could make ambiguous.

    Parameters
    ----------
    prog : str
        What the user types, such as "python -m minigpt.train".
    description : str
    answers : dict, optional
        As Parser's: {"--device": "use --backend numpy or --backend cupy"}.
    """
    made = Parser(
        prog=prog,
        usage="%(prog)s [flags]",
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    made.answers = answers or {}
    return made


def add_plain(parser):
    """Add the flag --plain; a program that has it runs under `minigpt.backend.plain(on)`."""
    parser.add_argument(
        "--plain",
        action="store_true",
        help="run the ops exactly as minigpt/ops has them, without faster overrides, so that a "
        "print or a breakpoint there is reached",
    )


def check_values(values, *config_classes, where=""):
    """Return a dict of options with each value checked, whatever class it is of.

    Parameters
    ----------
    values : dict
        By field name.
    *config_classes : dataclasses
    where : str
        What precedes a name in an error, such as "run.toml: ".

    Raises
    ------
    UserError
        If a name is unknown (the nearest is named), or as Field.check.
    """
    fields = {}
    for cls in config_classes:
        fields = {**fields_of(cls), **fields}
    checked = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}unknown option {name!r}{nearest(name, fields)}")
        checked[name] = fields[name].check(value, where + name)
    return checked


def build(cls, values):
    """Make a config from a dict of flags, a preset or a checkpoint.

    Parameters
    ----------
    cls : dataclass
    values : dict
        By field name.

    Raises
    ------
    UserError
        As check_values; if there is no value for a required field; and what `cls` itself raises.
    """
    config = check_values(values, cls)
    missing = [n for n, field in fields_of(cls).items() if field.default is MISSING]
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
        raise UserError(f"{what} is {name!r}; choose from {', '.join(table)}{nearest(name, table)}")
    return table[name]


def nearest(word, words):
    """Return "; did you mean 'x'?" with the word most like `word`, or "" if none is near.

    One that `word` is the beginning of is nearest. Dashes and underscores are not told apart.
    """
    plain = {other.lstrip("-").replace("_", "-"): other for other in reversed([*words])}
    word = str(word).lstrip("-").replace("_", "-")
    begin = [other for other in plain if len(word) > 2 and other.startswith(word)]
    near = difflib.get_close_matches(word, begin or plain, n=1, cutoff=0 if begin else NEAR)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def device_failures():
    """Return the classes of FAILURES, of what has been imported."""
    modules = ((sys.modules.get(module), name) for name, module in FAILURES.items())
    return tuple(getattr(module, name) for module, name in modules if hasattr(module, name))


def one_line(error):
    """Return the text of an exception, or a text, without line breaks."""
    text = str(error)
    if isinstance(error, MemoryError):
        why = f" ({' '.join(text.split())})" if text else ""
        text = f"out of memory{why}; use a smaller batch, context or model"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, device_failures()):
        line = next(filter(None, text.splitlines()), type(error).__name__)
        text = f"the GPU failed ({line}); check it with `python -m minigpt.backend`"
    return " ".join(text.splitlines())


def run(main):
    """Call `main` as a program: `if __name__ == "__main__": cli.run(main)`.

    Errors that the user or the machine caused end without a traceback. Exit codes: what main
    returns; 2 after `error: ...` on standard error for a UserError, a lack of memory or a failing
    file or GPU; 130 after Ctrl-C; 141 if the reader of standard output has closed it, as `| head`
    does. Anything else is a bug of the program, and its traceback is shown.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a text may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            status = main()
        except SystemExit as leaving:  # from --help and the parser's errors
            status = leaving.code
        sys.stdout.flush()  # here, where a failure can still be reported
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except (UserError, MemoryError, OSError, *device_failures()) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 2
    try:
        sys.stdout.flush()
    except OSError:  # already reported; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
