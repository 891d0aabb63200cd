"""The linear layer: y = x @ w + b, with w as GPT-2 stores it, (C_in, C_out)."""

from minigpt.backend import overridable


def check_bias(w, b):
    """Raise a ValueError if b is neither None nor (C_out,): it would broadcast silently."""
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear: b is {b.shape}, but w {w.shape} needs {w.shape[1:]}")


@overridable
def linear_forward(x, w, b=None):
    """y = x @ w + b.

    Parameters
    ----------
    x : (..., C_in) float
    w : (C_in, C_out), dtype of x
    b : (C_out,), dtype of x, optional

    Returns
    -------
    y : (..., C_out), dtype of x
    cache : (x, w, b)

    Raises
    ------
    ValueError
        If b is not (C_out,): other shapes would broadcast silently.
    """
    check_bias(w, b)
    y = x @ w
    return (y if b is None else y + b), (x, w, b)


@overridable
def linear_backward(dy, cache):
    """Gradients of x, w and b. Over the rows i of x, y_ij = sum_k x_ik w_kj + b_j, and so

        dx_ik = sum_j dy_ij w_kj      dx = dy @ w^T
        dw_kj = sum_i x_ik dy_ij      dw = x^T @ dy    every row uses the same w
        db_j  = sum_i dy_ij                            b_j was added to every row i

    Returns
    -------
    dx : (..., C_in)
    grads : {"w": dw (C_in, C_out)} and "b": db (C_out,) if there is a b
    """
    x, w, b = cache
    dy2 = dy.reshape(-1, w.shape[1])  # (N, C_out)
    grads = {"w": x.reshape(-1, w.shape[0]).T @ dy2}
    if b is not None:
        grads["b"] = dy2.sum(axis=0)
    return dy @ w.T, grads
