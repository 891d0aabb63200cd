"""Embedding on a GPU."""

import cupy
import numpy as np

from minigpt.backend.gpu.launch import each, empty, launch, supported, threads
from minigpt.backend.places import place_of

EMBEDDING_THREADS, EMBEDDING_CHANNELS = 512, 512  # as in embedding.cu
TOKENS_PER_ID = 16  # from this average on, each id of the vocabulary gets a block


def embedding_forward(ids, wte, wpe=None, start=0):
    """As the op."""
    T, C = ids.shape[1], wte.shape[1]
    odd = wpe is not None and (start + T > len(wpe) or wpe.shape[1] != C)
    if odd or ids.dtype != np.int32 or not ids.size or not supported(wte, wpe):
        return NotImplemented
    x = empty((*ids.shape, C), wte.dtype)
    args = (cupy.ascontiguousarray(ids), wte, wpe, x, T, C, start)
    launch("embedding_forward", x.dtype, (ids.size,), threads(-(-C // each(x.dtype))), args)
    return x, (ids, start, wte, wpe)


def embedding_backward(dy, cache):
    """As the op."""
    ids, _, wte, _ = cache
    if ids.dtype != np.int32 or not supported(dy):
        return NotImplemented
    dwte, add = place_of(wte)
    if dwte is None:
        dwte = empty(wte.shape, dy.dtype)
    if not add:
        dwte.fill(0)
    return add_rows(dy, cache, dwte)


def embedding_backward_tied(dy, cache, dwte):
    """As the op, in place: dwte is written to. It may be float32 where dy is not."""
    if cache[0].dtype != np.int32 or not supported(dy) or not supported(dwte):
        return NotImplemented
    if dwte.dtype not in (dy.dtype, np.float32):
        return NotImplemented
    return add_rows(dy, cache, dwte)


def add_rows(dy, cache, dwte):
    """Add the rows of dy to the rows of dwte that their ids name; return the gradients."""
    ids, start, wte, wpe = cache
    V, C = wte.shape
    dwpe, add = (None, False) if wpe is None else place_of(wpe)
    if wpe is not None and dwpe is None:
        dwpe = empty(wpe.shape, dy.dtype)
    by_id = ids.size >= TOKENS_PER_ID * V
    owners = V if by_id else ids.size
    tables = *in_its_type(dwte, dy.dtype), *in_its_type(dwpe, dy.dtype)
    args = (dy, cupy.ascontiguousarray(ids), *tables, ids.size, ids.shape[1], C)
    grid = owners + (0 if dwpe is None else len(dwpe)), -(-C // EMBEDDING_CHANNELS)
    args += owners, int(by_id), start, int(add)
    launch("embedding_backward", dy.dtype, grid, (EMBEDDING_THREADS,), args)
    return {"wte": dwte} if dwpe is None else {"wte": dwte, "wpe": dwpe}


def in_its_type(x, dtype):
    """Return x as the kernel takes it: (x, None) where it is of that dtype, else (None, x)."""
    return (x, None) if x is None or x.dtype == dtype else (None, x)
