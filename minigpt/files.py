"""Files: reading text, writing that is whole or not at all; the names in a run's folder."""

import codecs
import contextlib
import errno
import glob
import json
import os
import secrets
import time
from pathlib import Path

from minigpt.errors import UserError

METRICS, PICTURE, PAGE = "metrics.jsonl", "loss.png", "report.html"
BEST, LAST = "best.safetensors", "last.safetensors"
RUN_FILES = METRICS, BEST, LAST, PICTURE, PAGE
PAUSES_S = 0.1, 0.3, 0.6  # seconds before each further try at writing
LASTING = errno.EFBIG, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG
TEMPORARY = ".tmp"  # how the name of a file ends that is being written
LEFT_S = 3600.0  # after which a file that was being written is of a process that is dead
TOO_LARGE = 1e300  # for a number in the metrics; what is not finite is not below it, either
READ_ONLY = "it is marked read-only; allow writing by `chmod u+w`, or name another"

MARK = codecs.BOM_UTF8
CONVERT = "{0}; convert it: iconv -f {0} -t UTF-8 old.txt > new.txt"
FOREIGN = {  # how bytes begin that are not UTF-8, and what they are then; UTF-32 before UTF-16
    codecs.BOM_UTF32_LE: CONVERT.format("UTF-32"),
    codecs.BOM_UTF32_BE: CONVERT.format("UTF-32"),
    codecs.BOM_UTF16_LE: CONVERT.format("UTF-16"),
    codecs.BOM_UTF16_BE: CONVERT.format("UTF-16"),
    b"\x1f\x8b": "compressed by gzip; unpack it first: gunzip -k FILE",
    b"PK\x03\x04": "a ZIP archive, as .docx and .xlsx files are; save its text as a file first",
    b"%PDF-": "a PDF; take its text out of it first: pdftotext FILE.pdf",
}


def read_text(path, where, what="text file", empty=True):
    """Read a text file in UTF-8, every character as it is, but for a byte order mark in front.

    Parameters
    ----------
    path : str or path
    where : str
        What named the file, such as "--data"; errors begin with it.
    what : str
        What the file should be.
    empty : bool
        Whether it may be empty.

    Raises
    ------
    UserError
        If the file is missing, a folder, unreadable or not UTF-8, or empty where it may not be.
    """
    text = decode_utf8(read_bytes(path, where, what), f"{where} {path}")
    if not (text or empty):
        raise UserError(f"{where} {path} is empty; name a file with text in it")
    return text


def read_metrics(folder, damaged=None):
    """Yield the metrics of a run, a dict per line, without what a killed run left half-written.

    Parameters
    ----------
    folder : Path
    damaged : list, optional
        Receives the numbers, from 1, of the lines that are not a line of metrics. One at the end
        that is torn is of a run at work or of one that was killed, and no damage.

    Raises
    ------
    OSError
        If the folder has none.
    """
    with open(folder / METRICS, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if are_metrics(line):
                yield line
            elif damaged is not None and text.endswith("\n") and text.strip():
                damaged.append(number)


def are_metrics(line):
    """Tell whether JSON is a line of metrics: a step, finite numbers or nothing, and a sample."""
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    measures = line | {"sample": None}
    return is_sample(line.get("sample")) and all(
        value is None or type(value) in (int, float) and abs(value) < TOO_LARGE
        for value in measures.values()
    )


def is_sample(value):
    """Tell whether JSON is a sample: nothing, a text, or answers to sources."""
    if not isinstance(value, list):
        return value is None or isinstance(value, str)
    return all(isinstance(one, dict) and isinstance(one.get("source"), str) for one in value)


@contextlib.contextmanager
def opened(path, where, what="text file"):
    """Open a file to read bytes. The parameters and the errors are those of `read_text`."""
    if os.path.isdir(path):
        raise UserError(f"{where} {path} is a folder; name a {what}")
    try:
        with open(path, "rb") as file:
            yield file
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where} {path} cannot be read: {reason}; name a {what}") from None


