"""Clipping and the loss scale on a GPU: one block, and nothing that waits for it."""

import cupy
import numpy as np

from minigpt.backend.gpu.launch import launch, supported

FLOAT32 = np.dtype(np.float32)


def clip(state, squares, max_norm, growth=0, loss=None, largest=2.0**24):
    """As the op; one block."""
    if loss is not None:
        loss = cupy.asarray(loss, state.dtype)
    if state.dtype != FLOAT32 or not supported(state, squares, loss):
        return NotImplemented
    args = (state, squares, squares.size, float(max_norm), float(growth), largest, loss)
    launch("clip", FLOAT32, (1,), (1024,), args)
