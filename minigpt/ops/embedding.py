"""Token and position embedding: Radford et al. 2018 (GPT), eq. 2: h_0 = U W_e + W_p.

A row looked up is a product with a one-hot row: embedding is a linear layer whose input is so
sparse that only its backward pass is worth a thought.
"""

from minigpt.backend import array_module, overridable


@overridable
def embedding_forward(ids, wte, wpe=None, start=0):
    """x[b, t] = wte[ids[b, t]] + wpe[start + t], or without wpe.

    Parameters
    ----------
    ids : (B, T) int
        In 0 .. V - 1. CuPy wraps what is out of range in silence, and both wrap negatives: ids
        are checked where they enter the program.
    wte : (V, C) float
        Token embedding.
    wpe : (block_size, C), dtype of wte, optional
        Position embedding.
    start : int
        Position of the first token: the number of tokens in a KV cache.

    Returns
    -------
    x : (B, T, C), dtype of wte
    cache : (ids, start, wte.shape, wpe.shape or None)

    Raises
    ------
    ValueError
        If start + T is beyond the last position.
    """
    T = ids.shape[1]
    if wpe is None:
        return wte[ids], (ids, start, wte.shape, None)
    if start + T > wpe.shape[0]:
        raise ValueError(
            f"embedding_forward: positions {start} to {start + T - 1} asked for, "
            f"but wpe {wpe.shape} holds {wpe.shape[0]}"
        )
    return wte[ids] + wpe[start : start + T], (ids, start, wte.shape, wpe.shape)


@overridable
def embedding_backward(dy, cache, dwte=None):
    """Gradients of the two tables. A token's row was used wherever the token stands:

        dwte[v] = sum over (b, t) with ids[b, t] = v of dy[b, t]    = onehot(ids)^T @ dy
        dwpe[t] = sum over b of dy[b, t]

    The sum is a product with the one-hot rows of the ids that occur: its order is fixed, whereas
    scattered atomic additions differ from run to run on a GPU.

    Parameters
    ----------
    dy : (B, T, C)
    dwte : (V, C), optional
        A gradient of wte from elsewhere (the tied head) that the caller gives up: the sum is
        added to it in place, and a second table of that size is never made.

    Returns
    -------
    grads : {"wte": (V, C)} and "wpe": (block_size, C) if there is a wpe
    """
    ids, start, wte_shape, wpe_shape = cache
    xp = array_module(dy)
    C = dy.shape[-1]
    if dwte is None:
        dwte = xp.zeros(wte_shape, dtype=dy.dtype)
    used, which = xp.unique(ids, return_inverse=True)  # (U,), and for each id its place therein
    onehot = which.reshape(-1, 1) == xp.arange(used.size)  # (B*T, U)
    dwte[used] += onehot.astype(dy.dtype).T @ dy.reshape(-1, C)
    if wpe_shape is None:
        return {"wte": dwte}
    dwpe = xp.zeros(wpe_shape, dtype=dy.dtype)
    dwpe[start : start + dy.shape[1]] = dy.sum(axis=0)
    return {"wte": dwte, "wpe": dwpe}
