"""Clipping and the loss scale on a GPU: one block, and nothing that waits for it."""

import cupy
import numpy as np

from minigpt.backend.gpu.launch import launch, supported

FLOAT32 = np.dtype(np.float32)


def clip(state, sq_norm_parts, max_norm, growth=0, loss=None, max_loss_scale=2.0**24):
    """As the op; one block."""
    if loss is not None:
        loss = cupy.asarray(loss, state.dtype)
    if state.dtype != FLOAT32 or not supported(state, sq_norm_parts, loss):
        return NotImplemented
    numbers = float(max_norm), float(growth), max_loss_scale
    args = (state, sq_norm_parts, sq_norm_parts.size, *numbers, loss)
    launch("clip", FLOAT32, (1,), (1024,), args)
    return None
