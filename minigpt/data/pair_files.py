"""Files of pairs: TSV, CSV or JSONL, told apart by their endings.

    .tsv .tab .txt     source TAB target, a pair per line
    .csv               source,target as RFC 4180 has it: quotes, and line breaks within them; with
                       semicolons or TABs for commas where the first row has them; where a header
                       has blanks after them, blanks there count nowhere
    .jsonl .ndjson     an object with a key for each side, or a list of the two, per line
    .json              the same, or one list of them all

Any other file, and standard input, is what its first line looks like. A table may begin with a
header, which names the two columns, and others that are left out. KEYS has the names that count,
in a header and in an object.
"""

import csv
import io
import json
from pathlib import PurePath
from typing import NamedTuple

from minigpt.cli import first_of, plural
from minigpt.cli.terminal import SURROGATES
from minigpt.data.sources import SHOWN, describe, find_sources, read_source
from minigpt.errors import UserError

SIDES = ("source", "target")
KEYS = (  # the first two that are there count
    SIDES,
    ("src", "tgt"),
    ("input", "output"),
    ("prompt", "completion"),
    ("question", "answer"),
)
HEADER = object()  # stands for the line that names the columns
FIELD = 2**31 - 1  # characters: the most that module csv can be told everywhere


class PairFile(NamedTuple):
    """What a file of pairs holds.

    Attributes
    ----------
    pairs : list of (source, target)
    lines : list of int or str
        The number of each pair's line; "item 3" where there are no lines.
    bad : list of (int or str, str)
        The lines that are no pairs: their numbers, and what is wrong: "has 0 TABs, ...".
    blank, headers : int
        Lines that were left out.
    """

    pairs: list
    lines: list
    bad: list
    blank: int
    headers: int


def parse_pairs(text, name="", header=True):
    """Return the PairFile of a text.

    Parameters
    ----------
    text : str
    name : str
        Of the file; its ending tells the format.
    header : bool
        Whether a table in TSV may begin with a header; others may.
    """
    read = FORMATS.get(PurePath(name).suffix.lower()) or format_like(text)
    pairs, lines, bad, blank, headers = [], [], [], 0, 0
    for number, item in read(text, header):
        if item is None:
            blank += 1
        elif item is HEADER:
            headers += 1
        elif problem := item if isinstance(item, str) else problem_of(item):
            bad.append((number, problem))
        else:
            pairs.append(tuple(item))
            lines.append(number)
    return PairFile(pairs, lines, bad, blank, headers)


def line_name(where, number):
    """Return what errors call a line of what they call `where`."""
    return f"{where}, {number if isinstance(number, str) else f'line {number}'}"


def read_files(data, header=True):
    """Return (list of (what errors call it, PairFile), name) of what --data names.

    Parameters
    ----------
    data : str, path or list of them
        As in sources.find_sources.
    header : bool

    Raises
    ------
    UserError
        If a file cannot be read, or all of them are empty.
    """
    sources = find_sources(data, tuple(FORMATS))
    texts = (read_source(source, "file of pairs") for source in sources)
    files = [
        parse_pairs(text, source.path, header) for source, text in zip(sources, texts, strict=True)
    ]
    name = describe(sources)
    if not any(file.pairs or file.bad for file in files):
        raise UserError(f"--data {name} is empty; name a file with pairs in it")
    return [*zip((source.where for source in sources), files, strict=True)], name


def read_pairs(data, header=True):
    """Return (pairs, notes, name) of what --data names; see `read_files`.

    Raises
    ------
    UserError
        If a line is no pair: it names the first, and how many there are.
    """
    files, name = read_files(data, header)
    pairs = [pair for _, file in files for pair in file.pairs]
    bad = [(where, *line) for where, file in files for line in file.bad]
    if bad:
        where, number, problem = bad[0]
        n = len(bad)
        rest = f" ({n:,} of {n + len(pairs):,} lines are no pairs)" if n > 1 else ""
        raise UserError(f"{line_name(where, number)} {problem}{rest}")
    return pairs, left_out([file for _, file in files]) + no_header(files), name


def left_out(files):
    """Return what has been left out of files, a sentence each."""
    kinds = {
        "blank line": sum(file.blank for file in files),
        "header": sum(file.headers for file in files),
    }
    return [f"left out: {plural(n, kind)}" for kind, n in kinds.items() if n]


def no_header(files):
    """Return a note, in a list, on files of a spreadsheet whose first line is taken for a pair.

    Parameters
    ----------
    files : list of (what errors call it, PairFile)
    """
    names = [
        where.removeprefix("--data ")
        for where, file in files
        if where.lower().endswith(".csv") and file.pairs and not file.headers
    ]
    if not names:
        return []
    taken = "its first line is taken for a pair"
    if len(names) > 1:
        taken = "their first lines are taken for pairs"
    return [f"{first_of(names, SHOWN)}: no header; {taken}"]


def format_like(text):
    """Return the reader of a text whose file has no ending that tells."""
    first = text.lstrip().partition("\n")[0]
    if "\t" not in first:
        if first.startswith(("{", "[")):
            return read_json
        if "," in first:
            return read_csv
    return read_tsv


def file_name(raw):
    """Return the name of a file for pairs that come as bytes, by their format."""
    read = format_like(raw[:1000].decode("utf-8", "replace"))
    return "data" + next(ending for ending, reader in FORMATS.items() if reader is read)


