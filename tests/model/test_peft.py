"""LoRA beside peft, live: the same logits, the same gradients of a and b, the same merged weights.

Without dropout, whose masks differ. b is not 0, as it is at the start: gradients of a would be 0.
"""

import numpy as np
import pytest

from minigpt.model.gpt import gpt_forward, logits, loss_and_gradients
from minigpt.model.lora import Lora, adapter_shapes, join, merge
from minigpt.params import Params
from tests.tools import reference
from tests.tools.gradcheck import assert_same, leaves
from tests.tools.options import gpt_config

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = pytest.mark.reference

ALL = "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
LORAS = {
    "c_attn": Lora(rank=4, alpha=8.0),
    "all four, rank 1": Lora(rank=1, alpha=3.0, targets=ALL),
    "both c_proj, rank above C": Lora(rank=20, alpha=5.0, targets=("c_proj",)),
    "rsLoRA": Lora(rank=4, alpha=8.0, targets=("c_attn", "mlp.c_fc"), rslora=True),
}
CONFIG = gpt_config(37, 70, 2, 3, 15, bias=True, activation="gelu_tanh", tie_head=False)


def problem(lora):
    """Return a model of peft; params and adapter of the same numbers here; ids and targets."""
    base = reference.random_gpt2(tie_word_embeddings=False)
    params = reference.fill(Params(CONFIG.shapes(), np, "float32"), reference.our_names(base))
    model = reference.adapted(base, lora)
    adapter = Params(adapter_shapes(CONFIG, lora), np, "float32")
    reference.fill(adapter, reference.our_factors(model))
    return model, params, adapter, *reference.batch(CONFIG.vocab_size, 20)


def logits_of(ids, p):
    return logits(gpt_forward(ids, p, CONFIG)[0], p)


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
def test_logits_and_the_gradients_of_an_adapter(lora):
    model, params, adapter, ids, targets = problem(lora)
    params, adapter = reference.as_float64(params), reference.as_float64(adapter)
    p = join(params, adapter, lora)
    loss, grads = loss_and_gradients(ids, targets, p, CONFIG)
    grads = {name: x for name, x in leaves(grads) if "ln_" not in name}  # nobody takes theirs
    expected = reference.first_step(model, ids, targets, reference.our_factors)
    assert_same({"logits": logits_of(ids, p), "loss": loss, **grads}, expected, 1e-9)
    without = logits_of(ids, params.tree)
    assert np.abs(without - expected["logits"]).max() > 0.1  # the adapter does something


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
def test_merged_weights_are_those_of_peft(lora):
    model, params, adapter, ids, targets = problem(lora)
    with torch.no_grad():
        unmerged = reference.torch_loss(model, ids, targets)[0].numpy()
    merged = merge(params, adapter, lora)
    assert_same({"": logits_of(ids, merged.tree)}, {"": unmerged}, 1e-5)
    assert_same(dict(merged.leaves()), reference.our_names(model.merge_and_unload()), 1e-6)
