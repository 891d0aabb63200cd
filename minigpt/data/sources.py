"""What --data names: files, folders, globs, standard input; and their text, a part at a time."""

import codecs
import contextlib
import glob
import io
import os
import sys
from typing import NamedTuple

from minigpt.cli import first_of
from minigpt.errors import UserError
from minigpt.files import MARK, METRICS, decode_utf8, not_utf8, opened

STDIN = "-"
TEXTS = (".txt", ".text", ".md", ".rst")  # what counts as a text in a folder
PART = 1 << 16  # bytes: few enough to stay in a processor's cache, and most parts are ASCII
SHOWN = 3  # names in a description


class Source(NamedTuple):
    """A file, standard input, or a text that is at hand.

    Attributes
    ----------
    path : str
        "-" is standard input.
    raw : bytes, optional
        The content, if it is at hand.
    """

    path: str
    raw: bytes | None = None

    @property
    def name(self):
        """What a description calls it."""
        return "standard input" if self.path == STDIN else self.path

    @property
    def where(self):
        """What an error message about it begins with."""
        return "standard input" if self.path == STDIN else f"--data {self.path}"

    def open(self, what="text file"):
        """Return a context manager: the content as a file that bytes are read from.

        `what` is what it should be, in errors.
        """
        if self.raw is not None:
            return io.BytesIO(self.raw)
        if self.path == STDIN:
            return io.BytesIO(read_stdin())
        return opened(self.path, "--data", what)

    def read(self, what="text file"):
        """Return the content as bytes; see `open`."""
        with self.open(what) as file:
            return file.read()


def find_sources(data, endings=TEXTS):
    """Return the files that --data names.

    A name is that of a file, of a folder (all files in it and in the folders below it that end in
    one of `endings`, sorted; hidden ones and the folders of runs are left out), a glob ("**" is
    any number of folders), or "-", standard input. A file that is there is never taken for a glob.
    Each file counts once, at its first place.

    Parameters
    ----------
    data : str, path or list of them
        A str may hold several names, one a line.
    endings : tuple of str
        In small letters; capital ones count as well.

    Returns
    -------
    sources : list of Source, at least one

    Raises
    ------
    UserError
        If a name stands for nothing.
    """
    names = data if isinstance(data, list | tuple) else os.fspath(data).split("\n")
    paths = [path for name in names for path in expand(os.fspath(name), endings)]
    once = {}
    for path in paths:
        once.setdefault(identity(path), Source(path))
    return [*once.values()]


def identity(path):
    """Return what two paths of one file have in common."""
    if path == STDIN or "\0" in path:
        return path
    return os.path.realpath(path)


def expand(name, endings):
    """Return the paths that one name stands for; it is never an empty list."""
    name = os.path.expanduser(name)
    if name == STDIN:
        return [name]
    if os.path.isdir(name):
        return folder_files(name, endings)
    if os.path.exists(name) or not glob.has_magic(name):
        return [name]  # who reads it says what is wrong with it
    found = sorted(path for path in glob.iglob(name, recursive=True) if not os.path.isdir(path))
    if not found:
        raise UserError(f"--data {name}: no file has a name like that")
    return found


def folder_files(folder, endings):
    """Return the paths of the files in a folder, at any depth, that end in one of `endings`."""

    def unreadable(error):
        raise UserError(f"--data {error.filename} cannot be read: {error.strerror}")

    found, others = [], 0
    for path, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if METRICS in files and path != folder:
            folders.clear()  # a run's folder
            continue
        files = [name for name in files if not name.startswith(".")]
        good = [name for name in files if name.lower().endswith(endings)]
        found += [os.path.join(path, name) for name in good]
        others += len(files) - len(good)
    if not found:
        needed = ", ".join(endings[:-1]) + " or " + endings[-1]
        other = f"none of its {others} files ends" if others else "it has no file that ends"
        raise UserError(
            f"--data {folder} is a folder, but {other} in {needed}; name other files one by one, "
            f"or by a glob in quotes: --data {os.path.join(folder, '**', '*.py')!r}, for example"
        )
    return sorted(found, key=lambda path: path.split(os.sep))


