"""Tensors in others' safetensors files, as float32.

Those of models are as large as memory: a table of tensors is made, whose numbers then go straight
to where they are needed.

Format: https://huggingface.co/docs/safetensors, "Format".
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

from minigpt.cli import one_line
from minigpt.data.bpe_files import LFS, check_fetched
from minigpt.errors import UserError
from minigpt.files import opened

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # BF16 is the upper half of a float32
CHUNK = 1 << 20  # numbers that are read at a time


class Slot(NamedTuple):
    """Where a tensor lies.

    Attributes
    ----------
    path : Path
        Of the file.
    dtype : str
        The format's name: F32, ...
    shape : tuple of int
    start : int
        Offset in bytes in the file.
    """

    path: Path
    dtype: str
    shape: tuple
    start: int


def read_tensors(path, where):
    """Return {name: float32 array} of all tensors of a safetensors file.

    Parameters
    ----------
    path : str or path
    where : str
        What named the file, such as "--adapter"; errors begin with it.

    Raises
    ------
    UserError
        If the file is missing, damaged or no safetensors file, or holds numbers of another type.
    """
    found = find_slots(path, where)
    for name, slot in found.items():
        check_dtype(name, slot.dtype, f"{where} {path}")
    tensors = {name: np.empty(slot.shape, np.float32) for name, slot in found.items()}
    for name, slot in found.items():
        fill(tensors[name], slot)
    return tensors


def check_dtype(name, dtype, where):
    """Raise a UserError if the numbers of a tensor are of a type that is not read."""
    if dtype not in DTYPES:
        raise UserError(f"{where}: {name!r:.100} is {dtype}; it must be one of {', '.join(DTYPES)}")


def as_numbers(data, dtype):
    """Return bytes as numbers (N,), float32."""
    x = np.frombuffer(data, DTYPES[dtype])
    if dtype == "BF16":
        return (x.astype("<u4") << 16).view("<f4")
    return x.astype(np.float32)


def find_slots(path, where):
    """Return {name: Slot} of a safetensors file, without reading its numbers.

    Raises
    ------
    UserError
        As `read_tensors`; types are not looked at.
    """
    with opened(path, where, "safetensors file") as file:
        check_fetched(file.read(len(LFS)), where, path)
        try:
            with safetensors.safe_open(path, framework="np"):
                pass  # the library has checked the header against the size of the file
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{where} {path}: damaged, or not a safetensors file ({one_line(error)}); take it "
                "again"
            ) from None
        file.seek(0)
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: Slot(Path(path), x["dtype"], tuple(x["shape"]), 8 + size + x["data_offsets"][0])
        for name, x in header.items()
    }


def chunks(slot):
    """Yield the numbers of a tensor, CHUNK at a time, as float32 arrays."""
    left, item = math.prod(slot.shape), np.dtype(DTYPES[slot.dtype]).itemsize
    with open(slot.path, "rb") as file:
        file.seek(slot.start)
        while left:
            yield as_numbers(file.read(min(left, CHUNK) * item), slot.dtype)
            left -= min(left, CHUNK)


def fill(view, slot):
    """Copy the numbers of a tensor into an array; return whether all are finite.

    The array has as many numbers, in their order; where they do not lie one after the other, as in
    a transposed view, the whole tensor is read first.
    """
    if not view.flags.c_contiguous:
        whole = np.empty(view.shape, np.float32)
        finite = fill(whole, slot)
        view[...] = whole
        return finite
    flat, at, finite = view.reshape(-1), 0, True
    for part in chunks(slot):
        flat[at : at + len(part)] = part
        finite, at = finite and bool(np.isfinite(part).all()), at + len(part)
    return finite


def equal(a, b):
    """Tell whether the numbers of two tensors, in their Slots, are the same."""
    if a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for x, y in zip(chunks(a), chunks(b), strict=True))
