"""Sampling: from logits to the probabilities of the next token, and a draw from them."""

import numpy as np


def next_probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Probabilities of the next token, in three steps:

        temperature   softmax(logits / temperature); at 0 the largest logit has probability 1,
                      the lowest id among equals
        top_k         only logits >= the k-th largest stay, so all that equal the k-th do
        top_p         then only the smallest set of the most probable tokens whose mass is
                      >= top_p, lower ids first among equals: at least one token
                      (Holtzman et al. 2020, arXiv:1904.09751, section 3.1)

    What stays is normalized after each step.

    Parameters
    ----------
    logits : (B, V) float, NumPy
    temperature : float
        >= 0.
    top_k : int
        >= 0; 0 and V or more are off.
    top_p : float
        In (0, 1]; 1 is off.

    Returns
    -------
    probabilities : (B, V) float64
    """
    V = logits.shape[-1]
    z = logits.astype(np.float64)
    if temperature == 0:
        return (np.arange(V) == z.argmax(axis=-1)[:, None]).astype(np.float64)
    with np.errstate(over="ignore"):  # after the maximum is off, only to -inf
        z = (z - z.max(axis=-1, keepdims=True)) / temperature
    if 0 < top_k < V:
        z[z < np.partition(z, V - top_k, axis=-1)[:, V - top_k, None]] = -np.inf
    probabilities = np.exp(z, out=z)  # a softmax: its maximum is off already
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    if top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        mass = np.take_along_axis(probabilities, order, axis=-1).cumsum(axis=-1)
        size = (mass < top_p).sum(axis=-1, keepdims=True) + 1
        probabilities[np.argsort(order, axis=-1) >= size] = 0.0  # by rank
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities


def draw(probabilities, uniforms):
    """Pick a token per row by the inverse of the cumulative distribution.

    It is the first whose cumulative mass exceeds u times the whole: never one of probability 0.

    Parameters
    ----------
    probabilities : (B, V) float64
    uniforms : (B,) float64
        In [0, 1).

    Returns
    -------
    ids : (B,) int64
    """
    mass = probabilities.cumsum(axis=-1)
    return (mass <= uniforms[:, None] * mass[:, -1:]).sum(axis=-1)
