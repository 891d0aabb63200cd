"""The KV cache: keys and values of the tokens that a model has seen, by layer.

A decoding step runs the newest token alone. Under the causal mask nothing before a token depends
on it, so the keys and values of the past are what they were: they are kept and not recomputed.
Keys hold their positions, learned or rotary, and the cache has room for block_size tokens.
"""

from typing import NamedTuple


class LayerKV(NamedTuple):
    """Keys and values of one layer, (B, H, block_size, D); the first `length` are filled."""

    k: object
    v: object
    length: int

    def append(self, k, v):
        """Store k and v (B, H, T, D) after the filled part; return views of all so far.

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

    By layer it gives a LayerKV.

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
        return LayerKV(*self.store[layer], self.length)

    def advance(self, ids):
        """Count the tokens ids (B, T), once all layers have stored theirs."""
        self.length += ids.shape[1]
        self.previous = ids[:, -1]

    def reset(self):
        """Forget all tokens and keep the memory."""
        self.length, self.previous = 0, None
