import numpy as np
import pytest

from minigpt.model.gpt import GPTConfig
from minigpt.sample.kv_cache import KVCache

CONFIG = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)


def test_the_cache_returns_views_and_counts_when_all_layers_have_stored():
    kv = KVCache(CONFIG, 2, np, np.float32)
    assert kv.store.dtype == np.float32 and kv.store.shape == (2, 2, 2, 2, 6, 4)
    for start, T in ((0, 4), (4, 1), (5, 1)):
        for layer in range(2):
            k = np.full((2, 2, T, 4), 10 * layer + start, np.float32)
            k_all, v_all = kv[layer].append(k, -k)
            assert k_all.shape == v_all.shape == (2, 2, start + T, 4)
            assert np.shares_memory(k_all, kv.store) and np.shares_memory(v_all, kv.store)
            assert k_all[0, 0, :, 0].tolist()[start:] == [10 * layer + start] * T
            assert (v_all == -k_all).all() and k_all[0, 0, 0, 0] == 10 * layer
            assert kv.length == start
        kv.advance(np.array([[1] * T, [2] * T]))
        assert kv.previous.tolist() == [1, 2]
    one = np.zeros((2, 2, 1, 4), np.float32)
    with pytest.raises(ValueError, match="7 tokens, but there is room for 6"):
        kv[0].append(one, one)
    kv.reset()
    assert (
        kv.previous is None and kv.length == 0 and kv[1].append(one, one)[0].shape == (2, 2, 1, 4)
    )
