"""LoRA beside peft, live: the same logits, the same gradients of a and b, the same merged weights.

Without dropout, whose masks differ. b is not 0, as it is at the start: gradients of a would be 0.
"""

import numpy as np
import pytest

from minigpt.model.gpt import gpt_forward, logits, loss_and_gradients
from minigpt.model.lora import adapter_shapes, join, merge
from minigpt.params import Params
from tests.tools import reference
from tests.tools.gradcheck import assert_same, leaves

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = pytest.mark.reference


def problem(lora):
    """Return a model of peft; params and adapter of the same numbers here; ids and targets."""
    base = reference.random_gpt2(tie_word_embeddings=False)
    params = reference.fill(
        Params(reference.CONFIG.shapes(), np, "float32"), reference.our_names(base)
    )
    model = reference.adapted(base, lora)
    adapter = Params(adapter_shapes(reference.CONFIG, lora), np, "float32")
    reference.fill(adapter, reference.our_factors(model))
    return model, params, adapter, *reference.batch(reference.CONFIG.vocab_size, 20)


def logits_of(ids, p):
    return logits(gpt_forward(ids, p, reference.CONFIG)[0], p)


@pytest.mark.parametrize("lora", reference.LORAS.values(), ids=reference.LORAS)
def test_logits_and_the_gradients_of_an_adapter(lora):
    model, params, adapter, ids, targets = problem(lora)
    params, adapter = reference.as_float64(params), reference.as_float64(adapter)
    p = join(params, adapter, lora)
    loss, grads = loss_and_gradients(ids, targets, p, reference.CONFIG)
    grads = {name: x for name, x in leaves(grads) if "ln_" not in name}  # nobody takes theirs
    expected = reference.first_step(model, ids, targets, reference.our_factors)
    assert_same({"logits": logits_of(ids, p), "loss": loss, **grads}, expected, 1e-9)
    without = logits_of(ids, params.tree)
    assert np.abs(without - expected["logits"]).max() > 0.1  # the adapter does something


@pytest.mark.parametrize("lora", reference.LORAS.values(), ids=reference.LORAS)
def test_merged_weights_are_those_of_peft(lora):
    model, params, adapter, ids, targets = problem(lora)
    with torch.no_grad():
        unmerged = reference.torch_loss(model, ids, targets)[0].numpy()
    merged = merge(params, adapter, lora)
    assert_same({"": logits_of(ids, merged.tree)}, {"": unmerged}, 1e-5)
    assert_same(dict(merged.leaves()), reference.our_names(model.merge_and_unload()), 1e-6)