def is_pipe(path):
    """Tell whether it can be read only once: standard input, or what a shell makes of <()."""
    known = os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)
    return path == STDIN or not known


def hold(sources):
    """Return the sources with the content of those that can be read only once."""
    return [s._replace(raw=s.read()) if is_pipe(s.path) else s for s in sources]


def read_source(source, what="text file"):
    """Return the text of a source, which may be empty; `what` is what it should be, in errors.

    Raises
    ------
    UserError
        As files.read_text; or if standard input is closed.
    """
    return decode_utf8(source.read(what), source.where)


def read_parts(sources):
    """Iterate over the text of all sources as if they were one, a part at a time.

    A byte order mark in front of a source is left out, and a line that has no end at the end of a
    source gets one.

    Parameters
    ----------
    sources : list of Source

    Yields
    ------
    raw : bytes
        UTF-8, some PART bytes, never a part of a character.
    text : str
        The same.
    """
    last = b"\n"
    for source in sources:
        begins = True
        for raw, text in parts_of(source):
            if begins and not last.endswith(b"\n"):
                yield b"\n", "\n"
            begins, last = False, raw
            yield raw, text


def parts_of(source):
    """Iterate over the text of one source, as `read_parts`."""
    with source.open() as file:
        begin = block = file.read(PART)
        raw = begin.removeprefix(MARK)
        offset = len(begin) - len(raw)  # of `raw` in the file
        while raw or block:
            try:
                text, used = codecs.utf_8_decode(raw, "strict", not block)
            except UnicodeDecodeError as error:
                wrong = raw[error.start], offset + error.start
                raise not_utf8(source.where, begin, *wrong) from None
            if used:
                yield raw[:used], text
            offset += used
            block = file.read(PART) if block else b""
            raw = raw[used:] + block


def empty_note(sources):
    """Return a note, in a list, if some of several sources are empty."""
    empty = [s for s in sources if len(sources) > 1 and next(parts_of(s), None) is None]
    if not empty:
        return []
    verb = "is" if len(empty) == 1 else "are"
    names = first_of([source.name for source in empty], SHOWN)
    return [f"{len(empty)} of {len(sources)} files {verb} empty: {names}"]


def read_stdin():
    """Return the bytes of standard input, or raise a UserError if it is closed."""
    if sys.stdin is None:
        raise UserError("--data -: standard input is closed; name a file")
    return sys.stdin.buffer.read()


def describe(sources):
    """Return what the sources are called: "a.txt", or "3 files: a.txt, b.txt, c.txt"."""
    names = [source.name for source in sources]
    if len(names) == 1:
        return names[0]
    return f"{len(names)} files: {first_of(names, SHOWN)}"


def locate(data, folder, out_dir):
    """Return option data of a run that there is, perhaps in another folder than before.

    Each name is looked for in the folder where it was given, in the current one and, since there
    is what was kept, in the run's.

    Parameters
    ----------
    data : str or None
    folder : str
        Where it was given, if it has a relative name; else "".
    out_dir : str

    Raises
    ------
    UserError
        If a name is nowhere.
    """
    if data is None:
        return None
    return "\n".join(find_again(name, folder, out_dir) for name in data.split("\n"))


def find_again(name, folder, out_dir):
    """Return where the file, folder or glob is that one name stands for, as `locate`."""
    if folder and os.path.realpath(folder) == os.path.realpath(os.curdir):
        folder = ""  # the name as it was given
    for path in (os.path.join(folder, name), name, os.path.join(out_dir, os.path.basename(name))):
        with contextlib.suppress(UserError):
            if os.path.exists(find_sources([path])[0].path):
                return path
    place = "" if os.path.isabs(name) else f", given in {folder or os.getcwd()},"
    raise UserError(f"{name}{place} is not to be found; give it by --data")
