"""Token and position embedding: Radford et al. 2018 (GPT), eq. 2: h_0 = U W_e + W_p.

A row looked up is a product with a one-hot row: embedding is a linear layer whose input is so
sparse that only its backward pass takes some thought.
"""

from minigpt.backend import array_module, overridable


@overridable
def embedding_forward(ids, wte, wpe=None, start=0):
    """x[b, t] = wte[ids[b, t]] + wpe[start + t], or without wpe.

    Parameters
    ----------
    ids : (B, T) int
        In 0 .. V - 1. CuPy wraps out-of-range ids silently, and both libraries wrap negative ones:
        ids are checked where they enter the program.
    wte : (V, C) float
        Token embedding.
    wpe : (block_size, C), dtype of wte, optional
        Position embedding.
    start : int
        Position of the first token: the number of tokens in a KV cache.

    Returns
    -------
    x : (B, T, C), dtype of wte
    cache : (ids, start, wte, wpe)

    Raises
    ------
    ValueError
        If start + T is beyond the last position.
    """
    T = ids.shape[1]
    if wpe is None:
        return wte[ids], (ids, start, wte, None)
    if start + T > wpe.shape[0]:
        raise ValueError(
            f"embedding_forward: positions {start} to {start + T - 1} asked for, "
            f"but wpe {wpe.shape} holds {wpe.shape[0]}"
        )
    return wte[ids] + wpe[start : start + T], (ids, start, wte, wpe)


@overridable
def embedding_backward(dy, cache):
    """Gradients of the two tables. A row was used wherever its token, or its position, stands:

        dwte[v] = sum over (b, t) with ids[b, t] = v of dy[b, t]    = onehot(ids)^T @ dy
        dwpe[start + t] = sum over b of dy[b, t]                    one row was broadcast over b

    Rows that were not used get 0. An id that occurs twice needs the sum: `dwte[ids] += dy` would
    keep only one of its terms. The sum is a product with the one-hot rows of the ids that occur:
    its order is fixed, whereas scattered atomic additions differ from run to run on a GPU.

    Parameters
    ----------
    dy : (B, T, C)

    Returns
    -------
    grads : {"wte": dwte (V, C)} and "wpe": dwpe (block_size, C) if there is a wpe
    """
    ids, start, wte, wpe = cache
    xp = array_module(dy)
    dwte = xp.zeros(wte.shape, dtype=dy.dtype)
    used, index = xp.unique(ids, return_inverse=True)  # (U,), and the index in it of each id
    onehot = index.reshape(-1, 1) == xp.arange(used.size)  # (B*T, U)
    dwte[used] = onehot.astype(dy.dtype).T @ dy.reshape(-1, dy.shape[-1])
    if wpe is None:
        return {"wte": dwte}
    dwpe = xp.zeros(wpe.shape, dtype=dy.dtype)
    dwpe[start : start + dy.shape[1]] = dy.sum(axis=0)
    return {"wte": dwte, "wpe": dwpe}


@overridable
def embedding_backward_tied(dy, cache, dwte):
    """As embedding_backward, where wte is used elsewhere too, as by a tied head: the sum of both.

        dwte = dwte (of the other use) + dwte (as an embedding)

    Parameters
    ----------
    dy : (B, T, C)
    dwte : (V, C), dtype of dy, or float32
        The gradient of wte from its other use. The caller gives it up: an override may add to it
        in place, so that a second table of that size is never made.

    Returns
    -------
    grads : as embedding_backward
    """
    grads = embedding_backward(dy, cache)
    return {**grads, "wte": dwte + grads["wte"]}
