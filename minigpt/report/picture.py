"""Pictures with matplotlib, an extra that may be missing, broken or set up for something else."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

from minigpt.cli import one_line
from minigpt.errors import UserError
from minigpt.files import write_atomically

LIKELY = re.compile("CJK|Noto|Emoji|Unicode|Unifont|WenQuanYi|Symbol")  # fonts of many characters
NO_GLYPHS = "Last Resort", "Last Resort High-Efficiency"  # a box with a picture for each script
ENDINGS = ".png", ".svg", ".pdf"


class NoPicture(UserError):
    """A picture cannot be made; the message, one line, says why."""


class NotInstalled(NoPicture):
    """There is no matplotlib."""


@contextlib.contextmanager
def drawing():
    """Draw in this context: it gives matplotlib's Figure, which needs no display.

    Raises
    ------
    NoPicture
        Whatever fails in the context or on the way into it.
    """
    try:
        yield load_figure()
    except NoPicture:
        raise
    except Exception as error:  # an extra fails in ways that nobody can list
        why = one_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise NoPicture(one_line(why)) from error


def load_figure():
    """Return matplotlib's class Figure.

    MPLBACKEND, which says how windows are opened, may name what only a notebook has; no window is
    opened here, so that matplotlib is loaded without it then.
    """
    try:
        return import_figure()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "matplotlib":
            raise NotInstalled("matplotlib is not installed: pip install 'minigpt[plot]'") from None
        raise
    except ValueError:
        backend = os.environ.pop("MPLBACKEND", None)
        if backend is None:
            raise
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[name]  # half of it is loaded
        try:
            return import_figure()
        finally:
            os.environ["MPLBACKEND"] = backend


def import_figure():
    """Import and return matplotlib's class Figure."""
    from matplotlib.figure import Figure

    return Figure


def save(figure, path, dpi):
    """Write a figure to a file, whole or not at all, in the format of its ending."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format=Path(path).suffix[1:].lower())
    write_atomically(Path(path), [picture.getbuffer()])


def fonts_for(chars):
    """Return the families of installed fonts that have the characters, the usual one first.

    Parameters
    ----------
    chars : set of str

    Returns
    -------
    families : list of str
    missing : set of str
        The characters that no font has.
    """
    from matplotlib import font_manager

    families, missing = ["DejaVu Sans"], set(chars)
    fonts = font_manager.fontManager.ttflist
    regular = sorted(fonts, key=lambda font: (font.weight, font.style) == (400, "normal"))
    files = {font.name: font.fname for font in regular if font.name not in NO_GLYPHS}
    for name in sorted(files, key=lambda name: (name not in families, not LIKELY.search(name))):
        if not missing:
            break
        try:
            known = missing.intersection(map(chr, font_manager.get_font(files[name]).get_charmap()))
        except (OSError, RuntimeError, ValueError):
            continue  # of bitmaps, or damaged
        missing -= known
        if known and name not in families:
            families.append(name)
    return families, missing


def check_picture(path, where="--picture"):
    """Raise a UserError if no picture can be made at `path`, before the work for it is done.

    Parameters
    ----------
    path : str
        Its ending is the format: one of ENDINGS.
    where : str
        What named the file; errors begin with it.
    """
    file, endings = Path(path), f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"{where} is {path!r}; it must be a file that ends in {endings}")
    if not file.parent.is_dir():
        raise UserError(f"{where} {path}: there is no folder {file.parent}; make it first")
    if file.is_dir():
        raise UserError(f"{where} {path} is a folder; name a file")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{where} {path} cannot be written; name another file")
    try:
        with drawing():
            pass
    except NoPicture as why:
        raise UserError(f"{where} {path}: {why}") from None
