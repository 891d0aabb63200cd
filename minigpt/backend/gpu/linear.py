"""Linear layers on a GPU, and sums over rows."""

from minigpt.backend.gpu.launch import each, empty, launch, supported
from minigpt.backend.gpu.product import product
from minigpt.backend.places import place_of
from minigpt.ops.linear import check_bias

PARTS, ROWS = 512, 4  # parts of a sum over rows, at most; rows of a part, at least
# Of a block of Columns in common.cu: channels; rows at a time, whose sums are one part.
COLUMNS, DOWN = 128, 16  # their product is the size of `sums` in store_sums


def parts_of(x):
    """Return N and C of x as (N, C), and the number of parts in which its rows are summed up."""
    C = x.shape[-1]
    N = x.size // C
    return N, C, min(-(-N // ROWS), PARTS)


def by_columns(x):
    """Return N and C of x as (N, C), and the grid and block of a kernel that goes by Columns."""
    N, C, parts = parts_of(x)
    grid = -(-C // COLUMNS), -(-parts // DOWN)
    return N, C, grid, (COLUMNS // each(x.dtype), DOWN)


def column_sums(parts, dtype):
    """Return the sums over the rows of parts (N, C) float32, as (C,) of that dtype."""
    N, C = parts.shape
    y = empty(C, dtype)
    launch("column_sums", y.dtype, (-(-C // 32),), (32, 16), (parts, y, N, C))
    return y


def linear_forward(x, w, b=None):
    """As the op."""
    check_bias(w, b)
    y = product(x, w)
    if b is not None:
        add_bias(y, b)
    return y, (x, w, b)


def add_bias(y, b):
    """Add b (C,) to the rows of y (..., C), in place."""
    if not supported(y, b):
        y += b
        return
    N, C, grid, block = by_columns(y)
    launch("add_bias", y.dtype, grid, block, (y, b, N, C))


def linear_backward(dy, cache):
    """As the op."""
    x, w, b = cache
    grads = {"w": weight_gradient(w, x, dy)}
    if b is not None:
        grads["b"] = bias_gradient(dy)
    return product(dy, w, flip_b=True), grads


def weight_gradient(w, x, dy):
    """Return x^T dy, the gradient of w, summed over all rows: in its place, where there is one."""
    place, add = place_of(w)
    return product(x, dy, place, add, flip_a=True)


def bias_gradient(dy):
    """Return the sums over the rows of dy (..., C): (C,)."""
    if not supported(dy):
        return dy.reshape(-1, dy.shape[-1]).sum(axis=0)
    N, C, grid, block = by_columns(dy)
    parts = empty((grid[1], C), "f")
    launch("column_parts", dy.dtype, grid, block, (dy, parts, N, C))
    return column_sums(parts, dy.dtype)
