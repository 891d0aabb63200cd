"""Linear layers on the CPU: one product into memory that is reused."""

import numpy as np

from minigpt.backend.cpu.blocking import column_sums, row_blocks, rows_of
from minigpt.backend.cpu.pool import empty


def linear_forward(x, w, b=None):
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear_forward: b is {b.shape}, but w {w.shape} needs {w.shape[1:]}")
    if x.size == w.shape[0]:  # a single row, as in decoding: all else is overhead
        y = x @ w
        return y if b is None else y + b, (x, w, b)
    y = empty((*x.shape[:-1], w.shape[1]), w.dtype)
    y2 = rows_of(y, w.shape[1])
    np.matmul(rows_of(x, w.shape[0]), w, out=y2)
    if b is not None:
        for _, yr in row_blocks(y2):
            yr += b
    return y, (x, w, b)


def linear_backward(dy, cache):
    x, w, b = cache
    n_in, n_out = w.shape
    dy2 = rows_of(dy, n_out)
    dw = np.matmul(rows_of(x, n_in).T, dy2, out=empty(w.shape, w.dtype))
    grads = {"w": dw} if b is None else {"w": dw, "b": column_sums(dy2)}
    dx = empty((*dy.shape[:-1], n_in), w.dtype)
    np.matmul(dy2, w.T, out=rows_of(dx, n_in))
    return dx, grads
