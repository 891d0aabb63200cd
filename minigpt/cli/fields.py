"""Configs: frozen dataclasses whose fields know their help, their types, bounds and choices.

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

import dataclasses
import difflib
import functools
import numbers
import os
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from types import NoneType

from minigpt.errors import UserError

NEEDED = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    NoneType: "None",
}


AUTO = "auto"
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
    several=False,
    path=False,
    auto=False,
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
    several : bool
        Whether a string stands for several, a line each: the flag takes all words up to the next
        flag and may be repeated; elsewhere they may come as a list.
    path : bool
        Whether the value names a file or folder: a "~" in front stands for the user's home, as in
        a shell.
    auto : bool
        Whether the word AUTO stands for None: a value that the program finds.
    """
    bounds = {"at least": min, "above": above, "at most": max, "below": below}
    metadata = {"help": help, "choices": choices, "metavar": metavar, "flag": flag}
    metadata |= {"bounds": {word: bound for word, bound in bounds.items() if bound is not None}}
    metadata |= {"answers": answers or {}, "group": group, "rare": rare}
    metadata |= {"several": several, "path": path, "auto": auto}
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
    option: Mapping
    default: object

    @property
    def kind(self):
        """The type of values that are not None."""
        return next(t for t in self.types if t is not NoneType)

    def is_none(self, value):
        """Tell whether a value is the word none, from a flag or TOML, and can only mean None."""
        return (
            isinstance(value, str)
            and value.lower() == "none"
            and NoneType in self.types
            and self.kind is not str
        )

    def check(self, value, name):
        """Return a value as the type that the field needs.

        Raises
        ------
        UserError
            If it cannot be a value of the field. `name` is what the user knows the field by, such
            as "n_layer", "--n-layer" or "run.toml: n_layer".
        """
        if self.option.get("several") and isinstance(value, list | tuple):
            good = value and all(map(is_name, value))
            value = "\n".join(map(os.fspath, value)) if good else value
        auto = self.option.get("auto")
        left_out = value == AUTO if auto else self.is_none(value)
        value = None if left_out else converted(value, self.kind)
        if type(value) not in self.types or value != value:
            words = NEEDED | {NoneType: AUTO} if auto else NEEDED
            needed = " or ".join(words.get(t, f"a {t.__name__}") for t in self.types)
            raise UserError(f"{name} is {value!r:.60}; it must be {needed}")
        if value is None:
            return value
        if self.option.get("path"):
            value = "\n".join(expand_home(path, name) for path in value.split("\n"))
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


def is_name(value):
    """Tell whether a value is a string or a path."""
    return isinstance(value, str | os.PathLike)


def expand_home(path, name):
    """Return a path with the user's home in place of "~" or "~user".

    Raises
    ------
    UserError
        If there is none: a folder named "~" would be made otherwise. `name` is that of the option.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith(("~/", "~" + os.sep)):
        raise UserError(
            f"{name} is {path!r:.60}, but there is no home folder for ~; give the whole path"
        )
    return expanded


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
