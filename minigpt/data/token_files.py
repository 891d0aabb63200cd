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


def encode_text(sources, found, tokenizer):
    """Return the ids of a text.

    Parameters
    ----------
    sources : list of Source
    found : Survey
        Theirs.
    tokenizer : Tokenizer

    Returns
    -------
    ids : (N,) uint8, uint16 or int32
        Not to be written to.
    notes : list of str
        What a user should know of it.

    Raises
    ------
    UserError
        If the text has something that has no token, or is another than at its survey.
    """
    parts = small_ids(sources, found, tokenizer)
    if found.size < LARGE:
        return in_memory(parts, tokenizer), []
    folder = cache_folder()
    if folder is None:
        return in_memory(parts, tokenizer), []
    table = tokenizer.to_json().encode("utf-8")
    key = hashlib.sha256(found.sha256.encode("ascii") + table).hexdigest()
    path = folder / f"{key[:32]}{SUFFIX}"
    with make_folder(folder), turn(path):
        ids = read_tokens(path, key)
        if ids is not None:
            return ids, []
        try:
            write_tokens(path, key, parts, dtype_of(tokenizer.vocab_size))
            ids = read_tokens(path, key)
        except OSError as error:
            reason = error.strerror or error
        else:
            reason = "what was written cannot be read back"
    if ids is None:
        parts = small_ids(sources, found, tokenizer)
        note = f"the text's tokens cannot be kept in {path}: {reason}; they are held in memory"
        return in_memory(parts, tokenizer), [note]
    return ids, [f"the text's tokens are kept for next time: {path}, {ids.nbytes / 1e6:,.0f} MB"]


def small_ids(sources, found, tokenizer):
    """Iterate over the ids of a text, a part at a time, as the dtype of the vocabulary."""
    sha256 = hashlib.sha256()

    def texts():
        for raw, text in read_parts(sources):
            sha256.update(raw)
            yield text

    dtype = dtype_of(tokenizer.vocab_size)
    for ids in tokenizer.encode_parts(texts()):
        yield ids.astype(dtype)
    if sha256.hexdigest() != found.sha256:
        raise UserError(f"{sources[0].where}: the text has changed while it was read; try again")


def in_memory(parts, tokenizer):
    """Return parts of ids as one array."""
    joined = bytearray()
    for ids in parts:
        joined += ids.data
    return np.frombuffer(joined, dtype_of(tokenizer.vocab_size))


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


def header(key, ids_dtype, count, crc32):
    """Return the first HEADER bytes of a file, which say what it is."""
    fields = {"minigpt_tokens": 1, "key": key, "dtype": ids_dtype.str, "count": count}
    return json.dumps({**fields, "crc32": crc32}).encode("ascii").ljust(HEADER)


def write_tokens(path, key, parts, dtype):
    """Write a file of tokens, atomically, and delete those that have not been used for long.

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
        file.write(header(key, dtype, count, crc32))
    for old in path.parent.glob(f"*{SUFFIX}*"):
        limit = LEFT_S if old.suffix == TEMPORARY else UNUSED
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > limit:
                old.unlink()


def read_tokens(path, key):
    """Return the ids in a file, mapped into memory; None if it is missing or damaged.

    Its time of modification becomes that of its last use.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(HEADER)
            fields, crc32 = json.loads(begin), 0
            while block := file.read(BLOCK):
                crc32 = zlib.crc32(block, crc32)
        dtype = np.dtype(fields["dtype"])
        if begin != header(key, dtype, fields["count"], crc32):
            return None
        with contextlib.suppress(OSError):  # it is another user's, perhaps
            os.utime(path)
        return np.asarray(np.memmap(path, dtype, "r", HEADER, (fields["count"],)))
    except (OSError, ValueError, TypeError, KeyError):
        return None
