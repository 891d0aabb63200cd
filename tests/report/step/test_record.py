"""One recorded step: its numbers are those of the model's own passes, and the loss falls."""

import numpy as np
import pytest

from minigpt.backend import plain
from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.library.model import Model
from minigpt.model.gpt import loss_and_gradients
from minigpt.params import leaves
from minigpt.report.step.record import TINY, record_step


def test_loss_and_gradients_are_those_of_the_models_passes_to_the_last_bit(step):
    with plain():
        loss, grads = loss_and_gradients(step.ids, step.targets, step.before.tree, step.config)
    assert loss == step.loss
    found = dict(step.grads.leaves())
    for name, gradient in leaves(grads):
        assert (found.pop(name) == gradient).all(), name
    assert found == {}


def test_a_model_from_the_library_agrees(step):
    model = Model(step.config, step.before, step.tokenizer)
    loss, _ = model.loss_and_gradients(step.ids, step.targets)
    assert loss == pytest.approx(step.loss, rel=1e-5)
    with plain():
        again, _ = Model(step.config, step.after, step.tokenizer).loss_and_gradients(
            step.ids, step.targets
        )
    assert again == step.loss_after


@pytest.mark.parametrize("prompt", ["Be", "Bee3", "eeee", "hear me speak. 3 Beer", "\n\n3"])
def test_the_loss_of_the_sentence_falls(tokenizer, prompt):
    step = record_step(prompt, tokenizer)
    assert step.loss_after < step.loss
    assert step.tokens == tokenizer.encode(prompt).tolist()[:9]
    assert step.left_out == max(len(prompt) - 9, 0)


def test_a_long_sentence_is_cut_whatever_the_block_size(tokenizer):
    step = record_step("Beer " * 100, tokenizer, block_size=10**9)
    assert step.ids.shape == (1, 64) and step.left_out == 500 - 65
    assert step.before["wpe"].shape == (64, 8)


def test_first_weights_can_be_typed_in(step):
    for view in step.before.arrays:
        assert np.allclose(view, np.round(view, 2), atol=1e-7)
    assert {float(x) for x in step.before["h"][0]["ln_1"]["w"]} == {1.0}
    assert 0.2 < step.before["wte"].std() < 0.5  # of which 0.35 is 1 / sqrt(8)


def test_the_lectures_ids(corpus):
    step = record_step("Bee3", CharTokenizer.from_text(corpus))
    assert step.tokens == [14, 43, 43, 9]
    assert step.config.vocab_size == 65 and step.config.n_embd == TINY.n_embd == 8


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "--prompt '' has 0 characters, but a step needs at least 2"),
        ("B", "--prompt 'B' has 1 character, but a step needs at least 2"),
        ("Bee7", "--prompt: '7' at position 3, counted from 0, is not in the vocabulary"),
    ],
)
def test_a_prompt_that_no_step_can_be_made_of(tokenizer, prompt, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        record_step(prompt, tokenizer)
