"""Where the text comes from: a file, tiny Shakespeare, or a text that comes with every Python."""

import contextlib
import hashlib
import math
import os
import queue
import threading
import time
from pathlib import Path

from minigpt.cli import note
from minigpt.data.sources import Source
from minigpt.errors import UserError
from minigpt.files import MARK, make_folder, read_bytes, write_atomically
from minigpt.locks import AlreadyLocked, acquire, release

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
NAME, REFERENCE = "tiny Shakespeare", "the Python language reference"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CONTACT = 2.0  # seconds until a server must have answered, tries and name look-up together
PAUSES = (0.2, 0.4)  # seconds between tries
STALL = 10.0  # seconds without a byte that end a download under way
WAIT = 60.0  # seconds to wait for another process that downloads


def builtin_source(name=None):
    """Return the text that is trained on where no other is given.

    It is tiny Shakespeare, from the file that MINIGPT_CORPUS names, else from the user's cache
    folder, else from the network; without a network the language reference that every Python
    holds, and a line on standard error that says so.

    Parameters
    ----------
    name : str, optional
        That of the text of a run that is resumed: REFERENCE stays itself where there is a network.

    Returns
    -------
    source : Source
        Its path is "tiny Shakespeare" or "the Python language reference".

    Raises
    ------
    UserError
        If MINIGPT_CORPUS names anything but tiny Shakespeare.
    """
    if name == REFERENCE:
        return Source(REFERENCE, reference_text().encode("utf-8"))
    corpus = os.environ.get("MINIGPT_CORPUS")
    raw = read_bytes(corpus, "MINIGPT_CORPUS") if corpus else _read_cache() or _fetch_once()
    if raw is None:
        return builtin_source(REFERENCE)
    if not _is_corpus(raw):
        raise UserError(
            f"MINIGPT_CORPUS {corpus} is not tiny Shakespeare: its SHA-256 is "
            f"{hashlib.sha256(raw).hexdigest()}, not {SHA256}{_difference(raw)}; name a copy of "
            f"{URL}, unset the variable, or give your own text by --data"
        )
    return Source(NAME, raw)


def _difference(raw):
    """Return what an editor has done to a copy of tiny Shakespeare, if that is all; else ""."""
    marked, crlf = raw.startswith(MARK), b"\r\n" in raw
    if not _is_corpus(raw.removeprefix(MARK).replace(b"\r\n", b"\n")):
        return ""
    added = ["a byte order mark in front"] * marked + ["CR LF at the ends of its lines"] * crlf
    return f": it has {' and '.join(added)}, and is right but for that"


def _is_corpus(raw):
    return hashlib.sha256(raw).hexdigest() == SHA256


def cache_folder():
    """Return the path of minigpt's folder in the user's cache, or None where there is none.

    It need not exist. A relative XDG_CACHE_HOME is ignored, as its specification asks; without a
    home, nothing is kept (https://specifications.freedesktop.org/basedir-spec).
    """
    named = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    for folder in (named, os.path.expanduser("~/.cache")):
        if os.path.isabs(folder):
            return Path(folder, "minigpt")
    return None


def cache_file():
    """Path of the user's own copy of tiny Shakespeare, which need not exist, or None."""
    folder = cache_folder()
    return folder and folder / "tinyshakespeare.txt"


def _read_cache():
    """Bytes of the user's copy, or None if there is none or it is damaged."""
    path = cache_file()
    try:
        raw = path.read_bytes() if path else b""
    except OSError:
        return None
    return raw if _is_corpus(raw) else None


@contextlib.contextmanager
def _take_turn():
    """Make other processes wait while this one downloads; if another one does, wait for it first.

    All that have waited continue at the same time: if the one before has found no network, they
    need not wait for one another to find none.
    """
    path, lock = cache_file(), None
    if path is None:
        yield
        return
    path = path.with_suffix(".lock")
    with make_folder(path.parent):
        with contextlib.suppress(OSError):
            try:
                lock = acquire(path)
            except AlreadyLocked:
                with contextlib.suppress(AlreadyLocked):
                    release(acquire(path, WAIT))
        try:
            yield
        finally:
            release(lock)


def _fetch_once():
    """Bytes of the copy that another process has just made, or else from the network."""
    with _take_turn():
        return _read_cache() or _download_to_cache()


def _download_to_cache():
    """Bytes of tiny Shakespeare from the network, kept in the cache; None if out of reach."""
    try:
        raw = _download()
    except ConnectionError as error:
        note(
            f"cannot download tiny Shakespeare ({error}); using {REFERENCE} instead; "
            "give your own text by --data FILE"
        )
        return None
    path = cache_file()
    if path is None:
        note("downloaded tiny Shakespeare; it is not kept, as there is no home folder")
        return raw
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [raw])
        note(f"downloaded tiny Shakespeare to {path}")
    except OSError as error:
        note(f"downloaded tiny Shakespeare, but cannot keep it in {path}: {error.strerror}")
    return raw


def _download():
    """Try to get tiny Shakespeare, again after a failure, until CONTACT seconds have passed."""
    deadline = time.monotonic() + CONTACT
    for pause in (*PAUSES, math.inf):
        try:
            raw = _fetch(max(deadline - time.monotonic(), 0.0))
            if _is_corpus(raw):
                return raw
            failure = ConnectionError("what came has the wrong checksum")
        except ConnectionError as error:
            failure = error
        if time.monotonic() + pause >= deadline:
            raise failure
        time.sleep(pause)


def _fetch(patience):
    """Return the bytes at URL.

    A thread of its own reads, because some waiting (a name look-up that hangs) has no timeout: it
    is left behind if it has nothing in time.

    Parameters
    ----------
    patience : float
        Seconds until the server must have answered. After that STALL holds, from byte to byte.

    Raises
    ------
    ConnectionError
        If anything at all goes wrong.
    """
    import urllib.request  # slow to import, and seldom needed

    arrived = queue.SimpleQueue()  # b"" at the answer, then the file in parts, then None

    def read():
        try:
            with urllib.request.urlopen(URL, timeout=STALL) as response:
                arrived.put(b"")
                while part := response.read(4096):  # returns when all 4096 are there
                    arrived.put(part)
            arrived.put(None)
        except Exception as error:  # whatever name servers, proxies and TLS come up with
            arrived.put(error)

    try:
        threading.Thread(target=read, daemon=True).start()
    except RuntimeError as error:  # the system allows no more threads
        raise ConnectionError(error) from None
    raw = bytearray()
    try:
        while (part := arrived.get(timeout=patience)) is not None:
            if isinstance(part, Exception):
                raise ConnectionError(getattr(part, "reason", part))
            raw += part
            patience = STALL
    except queue.Empty:
        raise ConnectionError("no answer" if not raw else "the connection stalled") from None
    return bytes(raw)


def reference_text():
    """Return the text that comes with every Python: its language reference, by topic."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "there is no text: this Python lacks pydoc_data; give a text file by --data FILE"
        ) from None
    return "\n".join(topics[name] for name in sorted(topics))
