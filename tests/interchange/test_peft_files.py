"""Adapters in peft's files, both ways, live: the same factors, and the same logits of peft."""

import numpy as np
import pytest

from minigpt.interchange.peft import read_adapter, write_adapter
from minigpt.model.lora import adapter_shapes
from minigpt.params import Params
from tests.tools import reference
from tests.tools.gradcheck import assert_same

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.reference


@pytest.fixture
def adapted(tmp_path):
    """lora -> a random GPT-2 with an adapter of peft; its base lies in the folder "base"."""

    def make(lora):
        base = reference.random_gpt2(tie_word_embeddings=False)
        reference.save(base, tmp_path / "base")
        base.config.name_or_path = base.name_or_path = str(tmp_path / "base")
        return reference.adapted(base, lora)

    return make


@pytest.mark.parametrize("lora", reference.LORAS.values(), ids=reference.LORAS)
def test_an_adapter_of_peft_is_read(adapted, tmp_path, lora):
    model = adapted(lora)
    model.save_pretrained(tmp_path / "adapter")
    adapter, found = read_adapter(tmp_path / "adapter", reference.CONFIG)
    assert (found.rank, found.alpha, found.rslora) == (lora.rank, lora.alpha, lora.rslora)
    assert_same(dict(adapter.leaves()), reference.our_factors(model), 0.0)


@pytest.mark.parametrize("lora", reference.LORAS.values(), ids=reference.LORAS)
def test_peft_reads_an_adapter_that_is_written_here(adapted, tmp_path, lora):
    model = adapted(lora)
    adapter = Params(adapter_shapes(reference.CONFIG, lora), np, "float32")
    reference.fill(adapter, reference.our_factors(model))
    write_adapter(tmp_path / "adapter", adapter, lora, reference.CONFIG, str(tmp_path / "base"))
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_same(reference.our_factors(theirs), dict(adapter.leaves()), 0.0)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    batch = reference.batch(reference.CONFIG.vocab_size, 20)
    with torch.no_grad():
        expected, *found = (
            reference.torch_loss(m, *batch)[0].numpy() for m in (model, theirs, whole)
        )
    for z in found:
        assert_same({"": z}, {"": expected}, 1e-6)
