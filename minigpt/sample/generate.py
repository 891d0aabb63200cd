"""Decoding: the next token again and again, with a cache of what the model has seen.

A step runs the newest token alone: the keys and values of those before it lie in a KVCache. Keys
hold their positions, learned or turned into them (rotary), and the cache has room for block_size.
When it is full, it therefore starts afresh: its last block_size // 2 tokens and the new one are
run again from position 0, and the cache grows from there.
"""

from typing import NamedTuple

import numpy as np

from minigpt.backend import array_module, to_device, to_host
from minigpt.errors import UserError
from minigpt.model.gpt import gpt_forward, logits
from minigpt.ops.softmax import softmax_forward

PREFILL_TOKENS = 1024  # in one pass, over all rows: bounds the memory of activations


class Slot(NamedTuple):
    """Keys and values of one layer, (B, H, block_size, D); the first `length` are filled."""

    k: object
    v: object
    length: int

    def append(self, k, v):
        """Store k and v (B, H, T, D) behind the filled part; return views of all so far.

        Raises
        ------
        ValueError
            If there is no room: NumPy would broadcast one token into none without a word.
        """
        end = self.length + k.shape[2]
        if end > self.k.shape[2]:
            raise ValueError(f"KVCache: {end} tokens, but there is room for {self.k.shape[2]}")
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        return self.k[:, :, :end], self.v[:, :, :end]


class KVCache:
    """Keys and values of the tokens that a model has seen; its memory is allocated once.

    Attributes
    ----------
    store : (n_layer, 2, B, H, block_size, D)
    length : int
        Tokens that every layer has stored.
    previous : (B,) int or None
        The last of them.
    """

    def __init__(self, config, batch, xp, dtype):
        heads = (config.n_head, config.block_size, config.n_embd // config.n_head)
        self.store = xp.empty((config.n_layer, 2, batch, *heads), dtype=dtype)
        self.reset()

    def __getitem__(self, layer):
        return Slot(*self.store[layer], self.length)

    def advance(self, ids):
        """Count the tokens ids (B, T), once all layers have stored theirs."""
        self.length += ids.shape[1]
        self.previous = ids[:, -1]

    def reset(self):
        """Forget all tokens and keep the memory."""
        self.length, self.previous = 0, None


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
    probabilities, _ = softmax_forward(z)
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


def generate(
    p,
    config,
    ids,
    max_new_tokens,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    seed=0,
    rows=None,
    vocab_size=None,
):
    """Iterate over the next tokens of each row.

    Row r has a random stream of its own, the counter-based Philox with key (seed, r), and its
    token t takes number t of it. So a row is the same alone and among others, but for the
    round-off of products of other shapes (some 1e-6 of a logit in float32): that can only tip a
    draw which lies on the border of two tokens.

    Parameters
    ----------
    p : tree of parameters
    config : GPTConfig
    ids : (B, T) int, NumPy, T >= 1
        The prompts, of which the last block_size tokens count.
    max_new_tokens : int
    temperature, top_k, top_p
        As in `next_probabilities`.
    seed : int
        From 0 to 2**64 - 1.
    rows : sequence of B int, optional
        The numbers of the rows, 0 .. B - 1 if left out.
    vocab_size : int, optional
        The tokenizer's, where the model's is padded: no id from there on is drawn.

    Yields
    ------
    ids : (B,) int64, NumPy

    Raises
    ------
    UserError
        If an id is not in the vocabulary, or a logit is not finite.
    """
    ids = np.asarray(ids)[:, -config.block_size :]
    B, n = ids.shape
    if n == 0 or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise UserError(f"a prompt needs one id or more, from 0 to {config.vocab_size - 1}")
    keys = [np.array([seed, r], np.uint64) for r in (range(B) if rows is None else rows)]
    streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    kv = KVCache(config, B, array_module(p["wte"]), p["wte"].dtype)
    context = np.empty((B, config.block_size), np.int32)
    context[:, :n] = ids
    for _ in range(max_new_tokens):
        z = next_logits(context[:, kv.length : n], p, config, kv)[:, :vocab_size]
        uniforms = np.array([stream.random() for stream in streams])
        new = draw(next_probabilities(z, temperature, top_k, top_p), uniforms)
        yield new
        if n == config.block_size:
            n //= 2
            context[:, :n] = context[:, config.block_size - n :]
            kv.reset()
        context[:, n] = new
        n += 1


def next_logits(ids, p, config, kv):
    """Run the tokens `ids` (B, T) that follow those in `kv`; return the last logits (B, V)."""
    ids = to_device(ids, array_module(p["wte"]))
    size = max(1, PREFILL_TOKENS // len(ids))
    with np.errstate(over="ignore", invalid="ignore"):  # told below, as an error
        for start in range(0, ids.shape[1], size):
            x, _ = gpt_forward(ids[:, start : start + size], p, config, kv=kv)
        return check_finite(to_host(logits(x[:, -1], p)))


def check_finite(z):
    """Return the logits z.

    Raises
    ------
    UserError
        If one of them is not finite: a probability made of it would be nonsense.
    """
    if not np.isfinite(z).all():
        raise UserError(
            "the model's logits are not finite, so its weights have diverged: take an earlier "
            "checkpoint, or train again with a lower --learning-rate"
        )
    return z
