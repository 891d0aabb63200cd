"""GPT-2's own weights, 124M, where MINIGPT_GPT2 names their folder: losses that others published.

llm.c (test_gpt2.c, README) and nanoGPT (issue 210). In llm.c's tiny Shakespeare
<|endoftext|> stands before every speech, and the first 32,768 tokens are for validation
(dev/data/tinyshakespeare.py).
"""

import numpy as np
import pytest

from minigpt.data.datasets import TextData
from minigpt.data.subwords import BpeTokenizer
from minigpt.interchange.loading import load_model
from minigpt.model.gpt import loss_and_gradients, loss_forward
from minigpt.optim.adamw import AdamW
from minigpt.optim.gradients import gather
from tests.tools import reference

pytestmark = [pytest.mark.bpe, pytest.mark.slow]

B, T = 4, 64
TEN_LOSSES = (
    *(5.270007, 4.059707, 3.375123, 2.800783, 2.315382),
    *(1.849029, 1.394656, 0.999147, 0.624080, 0.376511),
)


def gpt2():
    return load_model(reference.real_gpt2(), np)


def llmc_tokens(tokenizer, text):
    """Return the ids of a text as llm.c has them: (N,) int32."""
    *speeches, last = text.split("\n\n")
    end = np.array([tokenizer.end_of_text], np.int32)
    parts = [speech + "\n\n" for speech in speeches] + [last]
    return np.concatenate([x for part in parts for x in (end, tokenizer.encode(part))])


def batch(tokens, i):
    """Return batch i of tokens, ids and targets (B, T) each."""
    ids, targets = (tokens[i * B * T + k :][: B * T].reshape(B, T) for k in (0, 1))
    return ids, targets


def mean_loss(checkpoint, batches):
    losses = [loss_forward(*xy, checkpoint.params.tree, checkpoint.config)[0] for xy in batches]
    return float(np.mean(losses))


def test_tiny_shakespeare_has_the_tokens_of_llmc(corpus):
    tokenizer = BpeTokenizer.read(reference.vocabulary())
    assert len(llmc_tokens(tokenizer, corpus)) == 32_768 + 305_260


def test_ten_steps_on_one_batch_have_the_losses_of_llmc(corpus):
    checkpoint = gpt2()
    params, config = checkpoint.params, checkpoint.config
    params.decayed = params.size  # llm.c decays gains and biases, too
    ids, targets = batch(llmc_tokens(checkpoint.tokenizer, corpus), 0)
    adamw, grads, losses = AdamW(params, 0.9, 0.999, weight_decay=0.01), params.zeros_like(), []
    for _ in TEN_LOSSES:
        loss, tree = loss_and_gradients(ids, targets, params.tree, config)
        gather(grads.flat, (grads.ordered(tree),))
        adamw.step(grads.flat, 1e-4)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, TEN_LOSSES, rtol=0, atol=1e-2)


def test_the_validation_loss_before_training_is_that_of_llmc(corpus):
    checkpoint = gpt2()
    tokens = llmc_tokens(checkpoint.tokenizer, corpus)
    found = mean_loss(checkpoint, [batch(tokens, i) for i in range(5)])
    assert found == pytest.approx(5.252026, abs=1e-3)


def test_the_zero_shot_loss_on_tiny_shakespeare_is_that_of_nanogpt(corpus, tmp_path):
    checkpoint = gpt2()
    (tmp_path / "text").write_text(corpus, "utf-8", newline="")
    val = TextData(str(tmp_path / "text"), checkpoint.tokenizer).val.astype(np.int32)
    n = checkpoint.config.block_size
    windows = [(val[i : i + n][None], val[i + 1 : i + n + 1][None]) for i in range(0, 35 * n, n)]
    assert mean_loss(checkpoint, windows) == pytest.approx(
        4.03, abs=0.05
    )  # 40 random windows there
