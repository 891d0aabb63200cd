"""The run of tests/tools/training.py as options of minigpt.fit, and what its tests share."""

import numpy as np
from threadpoolctl import threadpool_info

OPTIONS = {
    "preset": "nanogpt-cpu",
    **{"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 3},
    **{"threads": 2, "max_iters": 12, "eval_interval": 4, "log_interval": 2},
    **{"warmup_iters": 2, "learning_rate": 0.01, "sample_tokens": 0},
}
PAIRS = [(str(i), str(i)[::-1]) for i in range(100)]
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 8, "threads": 1}


def weights(model):
    return dict(model.params.leaves())


def assert_equal(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name])


def blas():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
