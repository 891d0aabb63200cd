"""Residual connection and layernorm on the CPU: a block of rows goes through both in one pass."""

import numpy as np

from minigpt.backend.cpu.blocking import block_rows, column_sums, constant, row_blocks, rows_of
from minigpt.backend.cpu.dropout import drop, first_place
from minigpt.backend.cpu.pool import empty
from minigpt.ops.add_norm import AddNormCache, check_pending
from minigpt.ops.layernorm import EPS, check_vectors


def normalize(x, w, b, eps, y, mu, rstd):
    """Write ops.layernorm of a block x (n, C) into y, mu (n, 1) and rstd (n, 1)."""
    C = x.shape[-1]
    np.matmul(x, constant(C, 1 / max(C, 1), x.dtype), out=mu[:, 0])
    np.subtract(x, mu, out=y)
    np.vecdot(y, y, out=rstd[:, 0])
    rstd *= 1 / max(C, 1)
    rstd += eps
    np.sqrt(rstd, out=rstd)
    np.reciprocal(rstd, out=rstd)
    y *= rstd
    y *= w
    if b is not None:
        y += b


def normalize_backward(dy, x, w, mu, rstd, dx, xhat):
    """Write the gradient of a block's x into dx; return that of w. xhat is scratch."""
    wn = w * (1 / max(w.size, 1))
    np.subtract(x, mu, out=xhat)
    xhat *= rstd
    np.multiply(dy, xhat, out=dx)
    dw = column_sums(dx)
    along = dx @ wn  # mean(xhat * dxhat)
    shift = dy @ wn  # mean(dxhat)
    np.multiply(dy, w, out=dx)
    xhat *= along[:, None]
    dx -= shift[:, None]
    dx -= xhat
    dx *= rstd
    return dw


def add_norm_forward(x, h, w, b=None, h_b=None, dropout=0.0, rng=None, eps=EPS):
    """As the op."""
    check_vectors(h, w, b)
    check_pending(h, h_b)
    rng = rng if dropout else None
    C = h.shape[-1]
    place, y = first_place(h, rng), empty(h.shape, h.dtype)
    same = x is None and h_b is None and rng is None
    stream = h if same else empty(h.shape, h.dtype)
    h2, s2, y2 = (rows_of(a, C) for a in (h, stream, y))
    x2 = None if x is None else rows_of(x, C)
    mu, rstd = np.empty((2, len(h2), 1), h.dtype)
    for start, added, xr, s, yr, mu_r, rstd_r in row_blocks(h2, x2, s2, y2, mu, rstd):
        if h_b is not None:
            added = np.add(added, h_b, out=s)
        if rng is not None:
            drop(added, place + start * C, dropout, rng, out=s)
            added = s
        if x is not None:
            np.add(xr, added, out=s)
        normalize(s, w, b, eps, yr, mu_r, rstd_r)
    kept = (*h.shape[:-1], 1)
    mu, rstd = mu.reshape(kept), rstd.reshape(kept)
    return (stream, y), AddNormCache(stream, w, b, h_b, mu, rstd, dropout, rng, x is None)


def add_norm_backward(dx, dy, cache):
    """As the op."""
    x, w, b, h_b, mu, rstd, dropout, rng, begins = cache  # x is the stream
    C, place = x.shape[-1], first_place(x, rng)
    dstream = empty(x.shape, x.dtype)
    # where the stream begins, only dh is returned
    dh = dstream if rng is None or begins else empty(x.shape, x.dtype)
    x2, dy2, ds2, dh2 = (rows_of(a, C) for a in (x, dy, dstream, dh))
    dx2 = None if dx is None else rows_of(dx, C)
    mu, rstd = mu.reshape(-1, 1), rstd.reshape(-1, 1)
    grads = {name: np.zeros(C, x.dtype) for name, v in (("w", w), ("b", b)) if v is not None}
    scratch = empty((block_rows(*x2.shape), C), x.dtype)
    arrays = (x2, dx2, dy2, ds2, dh2, mu, rstd)
    for start, xr, dxr, dyr, ds, dhr, mu_r, rstd_r in row_blocks(*arrays):
        grads["w"] += normalize_backward(dyr, xr, w, mu_r, rstd_r, ds, scratch[: len(xr)])
        if b is not None:
            grads["b"] += column_sums(dyr)
        if dx is not None:
            ds += dxr
        if rng is not None:
            drop(ds, place + start * C, dropout, rng, out=dhr)
    if h_b is not None:
        grads["h_b"] = column_sums(dh2)
    return None if begins else dstream, dh, grads