def problem_of(pair):
    """Return what is wrong with the two sides of a pair, or None."""
    for name, side in zip(SIDES, pair, strict=True):
        if not isinstance(side, str):
            return f"has the {name} {side!r:.60}, which is no string; put it in quotes"
        if not side:
            return f"has an empty {name}; fill it in or delete the line"
        if half := SURROGATES.search(side):
            return f"has {half[0]!r} in its {name}, half of a surrogate pair, which is no character"
    return None


def split_lines(text):
    """Return the lines of a text, whose ends are LF, CR LF or, where it has no LF, CR."""
    end = "\n" if "\n" in text else "\r"
    return [line.removesuffix("\r") for line in text.removesuffix(end).split(end)]


def read_tsv(text, header):
    """Yield (line number, item) of a text in TSV.

    An item is a pair, HEADER, None for a blank line, or a str: what is wrong with the line.
    """
    rows = ((i, line.split("\t")) for i, line in enumerate(split_lines(text), 1))
    return read_table(rows, header, tabs_needed)


def tabs_needed(n, width):
    """Return what is wrong with a line of n columns."""
    needed = "exactly one: source TAB target" if width == 2 else f"{width - 1}, as the header"
    return f"has {plural(n - 1, 'TABs')}, but needs {needed}"


def read_csv(text, header):
    """Yield (line number, item) of a text in CSV, as `read_tsv`."""
    return read_table(csv_rows(text), True, columns_needed)


def columns_needed(n, width):
    """Return what is wrong with a row of n columns."""
    needed = "two: source,target" if width == 2 else f"{width}, as the header"
    return f"has {plural(n, 'columns')}, but needs {needed}"


def csv_rows(text):
    """Yield (number of its first line, row) of a text in CSV; a str says what is wrong with one."""
    delimiter = delimiter_of(text)
    rows = csv_reader(text, delimiter, skips_blanks(text, delimiter))
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            row = f"is not CSV: {error}"
        if row is None:
            return
        yield number, row


def delimiter_of(text):
    """Return what parts the columns of a text in CSV: spreadsheets have several habits."""
    for delimiter in ",;\t":
        if len(first_row(text, delimiter)) > 1:
            return delimiter
    return ","


def skips_blanks(text, delimiter):
    """Tell whether a text in CSV has a header with blanks after its delimiters."""
    plain, skipped = (first_row(text, delimiter, skip) for skip in (False, True))
    return plain[1:] != skipped[1:] and find_keys(names_in(skipped)) is not None


def first_row(text, delimiter, skip=False):
    """Return the first row of a text in CSV that is not blank; [] if its quotes do not fit."""
    try:
        return next(filter(any, csv_reader(text, delimiter, skip)), [])
    except csv.Error:
        return []


def csv_reader(text, delimiter, skip=False):
    """Return an iterator over the rows of a text in CSV.

    Parameters
    ----------
    text, delimiter : str
    skip : bool
        Whether blanks after a delimiter are left out.
    """
    csv.field_size_limit(FIELD)  # of the whole process; as it comes, 131,072
    file = io.StringIO(text, newline="")
    return csv.reader(file, delimiter=delimiter, skipinitialspace=skip, strict=True)


def read_table(rows, header, needed):
    """Yield (line number, item) of the rows of a table, as `read_tsv`.

    Parameters
    ----------
    rows : iterator over (line number, list of str, or what is wrong with it)
    header : bool
        Whether the first may be one.
    needed : callable
        (columns, columns needed) -> what is wrong with a row that has others.
    """
    columns, width = None, 2
    for number, row in rows:
        if isinstance(row, str):
            yield number, row
            continue
        if not any(row) or (len(row) == 1 and row[0].isspace()):
            yield number, None
            continue
        if columns is None:
            names = names_in(row)
            keys = find_keys(names) if header else None
            columns = [names.index(key) for key in keys or ()] or [0, 1]
            if keys:
                width = len(row)
                yield number, HEADER
                continue
        yield number, [row[i] for i in columns] if len(row) == width else needed(len(row), width)


def names_in(row):
    """Return the names of columns in a row, as find_keys knows them."""
    return [cell.strip().casefold() for cell in row]


def find_keys(names):
    """Return the first of KEYS that are both among some names, or None."""
    return next((keys for keys in KEYS if all(key in names for key in keys)), None)


def read_json(text, header):
    """Return an iterator over (line number, item) of JSON, as `read_tsv`.

    Of one list of all, the numbers are "item 1", ...
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):  # as a rule: there is more than one line
        whole = None
    if isinstance(whole, list) and all(isinstance(record, dict | list) for record in whole):
        return ((f"item {i}", pair_in(record)) for i, record in enumerate(whole, 1))
    return ((i, json_item(line)) for i, line in enumerate(split_lines(text), 1))


def json_item(line):
    """Return the item of a line of JSON."""
    if not line.strip():
        return None
    try:
        return pair_in(json.loads(line))
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"


def pair_in(record):
    """Return the pair in a value of JSON, or what is wrong with it."""
    keys = find_keys(record) if isinstance(record, dict) else None
    if keys:
        return [record[key] for key in keys]
    if isinstance(record, list) and len(record) == 2:
        return record
    named = " or ".join("/".join(keys) for keys in KEYS)
    return f"needs the keys {named}, or a list of two strings"


FORMATS = {
    **dict.fromkeys((".tsv", ".tab", ".txt"), read_tsv),
    ".csv": read_csv,
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), read_json),
}
