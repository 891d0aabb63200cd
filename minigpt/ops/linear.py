"""The linear layer, with w as GPT-2 stores it: (C_in, C_out)."""

from minigpt.backend import overridable


@overridable
def linear_forward(x, w, b=None):
    """y = x @ w + b.

    Parameters
    ----------
    x : (..., C_in) float
    w : (C_in, C_out), dtype of x
    b : (C_out,), optional

    Returns
    -------
    y : (..., C_out), dtype of x
    cache : (x, w, b), all by reference

    Raises
    ------
    ValueError
        If b is not (C_out,): other shapes would broadcast without a word.
    """
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear_forward: b is {b.shape}, but w {w.shape} needs {w.shape[1:]}")
    y = x @ w
    return (y if b is None else y + b), (x, w, b)


@overridable
def linear_backward(dy, cache):
    """Gradients of x, w and b. From y_ij = sum_k x_ik w_kj + b_j:

        dx = dy @ w^T
        dw = x^T @ dy    the sum runs over all rows of x: every position uses the same w
        db = sum(dy)     over all axes but the last

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
