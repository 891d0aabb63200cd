"""Flags: the command line of a program, made from its config classes."""

import argparse
import sys
from dataclasses import MISSING

from minigpt.cli.fields import fields_of, nearest
from minigpt.cli.program import one_line
from minigpt.cli.terminal import as_utf8, shell_word
from minigpt.errors import UserError

METAVARS = {int: "N", float: "X", str: "TEXT"}
SWITCH = {"true": True, "false": False}  # values of a flag that is on or off


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
            value = self.field.read(as_utf8(text, flag) if self.metavar == "TEXT" else text, flag)
        except UserError as error:
            parser.error(str(error))
        if self.field.option["several"] and hasattr(namespace, self.dest):
            value = getattr(namespace, self.dest) + "\n" + value
        setattr(namespace, self.dest, value)


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

    def allow_one(self, given, one, other):
        """Exit with an error if both of two options were given; `given` has their names."""
        if one in given and other in given:
            one, other = (name.replace("_", "-") for name in (one, other))
            self.error(f"--{one} and --{other}: give one of the two")

    def canonical(self, args):
        """Return arguments with a flag's underscores as dashes, and its value behind a "=".

        So a value may begin with a dash. --bias=False becomes --no-bias.
        """
        words, found = [str(word) for word in args], []
        while words:
            word = words.pop(0)
            flag, action, value = self.split(word)
            if action is None or action.nargs not in (0, None):
                found.append(word)
            elif action.nargs == 0:
                if value is None and words and words[0].lower() in SWITCH:
                    value = words.pop(0)
                found += [flag] if value is None else self.switch(flag, value, action)
            else:
                values = self.take(flag, action, words) if value is None else [value]
                found += [f"{flag}={value}" for value in values]
        return found

    def split(self, word):
        """Return the flag that an argument is, its action and the value in it, as far as known."""
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        return flag, self._option_string_actions.get(flag), value if equals else None

    def take(self, flag, action, words):
        """Take a flag's value off the words behind it, or several: until one begins with a dash."""
        if not words:
            self.error(f"{flag}: expected a value")
        if self.split(words[0])[1] is not None:
            follows = words[0]
            self.error(
                f"{flag}: expected a value, but {follows} follows; write "
                f"{flag}={shell_word(follows)} if it is meant"
            )
        taken = [words.pop(0)]
        if isinstance(action, Value) and action.field.option["several"]:
            while words and (words[0] == "-" or not words[0].startswith("-")):
                taken.append(words.pop(0))
        return taken

    def _get_values(self, action, arg_strings):
        """As argparse's, which before Python 3.13 loses a value that is "--"."""
        if isinstance(action, Value):
            return arg_strings[0]
        return super()._get_values(action, arg_strings)

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
