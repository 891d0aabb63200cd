"""Plain mode: what a reader writes into an op is met in training, and the numbers stay."""

import ast
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

import minigpt
from minigpt.ops.attention import attention_backward, attention_forward
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from tests.tools.training import TEXT

OPS = (layernorm_forward, layernorm_backward, attention_forward, attention_backward)
OPTIONS = {
    **{"preset": "nanogpt-cpu", "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8},
    **{"batch_size": 4, "threads": 2, "max_iters": 20, "log_interval": 1, "warmup_iters": 0},
    **{"learning_rate": 0.01, "dropout": 0.1, "progress": False},
}


def with_print(op):
    """Return the code of the definition of an op with a print in its first line."""
    tree = ast.parse(inspect.getsource(op.reference))
    (function,) = tree.body
    function.decorator_list = []
    function.body.insert(1, ast.parse(f"print('in {function.name}')").body[0])
    namespace = dict(op.reference.__globals__)
    exec(compile(ast.fix_missing_locations(tree), "a reader's", "exec"), namespace)
    return namespace[function.name].__code__


@pytest.fixture
def prints(monkeypatch, capsys):
    """Put a print into each op; return a function that counts what was printed since the last."""
    for op in OPS:
        monkeypatch.setattr(op.reference, "__code__", with_print(op))

    def count():
        lines = capsys.readouterr().out.splitlines()
        return {op.__name__: lines.count(f"in {op.__name__}") for op in OPS}

    return count


def losses(model):
    return [line["train_loss"] for line in model.history]


def test_a_print_in_an_op_is_met_in_training_with_plain_alone(prints):
    fast = minigpt.fit(text=TEXT, **OPTIONS)
    assert set(prints().values()) == {0}
    with minigpt.plain():
        plain = minigpt.fit(text=TEXT, **OPTIONS)
    met = prints()
    # In 20 steps on 2 threads, 2 layers have as many attentions and 5 layernorms; and evaluations.
    assert met["attention_backward"] == 20 * 2 * 2 and met["layernorm_backward"] == 20 * 2 * 5
    assert met["attention_forward"] > 20 * 2 * 2 and met["layernorm_forward"] > 20 * 2 * 5
    assert len(losses(fast)) == len(losses(plain)) == 20
    np.testing.assert_allclose(losses(plain), losses(fast), rtol=0, atol=1e-5)
    minigpt.fit(text=TEXT, **{**OPTIONS, "max_iters": 1})
    assert set(prints().values()) == {0}


def test_a_print_in_an_op_is_met_in_a_model_with_plain_alone(prints):
    model = minigpt.fit(text=TEXT, **{**OPTIONS, "max_iters": 1})
    z, (loss, _) = model.logits("Line 1"), model.loss_and_gradients("Line 1", "ine 12")
    assert set(prints().values()) == {0}
    with minigpt.plain():
        np.testing.assert_allclose(model.logits("Line 1"), z, rtol=0, atol=1e-5)
        plain_loss, _ = model.loss_and_gradients("Line 1", "ine 12")
        assert plain_loss == pytest.approx(loss, abs=1e-5)
        assert min(prints().values()) > 0


@pytest.mark.parametrize("value, plain", [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_chooses_for_a_whole_program(value, plain):
    env = {name: x for name, x in os.environ.items() if name != "MINIGPT_PLAIN"}
    env |= {} if value is None else {"MINIGPT_PLAIN": value}
    code = "from minigpt import backend; print(backend.is_plain())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"{plain}\n"
