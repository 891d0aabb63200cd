"""The ids of a text, as small as its vocabulary allows; those of a large text are kept in a file.

Such a file is in the user's cache folder, named after the text and the tokenizer, made once and
then mapped into memory. Its first HEADER bytes are JSON: see `header`.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib

import numpy as np

from minigpt.data.corpus import WAIT, cache_folder
from minigpt.data.sources import read_parts
from minigpt.errors import UserError
from minigpt.files import LEFT_S, TEMPORARY, make_folder, replacing
from minigpt.locks import AlreadyLocked, acquire, release

LARGE = 16 << 20  # bytes of text from which on its ids are kept in a file
HEADER = 4096  # bytes before the ids
BLOCK = 1 << 20  # bytes read at a time to check a file
UNUSED = 30 * 24 * 3600.0  # seconds after which a file that nobody has used is deleted
SUFFIX = ".tokens"


def dtype_of(vocab_size):
    """Return the smallest of uint8, uint16 and int32 that holds all ids of a vocabulary."""
    sizes = {2**8: np.uint8, 2**16: np.uint16}
    return np.dtype(next((dtype for n, dtype in sizes.items() if vocab_size <= n), np.int32))


def encode_text(sources, found, tokenizer, split=None):
    """Return the ids of a text.

    Parameters
    ----------
    sources : list of Source
    found : Survey
        Theirs.
    tokenizer : Tokenizer
    split : int, optional
        Characters after which the text is cut in two, each encoded as if the other were not there.

    Returns
    -------
    ids : (N,) uint8, uint16 or int32
        Not to be written to.
    border : int or None
        How many of them are before the split.
    notes : list of str
        What a user should know of it.

    Raises
    ------
    UserError
        If the text has something that has no token, or is another than at its survey.
    """
    parts = SmallIds(sources, found, tokenizer, split)
    folder = None if found.size < LARGE else cache_folder()
    if folder is None:
        return in_memory(parts, tokenizer), parts.border, []
    key = key_of(found, tokenizer, split)
    path = path_of(folder, key)
    with make_folder(folder), turn(path):
        kept = read_tokens(path, key)
        if kept is not None:
            return *kept, []
        try:
            write_tokens(path, key, parts, dtype_of(tokenizer.vocab_size))
            kept = read_tokens(path, key)
        except OSError as error:
            reason = error.strerror or error
        else:
            reason = "what was written cannot be read back"
    if kept is None:
        note = f"the text's tokens cannot be kept in {path}: {reason}; they are held in memory"
        return in_memory(parts, tokenizer), parts.border, [note]
    size = f"{kept[0].nbytes / 1e6:,.0f} MB"
    return *kept, [f"the text's tokens are kept for next time: {path}, {size}"]


def key_of(found, tokenizer, split):
    """Return what tells the file of a text, a tokenizer and, where it matters, a split."""
    table = tokenizer.to_json().encode("utf-8")
    cut = b"" if split is None or tokenizer.concatenates else b" %d" % split
    return hashlib.sha256(found.sha256.encode("ascii") + table + cut).hexdigest()


def encode_beginnings(sources, found, tokenizer, split, most):
    """Return the ids of a text, or of the first `most` characters of its two parts alone.

    They are those of the whole text where it is short, and where they are kept in a file.

    Parameters
    ----------
    sources, found, tokenizer, split : as of `encode_text`
    most : int

    Returns
    -------
    ids, border : as from `encode_text`
    whole : bool
        Whether they are those of the whole text.
    """
    folder = None if found.size < LARGE else cache_folder()
    if folder is not None:
        key = key_of(found, tokenizer, split)
        kept = read_tokens(path_of(folder, key), key)
        if kept is not None:
            return *kept, True
    parts = SmallIds(sources, found, tokenizer, split, most)
    ids = in_memory(parts, tokenizer)
    return ids, parts.border, max(split, found.length - split) <= most


class SmallIds:
    """The ids of a text, a part at a time, as the dtype of the vocabulary; see `encode_text`.

    With `most`, those of so many characters of each of its two parts alone.

    Attributes
    ----------
    border : int or None
        How many are before the split, as soon as they have been gone over.
    """

    def __init__(self, sources, found, tokenizer, split=None, most=None):
        self.sources, self.found, self.tokenizer = sources, found, tokenizer
        self.split, self.most, self.border = split, most, None

    def __iter__(self):
        sha256, count = hashlib.sha256(), 0

        def texts():
            for raw, text in read_parts(self.sources):
                sha256.update(raw)
                yield text

        dtype = dtype_of(self.tokenizer.vocab_size)
        parts = cut_at(texts(), self.split)
        if self.most is not None:
            parts = beginnings(parts, self.most)
        for ids in self.tokenizer.encode_parts(parts):
            if not len(ids):
                self.border = count
            count += len(ids)
            yield ids.astype(dtype)
        if sha256.hexdigest() != self.found.sha256:
            where = self.sources[0].where
            raise UserError(f"{where}: the text has changed while it was read; try again")


def cut_at(texts, split):
    """Iterate over the parts of a text, with an empty one after so many characters, if any."""
    left = split
    for text in texts:
        if left is not None and left < len(text):
            if left:
                yield text[:left]
            yield ""
            text, left = text[left:], None
        yield text
        left = None if left is None else left - len(text)


def beginnings(texts, most):
    """Iterate over the parts of texts as far as their first `most` characters go.

    An empty part ends a text, and another begins.
    """
    left = most
    for text in texts:
        if not text:
            left = most
            yield text
        elif left:
            yield text[:left]
            left -= min(left, len(text))


def in_memory(parts, tokenizer):
    """Return parts of ids as one array."""
    joined = bytearray()
    for ids in parts:
        joined += ids.data
    return np.frombuffer(joined, dtype_of(tokenizer.vocab_size))


def path_of(folder, key):
    """Return the path of the file of a key."""
    return folder / f"{key[:32]}{SUFFIX}"


@contextlib.contextmanager
def turn(path):
    """Make other processes that need the same file wait until this one has made it."""
    lock = None
    with contextlib.suppress(AlreadyLocked, OSError):  # the file is written atomically anyhow
        lock = acquire(path.with_suffix(".lock"), WAIT)
    try:
        yield
    finally:
        release(lock)


def header(key, ids_dtype, count, crc32, border):
    """Return the first HEADER bytes of a file, which say what it is.

    The border is there if it is not that of characters, nine tenths of all ids.
    """
    fields = {"minigpt_tokens": 1, "key": key, "dtype": ids_dtype.str, "count": count}
    fields |= {"crc32": crc32} | ({} if border == int(0.9 * count) else {"border": border})
    return json.dumps(fields).encode("ascii").ljust(HEADER)


def write_tokens(path, key, parts, dtype):
    """Write a file of SmallIds, atomically, and delete those that have not been used for long.

    It is not synced: after a loss of power, its checksum tells, and it is made anew.

    Raises
    ------
    OSError
        Then nothing is left of it.
    """
    with replacing(path) as file:
        count = crc32 = 0
        file.seek(HEADER)
        for ids in parts:
            count, crc32 = count + len(ids), zlib.crc32(ids, crc32)
            file.write(ids.data)
        file.seek(0)
        file.write(header(key, dtype, count, crc32, parts.border))
    for old in path.parent.glob(f"*{SUFFIX}*"):
        limit = LEFT_S if old.suffix == TEMPORARY else UNUSED
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > limit:
                old.unlink()


def read_tokens(path, key):
    """Return (ids, mapped into memory, border) of a file; None if it is missing or damaged.

    Its time of modification becomes that of its last use.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(HEADER)
            fields, crc32 = json.loads(begin), 0
            while block := file.read(BLOCK):
                crc32 = zlib.crc32(block, crc32)
        dtype, count = np.dtype(fields["dtype"]), fields["count"]
        border = fields.get("border", int(0.9 * count))
        if begin != header(key, dtype, count, crc32, border):
            return None
        with contextlib.suppress(OSError):  # it is another user's, perhaps
            os.utime(path)
        return np.asarray(np.memmap(path, dtype, "r", HEADER, (count,))), border
    except (OSError, ValueError, TypeError, KeyError):
        return None
