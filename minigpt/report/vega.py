"""Vega, Vega-Lite and vega-embed as one script, which draws the charts of pages.

It is of the library vl-convert, the extra `report`. Making it takes two seconds, nearly as much as
all else of a page, so that it is kept in the user's cache folder for the pages that follow.
"""

import contextlib
import functools
import hashlib
import importlib.util

from minigpt.cli import one_line
from minigpt.data.corpus import cache_folder
from minigpt.errors import UserError
from minigpt.files import replacing

INSTALL = "pip install 'minigpt[report]'"
LICENCE = (
    "// Vega, Vega-Lite and vega-embed: University of Washington Interactive Data Lab and "
    "contributors, BSD 3-clause licence\n"
)
NAME = "vega-{}.js"  # of the file, by the version of vl-convert


class NoLibrary(UserError):
    """The plotting library is not installed; the message, one line, says how to get it."""


def check_library():
    """Raise a NoLibrary if charts cannot be made, before the work for them."""
    if importlib.util.find_spec("vl_convert") is None:
        raise NoLibrary(f"the charts of a page need vl-convert-python: {INSTALL}")


@functools.cache
def library():
    """Return the script, 0.9 MB.

    Raises
    ------
    NoLibrary
    UserError
        If the library is there and fails.
    """
    check_library()
    try:
        import vl_convert

        folder = cache_folder()
        path = None if folder is None else folder / NAME.format(vl_convert.__version__)
        script = None if path is None else read_kept(path)
        if script is None:
            script = vl_convert.javascript_bundle()
            if path is not None:
                keep(path, script)
    except Exception as error:  # an extra fails in ways that nobody can list
        why = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"the charts of a page cannot be made: vl_convert: {why}") from error
    return LICENCE + script


def head_of(script):
    """Return the first line of the file of a script: its SHA-256."""
    return f"// {hashlib.sha256(script.encode('utf-8')).hexdigest()}\n"


def read_kept(path):
    """Return the script in a file; None if the file is missing or damaged."""
    try:
        head, end, script = path.read_bytes().decode("utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    return script if head + end == head_of(script) else None


def keep(path, script):
    """Write the script to a file, if that is possible, and delete those of other versions."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write((head_of(script) + script).encode("utf-8"))
        for other in path.parent.glob(NAME.format("*")):
            if other != path:
                other.unlink()
