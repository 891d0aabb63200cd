"""Gradients of matrices are left in the step's buffer by the products that make them, on CuPy."""

import dataclasses

import numpy as np
import pytest

from minigpt.backend import places, plain, to_device, to_host
from minigpt.model.init import init_params
from minigpt.model.lora import Lora, init_adapter
from minigpt.ops.dropout import Rng
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers, sum_gradients
from tests.tools.dtypes import DTYPES, UNIT
from tests.tools.stepping import CONFIG, IDS, TRAIN, dates, trainer

pytestmark = pytest.mark.cupy

UNTIED = dataclasses.replace(CONFIG, tie_head=False, head_bias=True, bias=True)
MODELS = {"tied": CONFIG, "untied": UNTIED, "bigram": dataclasses.replace(CONFIG, bigram=True)}


def adapting(xp, workers, **changes):
    """A Trainer of an adapter."""
    lora = Lora(rank=3, alpha=6.0, dropout=0.1, targets=("c_attn", "mlp.c_proj"))
    options = {"lora_rank": 3, "lora_alpha": 6.0, "lora_dropout": 0.1, "init_from": "x"}
    options |= {"lora_targets": "c_attn\nmlp.c_proj"}
    adapter, frozen = init_adapter(CONFIG, lora, 1337, xp), init_params(CONFIG, 1337, xp)
    adapter.flat += 0.01  # else lora_b is 0, and lora_a has no gradient
    recipe = dataclasses.replace(TRAIN, **options, **changes)
    return Trainer(adapter, CONFIG, recipe, xp, workers, frozen)


def gradients(model, xp, dtype, use_places):
    """The gradients of two batches, by name, as NumPy."""
    changes = {"dtype": dtype, "gradient_accumulation_steps": 2}
    with Workers(1) as workers:
        if model == "adapter":
            this = adapting(xp, workers, **changes)
        else:
            this = trainer(xp, workers, MODELS.get(model) or dates()[0], **changes)
        if not use_places:
            this._places = {}
        split = dates()[1] if model == "pairs" else to_device(IDS, xp)
        for i, batch in enumerate(this.batches(split, 0)):
            this.gradients(*batch, Rng.of(1, 0, i), 100, add=i > 0)
        return {name: to_host(g) for name, g in this.grads.leaves()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [*MODELS, "pairs", "adapter"])
def test_gradients_are_those_that_are_gathered(cupy, model, dtype):
    found, expected = (gradients(model, cupy, dtype, use) for use in (True, False))
    for name, g in expected.items():
        # Gathered ones were rounded to dtype, each batch, and where a table has two uses each use.
        near = 4 * UNIT[dtype] * np.abs(g).max() + 2.0**-22 * (dtype == "float16")
        np.testing.assert_allclose(found[name], g, rtol=0, atol=near, err_msg=name)


@pytest.mark.parametrize("model", [*MODELS, "pairs", "adapter"])
def test_no_matrix_is_gathered_or_summed_in_16_bits(cupy, gathered, model):
    found = gradients(model, cupy, "float16", True)
    others = {name: g for name, g in found.items() if g.ndim == 1 and name != "lm_head.b"}
    assert sum(gathered) == 2 * sum(g.size for g in others.values())
    assert len(gathered) == 2 * bool(others)  # they lie together
    for name in found.keys() - others.keys():
        g = found[name]
        assert (g != g.astype("float16")).any(), name


def test_plain_ops_return_what_is_gathered(cupy, gathered):
    with plain():
        found = gradients("tied", cupy, "float32", True)
    assert sum(gathered) == 2 * sum(g.size for g in found.values())
    expected = gradients("tied", cupy, "float32", True)
    for name, g in expected.items():
        np.testing.assert_allclose(found[name], g, rtol=0, atol=1e-5 * np.abs(g).max() + 1e-9)


def test_a_place_is_one_thread_s_while_the_context_lasts(cupy, rng):
    x, w, dy = (cupy.asarray(rng.standard_normal(s), "f") for s in ((5, 3), (3, 4), (5, 4)))
    place = cupy.full((3, 4), 2, "f")
    found = places.gradient_places([w], [place])
    expected = to_host(x).T @ to_host(dy)
    _, cache = linear_forward(x, w)
    for add in (False, True):
        with places.gradients_into(found, add) as filled:
            assert linear_backward(dy, cache)[1]["w"] is place
            assert [y is place for y in filled] == [True]
            other = linear_forward(x, w.copy())[1]
            assert linear_backward(dy, other)[1]["w"] is not place
            part = linear_forward(x[:, :2], w[:2])[1]
            assert linear_backward(dy, part)[1]["w"] is not place  # begins where w does
        np.testing.assert_allclose(to_host(place), (1 + add) * expected, rtol=1e-5, atol=1e-5)
    assert linear_backward(dy, cache)[1]["w"] is not place
    with Workers(2) as workers, places.gradients_into(found, False):
        _, second = workers.map(lambda _: linear_backward(dy, cache)[1]["w"], range(2))
    assert second is not place


def test_a_gradient_that_was_replaced_is_an_error(cupy):
    with Workers(1) as workers:
        grads = trainer(cupy, workers).grads
        tree = grads.zeros_like().tree
        with pytest.raises(RuntimeError, match="left in its place"):
            sum_gradients(workers, [tree], grads, True, [grads["wte"]])
