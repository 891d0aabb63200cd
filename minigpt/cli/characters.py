"""Characters as people see them: in tables and messages, with escapes for what cannot be seen."""

import re
import unicodedata

# Part of a neighbour: vowels and finals of conjoining Hangul, fillers, flags' letters, skin tones.
JOINING = re.compile(
    "[\u115f-\u11ff\u3164\ud7b0-\ud7ff\uffa0\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]"
)
GAP = "  "  # between the columns of a table
NAMES = {"\t": "TAB", "\n": "LINE FEED", "\r": "CARRIAGE RETURN", "\ufeff": "BYTE ORDER MARK"}
CATEGORIES = {"Cc": "a control character", "Cs": "a byte that is not UTF-8", "Co": "private use"}


def visible(token):
    r"""Return a token in a form that can be seen and takes known room: a tab is \t, a space ' '."""
    shown = "".join(map(visible_char, token))
    return f"'{shown}'" if token != token.strip(" ") else shown


def visible_char(char):
    """Return a character, or its escape if it is not printable or would change its neighbour."""
    joins = unicodedata.category(char).startswith("M") or JOINING.match(char)
    return char if char.isprintable() and not joins else ascii(char)[1:-1]


def quoted(text):
    r"""Return a text in quotes, with escapes for what cannot be seen or changes its neighbour."""
    return "".join(map(visible_char, repr(text)))


def described(char):
    """Return a character in quotes and, unless it is plain ASCII, what Unicode calls it."""
    if char.isascii() and char.isprintable():
        return quoted(char)
    category = unicodedata.category(char)
    name = NAMES.get(char) or unicodedata.name(char, CATEGORIES.get(category, "unassigned"))
    return f"{quoted(char)} (U+{ord(char):04X} {name})"


def pad(text, width):
    """Return a text with spaces after it, as wide as `width` columns of a terminal."""
    return text + " " * (width - display_width(text))


def display_width(text):
    """Columns that a text as `visible` shows it takes in a terminal.

    Chinese, Japanese, Korean and emoji take two a character, by the tables of Unicode in Python. A
    terminal may have other tables: they differ in some 200 symbols.
    """
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def wrap(text, width):
    """Cut a text into parts that take at most `width` columns each, as far as a character does."""
    parts, room = [""], width
    for char in text:
        room -= display_width(visible_char(char))
        if room < 0 and parts[-1]:
            parts.append("")
            room = width - display_width(visible_char(char))
        parts[-1] += char
    return parts


def token_table(tokens, columns=12, width=78):
    """Return the `id token` pairs as a grid of text, filled row by row.

    Parameters
    ----------
    tokens : sequence of str
        The labels of the tokens, in the order of their ids.
    columns : int
        Of the grid, at most.
    width : int
        Columns of a terminal that a row may take, as far as there are two in it.
    """
    digits = len(str(len(tokens) - 1))
    cells = [f"{i:{digits}} {visible(token)}" for i, token in enumerate(tokens)]
    for n in range(columns, 0, -1):
        widths = [max(map(display_width, cells[i::n])) for i in range(len(cells[:n]))]
        if sum(widths) + len(GAP) * (len(widths) - 1) <= width:
            break
    rows = [cells[start : start + n] for start in range(0, len(cells), n)]
    return "\n".join(GAP.join(map(pad, row, widths)).rstrip() for row in rows)