def read_bytes(path, where, what="text file"):
    """Read a file. The parameters and the errors are those of `read_text`."""
    with opened(path, where, what) as file:
        return file.read()


def decode_utf8(raw, where):
    """Return bytes as text, without a byte order mark in front.

    Raises
    ------
    UserError
        It begins with `where` and names the first byte that does not fit.
    """
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(where, raw, raw[error.start], error.start) from None


def not_utf8(where, begin, byte, offset):
    """Return the UserError for bytes that are not UTF-8: what they are, if that can be seen.

    Parameters
    ----------
    where : str
        What the error begins with.
    begin : bytes
        The first ones.
    byte, offset : int
        The first that does not fit, and where it is.
    """
    for mark, kind in FOREIGN.items():
        if begin.startswith(mark):
            return UserError(f"{where} is {kind}")
    return UserError(
        f"{where} is not UTF-8: byte 0x{byte:02x} at offset {offset} (counted from 0) does not "
        "fit; convert it first, for example by `iconv -f GBK -t UTF-8 old.txt > new.txt`"
    )


def write_atomically(path, parts):
    """Write a file so that at any moment there is a whole one at `path`: the old or the new.

    The parts go to a temporary file, which is synced and then renamed; the folder is synced, too.
    A symbolic link stays: the file that it points to is replaced. What fails is tried again, since
    virus scanners, backups and network disks get in the way for a moment.

    Parameters
    ----------
    path : Path
    parts : sequence of bytes or contiguous arrays

    Raises
    ------
    OSError
        What was at `path` is unchanged then, and the temporary file is gone.
    """
    path = real_path(path)
    if marked_read_only(path):
        raise PermissionError(errno.EACCES, READ_ONLY, str(path))
    remove_leftovers(path, LEFT_S)
    again(lambda: replace(path, parts))


def again(act):
    """Call a function, again after PAUSES_S if it fails with an OSError; return its result.

    Errors that no pause will end are raised at once.
    """
    for pause in PAUSES_S:
        try:
            return act()
        except OSError as error:
            if error.errno in LASTING:
                raise
            time.sleep(pause)
    return act()


def real_path(path):
    """Return the path of the file that `path` is a symbolic link to, or `path`."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


@contextlib.contextmanager
def replacing(path):
    """Open a temporary file that replaces the one at `path` at the end; an error removes it."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def replace(path, parts):
    """Write the parts of a file to the disk, and only then give them the name of the file."""
    with replacing(path) as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(OSError):  # Windows and some network disks cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def make_folder(folder):
    """Make a folder, if that is possible; what was made is removed at the end if it is empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()


def marked_read_only(path):
    """Tell whether a file or folder has no permission to write, for anybody."""
    try:
        return not os.stat(path).st_mode & 0o222
    except OSError:
        return False


def remove_file(path):
    """Remove a file, if it is there.

    A symbolic link stays: the file that it points to is removed.
    """
    path = real_path(path)
    path.unlink(missing_ok=True)


def remove_leftovers(path, age_s):
    """Remove what killed processes have left half-written of a file, if it is so old."""
    for left in path.parent.glob(f"{glob.escape(path.name)}*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime >= age_s:
                left.unlink()


def append(path, added):
    """Add whole lines or records, str or bytes, to a file, all or nothing; a failure is retried.

    Raises
    ------
    OSError
        The file is as before then.
    """

    added = added.encode("utf-8") if isinstance(added, str) else added

    def act():
        with open(path, "ab", buffering=0) as file:
            raw, size = memoryview(added), os.fstat(file.fileno()).st_size
            try:
                while raw:
                    raw = raw[file.write(raw) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise

    again(act)


def describe_size(size):
    """Return a number of bytes as text, such as 12 kB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.1f} {unit}" if unit in ("MB", "GB") else f"{size:.0f} {unit}"


@contextlib.contextmanager
def writing(path):
    """Make a UserError of what goes wrong while `path` is written."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
