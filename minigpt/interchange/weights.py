"""Tensors in others' safetensors files, as float32.

Format: https://huggingface.co/docs/safetensors, "Format".
"""

import numpy as np
import safetensors

from minigpt.cli import one_line
from minigpt.errors import UserError
from minigpt.files import read_bytes

LFS = b"version https://git-lfs"  # what stands in the place of a large file that was not fetched
DTYPES = "F32", "F16", "BF16"


def read_tensors(path, where):
    """Return {name: float32 array} of a safetensors file, which is read as a whole.

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
    raw = read_bytes(path, where, "safetensors file")
    if raw.startswith(LFS):
        raise UserError(f"{where} {path} only points to a file of Git LFS; fetch it: git lfs pull")
    try:
        found = safetensors.deserialize(raw)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{where} {path}: damaged, or not a safetensors file ({one_line(error)}); take it again"
        ) from None
    return {name: as_float32(name, tensor, f"{where} {path}") for name, tensor in found}


def as_float32(name, tensor, where):
    """Return a tensor, a dict of dtype, shape and data, as a float32 array."""
    dtype, data = tensor["dtype"], bytes(tensor["data"])
    if dtype not in DTYPES:
        raise UserError(f"{where}: {name!r:.100} is {dtype}; it must be one of {', '.join(DTYPES)}")
    if dtype == "BF16":  # the upper half of a float32
        x = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        x = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
    return x.reshape(tensor["shape"])
