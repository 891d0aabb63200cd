"""Bugs planted in the backward pass of a whole model: each must be found, by name."""

import numpy as np
import pytest

from minigpt.model.gpt import loss_backward, loss_forward
from minigpt.model.init import init_params
from minigpt.ops import cross_entropy
from tests.tools.gradcheck import MODEL, check_backward, leaves, map_tree
from tests.tools.options import gpt_config
from tests.tools.rings import fast
from tests.tools.test_gradcheck import check

CONFIG = gpt_config(3, 2, 1, 1, 3, qkv_bias=False, tie_head=False, head_bias=True)
NAMES = [name for name, _ in init_params(CONFIG, 0, np).leaves()]


@pytest.mark.parametrize("wrong", fast({"none": None} | {x: x for x in NAMES}, "none", "lm_head.b"))
def test_a_bug_in_any_parameter_of_a_model_is_found(rng, wrong):
    tree = map_tree(lambda x: rng.standard_normal(x.shape), init_params(CONFIG, 0, np).tree)
    ids, targets = rng.integers(0, 3, (2, 2, 2))

    def forward(**p):
        return loss_forward(ids, targets, p, CONFIG)

    def backward(dloss, cache):
        grads = map_tree(np.copy, loss_backward(dloss, cache))
        for name, g in leaves(grads):
            g *= 1 + 1e-11 * (name == wrong)
        return grads

    check(
        lambda: check_backward(forward, backward, **tree, rng=rng, factor=MODEL),
        faulty=wrong is not None,
        match=f"^{wrong}: relative error",
    )


def test_a_tied_head_that_forgets_the_embedding_is_found(rng):
    config = gpt_config(3, 2, 1, 1, 2)
    tree = map_tree(lambda x: rng.standard_normal(x.shape), init_params(config, 0, np).tree)
    ids, targets = rng.integers(0, 3, (2, 2, 2))

    def backward(dloss, cache):
        _, loss_cache, *_ = cache
        head = cross_entropy.cross_entropy_backward(dloss, loss_cache)[1]["w"].copy()
        return {**loss_backward(dloss, cache), "wte": head}

    def forward(**p):
        return loss_forward(ids, targets, p, config)

    check(
        lambda: check_backward(forward, backward, **tree, rng=rng, factor=MODEL),
        faulty=True,
        match="^wte",
    )
