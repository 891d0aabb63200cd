"""Linear layers on the CPU: products into memory that is reused."""

from minigpt.backend.cpu.blocking import column_sums, row_blocks, rows_of
from minigpt.backend.cpu.crew import product
from minigpt.backend.cpu.pool import empty
from minigpt.backend.places import is_later, leave, place_of
from minigpt.ops.linear import check_bias


def linear_forward(x, w, b=None):
    """As the op."""
    if b is not None:
        check_bias(w, b)
    y = empty((*x.shape[:-1], w.shape[1]), w.dtype)
    y2 = rows_of(y, w.shape[1])
    product(rows_of(x, w.shape[0]), w, y2)
    if b is not None:
        for _, yr in row_blocks(y2):
            yr += b
    return y, (x, w, b)


def linear_backward(dy, cache):
    """As the op; db is a product with ones."""
    x, w, b = cache
    n_in, n_out = w.shape
    dy2 = rows_of(dy, n_out)
    dw = weight_gradient(w, rows_of(x, n_in), dy2)
    grads = {"w": dw} if b is None else {"w": dw, "b": column_sums(dy2)}
    dx = empty((*dy.shape[:-1], n_in), w.dtype)
    product(dy2, w.T, rows_of(dx, n_in))
    return dx, grads


def weight_gradient(w, x, dy):
    """Return x^T dy of two dimensions, the gradient of w: in its place, perhaps later."""
    if is_later(w, x.size + dy.size):
        return leave(w, x, dy)
    place, add = place_of(w)
    dw = empty(w.shape, w.dtype) if place is None or add else place
    product(x.T, dy, dw)
    if add:
        place += dw
    return dw if place is None else place
