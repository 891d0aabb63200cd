"""Where the text comes from: a file, tiny Shakespeare, or a text that comes with every Python."""

import contextlib
import hashlib
import math
import os
import queue
import sys
import threading
import time
from pathlib import Path

from minigpt.data.sources import describe, find_sources, joined_text
from minigpt.errors import UserError
from minigpt.files import read_bytes, write_atomically
from minigpt.locks import AlreadyLocked, acquire, release

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
REFERENCE = "the Python language reference"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CONTACT = 2.0  # seconds until a server must have answered, tries and name look-up together
PAUSES = (0.2, 0.4)  # seconds between tries
STALL = 10.0  # seconds without a byte that end a download under way
WAIT = 60.0  # seconds to wait for another process that downloads


def load_text(path=None):
    """Read a text, every character as it is in the file (but for a byte order mark).

    Parameters
    ----------
    path : str or path, optional
        A UTF-8 file. If left out: tiny Shakespeare, from the file that MINIGPT_CORPUS names, else
        from the user's cache folder, else from the network; without a network the language
        reference that every Python holds, and a line on standard error that says so.

    Returns
    -------
    text : str
    name : str
        What it is: `path`, "tiny Shakespeare" or "the Python language reference".

    Raises
    ------
    UserError
        If `path` is missing, a folder, unreadable, empty or not UTF-8; or if MINIGPT_CORPUS names
        anything but tiny Shakespeare.
    """
    if path is not None:
        sources = find_sources(path)
        text = joined_text(sources)
        if not text:
            raise UserError(f"{sources[0].where} is empty; name a file with text in it")
        return text, describe(sources)
    corpus = os.environ.get("MINIGPT_CORPUS")
    raw = read_bytes(corpus, "MINIGPT_CORPUS") if corpus else _read_cache() or _fetch_once()
    if raw is None:
        return reference_text(), REFERENCE
    if not _is_corpus(raw):
        raise UserError(
            f"MINIGPT_CORPUS {corpus} is not tiny Shakespeare: its SHA-256 is "
            f"{hashlib.sha256(raw).hexdigest()}, not {SHA256}; name a copy of {URL}, unset "
            "the variable, or give your own text by --data"
        )
    return raw.decode("utf-8"), "tiny Shakespeare"


def _is_corpus(raw):
    return hashlib.sha256(raw).hexdigest() == SHA256


def cache_file():
    """Path of the user's own copy of tiny Shakespeare, which need not exist."""
    folder = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    folder = folder or os.path.expanduser("~/.cache")
    return Path(folder, "minigpt", "tinyshakespeare.txt")


def _read_cache():
    """Bytes of the user's copy, or None if there is none or it is damaged."""
    try:
        raw = cache_file().read_bytes()
    except OSError:
        return None
    return raw if _is_corpus(raw) else None


@contextlib.contextmanager
def _take_turn():
    """Make other processes wait while this one downloads; if another one does, wait for it first.

    All that have waited continue at the same time: if the one before has found no network, they
    need not wait for one another to find none.
    """
    path, lock = cache_file().with_suffix(".lock"), None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
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
        _say(
            f"cannot download tiny Shakespeare ({error}); using {REFERENCE} instead; "
            "give your own text by --data FILE"
        )
        return None
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [raw])
        _say(f"downloaded tiny Shakespeare to {path}")
    except OSError as error:
        _say(f"downloaded tiny Shakespeare, but cannot keep it in {path}: {error.strerror}")
    return raw


def _say(line):
    print(line, file=sys.stderr, flush=True)


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
