"""Residual connection and layernorm on a GPU: one kernel each way. mu and rstd are float32."""

import functools

from minigpt.backend.gpu.dropout import mask_of
from minigpt.backend.gpu.launch import each, empty, launch, supported
from minigpt.backend.gpu.linear import bias_gradient, column_sums, parts_of
from minigpt.ops.add_norm import AddNormCache
from minigpt.ops.layernorm import EPS

# Channels of a row: threads of a block, and its rows with warps of 32; those of 64 have fewer.
WIDTHS = {1024: (128, 4), 4096: (256, 1)}
# Channels of a row of which three sums fit into 48 KB, beside the 128 bytes of block_reduce.
WIDEST = 4080


def fits(x, ws, *others):
    """Tell whether the kernels take x, a gain and biases ws, and others of the shape of x."""
    row = x.shape[-1:]
    if row[0] > max(WIDTHS):
        return False
    for shape, arrays in ((row, ws), (x.shape, others)):
        for y in arrays:
            if y is not None and y.shape != shape:
                return False
    return supported(x, *ws, *others)


def singles(*arrays):
    """Tell whether these are arrays that a kernel takes as float, whatever T is."""
    return arrays[0].dtype.char == "f" and supported(*arrays)


@functools.cache
def shape_of(C):
    """Return the width of the kernels for rows of C channels, their block, and its rows."""
    width = next(width for width in WIDTHS if width >= C)
    threads, rows = WIDTHS[width]
    return width, (threads,), rows


def normalize(x, h, w, b, h_b, eps, mask, stream):
    """Launch add_norm_forward, which fills `stream` unless it is None. Return y, mu, rstd.

    x, b and h_b may be None, which is 0.
    """
    C = h.shape[-1]
    N = h.size // C
    y = empty(h.shape, h.dtype)
    rows = (*h.shape[:-1], 1)
    mu, rstd = empty(rows, "f"), empty(rows, "f")
    width, block, of_block = shape_of(C)
    args = (x, h, w, b, h_b, stream, y, mu, rstd, N, C, eps, *mask)
    launch(f"add_norm_forward_{width}", h.dtype, (-(-N // of_block),), block, args)
    return y, mu, rstd


def normalize_backward(dx, dy, cache, mask, total, dh):
    """Launch add_norm_backward, which fills `total` and `dh` unless None; return the gradients of
    w, b and h_b.

    Parameters
    ----------
    dx, dy : as in add_norm_backward
    cache : (stream, w, b, h_b, mu, rstd)
    mask : from mask_of
    total, dh : as dy, or None
        dx + layernorm_backward(dy), and dropout's gradient of it.
    """
    x, w, b, h_b, mu, rstd = cache
    N, C, G = parts_of(x)
    width, block, rows = shape_of(C)
    number = 3 if h_b is not None and C <= WIDEST else 1 if b is None else 2
    room = -(-C // each(x.dtype)) * each(x.dtype)  # of the sums of a row
    parts, shared = empty((G, number * C), "f"), 4 * number * rows * room
    args = (dx, dy, x, w, mu, rstd, total, dh, parts, N, C, parts.shape[1], *mask)
    launch(f"add_norm_backward_{width}", x.dtype, (G,), block, args, shared)
    sums = column_sums(parts, x.dtype)
    grads = {"w": sums if number == 1 else sums[:C]}
    if b is not None:
        grads["b"] = sums[C : 2 * C]
    if h_b is not None:
        dh = total if dh is None else dh
        grads["h_b"] = sums[2 * C :] if number == 3 else bias_gradient(dh)
    return grads


def add_norm_forward(x, h, w, b=None, h_b=None, dropout=0.0, rng=None, eps=EPS):
    """As the op."""
    if not fits(h, (w, b, h_b), x):
        return NotImplemented
    if dropout == 0:
        rng = None
    same = x is None and h_b is None and rng is None  # the stream is h itself
    stream = None if same else empty(h.shape, h.dtype)
    y, mu, rstd = normalize(x, h, w, b, h_b, eps, mask_of(h.shape, dropout, rng), stream)
    stream = h if same else stream
    return (stream, y), AddNormCache(stream, w, b, h_b, mu, rstd, dropout, rng, x is None)


def add_norm_backward(dx, dy, cache):
    """As the op."""
    x, w, b, h_b, mu, rstd, dropout, rng, begins = cache  # x is the stream
    if not (fits(x, (w, b, h_b), dx, dy) and singles(mu, rstd)):
        return NotImplemented
    total = None if begins and rng is not None else empty(x.shape, x.dtype)
    dh = None if rng is None else empty(x.shape, x.dtype)
    mask = mask_of(x.shape, dropout, rng)
    grads = normalize_backward(dx, dy, (x, w, b, h_b, mu, rstd), mask, total, dh)
    return None if begins else total, total if dh is None else dh, grads
