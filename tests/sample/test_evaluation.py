"""The mean loss over a split, and even parts of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.model.init import init_params
from minigpt.sample.evaluation import GROUP, even_part, mean_loss, spread
from minigpt.sample.tasks import TASKS
from tests.tools.options import gpt_config


@given(st.integers(1, 10**9), st.integers(1, 1000))
def test_a_part_is_spread_evenly_over_the_whole(n, k):
    which = spread(n, min(k, n))
    gaps = np.diff(which, append=n)
    assert len(which) == min(k, n) and which[0] == 0 and which[-1] < n
    assert gaps.min() >= 1 and gaps[:-1].max(initial=0) - gaps.min() <= 1


def test_a_split_within_the_limit_is_evaluated_whole():
    assert even_part(10, 100, 100) is None
    assert even_part(10, 100, 50).tolist() == [0, 2, 4, 6, 8]
    assert even_part(3, 10**9, 1).tolist() == [0]


def test_a_part_and_the_rest_have_the_mean_of_the_whole():
    config = gpt_config(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=8)
    params, task = init_params(config, 0, np), TASKS["text"]
    ids, done = np.random.default_rng(0).integers(0, 5, 3000).astype(np.int32), []

    def mean(which, show=None):
        batches = task.eval_batches(ids, config, 4, which)
        return mean_loss(task, params, config, batches, show=show)

    items, targets = task.eval_size(ids, config)
    part = even_part(items, targets, 700)
    rest = np.delete(np.arange(items), part)
    (one, n), (other, m), (whole, count) = mean(part), mean(rest), mean(None, done.append)
    assert n + m == count == targets == len(ids) - 1 and abs(n - 700) <= 8
    assert (n * one + m * other) / count == pytest.approx(whole, rel=1e-6)
    assert done[-1] == count and len(done) == -(-items // (4 * GROUP))
