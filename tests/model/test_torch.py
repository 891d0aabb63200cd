"""minigpt against torch, in float64: live where torch is installed, else as it was recorded."""

import itertools

import numpy as np
import pytest

from minigpt.model.gpt import gpt_forward, logits, loss_backward, loss_forward, shapes
from minigpt.ops.attention import attention_backward, attention_forward
from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import GRAD_NORM
from minigpt.optim.gradients import gather
from minigpt.optim.schedule import learning_rate
from minigpt.params import Params, leaves
from tests.tools import torch_reference as reference
from tests.tools.gradcheck import assert_same
from tests.tools.options import gpt_config
from tests.tools.torch_reference import CASES, RECIPE, STEPS

ALL = [
    dict(zip(("bias", "qkv_bias", "activation", "tie_head", "head_bias"), values, strict=True))
    for values in itertools.product(
        (True, False),
        (None, True, False),
        ("gelu", "gelu_tanh", "relu"),
        (True, False),
        (True, False),
    )
    if not (values[3] and values[4])  # a tied head has no bias
]


def problem(config, seed=0):
    sizes = leaves(shapes(config))
    return reference.problem(sizes, config.vocab_size, config.block_size, seed=seed)


def params_of(weights, config):
    params = Params(shapes(config), np, "float64")
    for name, view in params.leaves():
        view[...] = weights[name]
    return params


def first_step(weights, ids, targets, config):
    """As reference.first_step, by minigpt."""
    p = params_of(weights, config).tree
    loss, cache = loss_forward(ids[0], targets[0], p, config)
    grads = {f"grad.{name}": g for name, g in leaves(loss_backward(1.0, cache))}
    return {"logits": logits(gpt_forward(ids[0], p, config)[0], p), "loss": loss, **grads}


def train(weights, ids, targets, config):
    """As reference.train, by minigpt."""
    params = params_of(weights, config)
    grads = params.zeros_like()
    adamw = AdamW(
        params, RECIPE.beta1, RECIPE.beta2, RECIPE.weight_decay, max_norm=RECIPE.grad_clip
    )
    losses, norms = [], []
    for step in range(STEPS):
        loss, cache = loss_forward(ids[step], targets[step], params.tree, config)
        gather(grads.flat, (grads.ordered(loss_backward(1.0, cache)),))
        adamw.step(grads.flat, learning_rate(step, RECIPE))
        norms.append(float(adamw.state[GRAD_NORM]))
        losses.append(float(loss))
    last = {f"last.{name}": w for name, w in params.leaves()}
    return {"losses": np.array(losses), "norms": np.array(norms), **last}


@pytest.mark.parametrize("case", CASES)
def test_as_recorded(case):
    config = gpt_config(**CASES[case])
    made = problem(config)
    with np.load(reference.FILE, allow_pickle=False) as file:
        recorded = {k.split("/")[1]: file[k] for k in file.files if k.split("/")[0] == case}
    assert reference.digest(*made) == str(recorded.pop("sha256")), (
        "not the inputs of the recording: python -m tests.torch_reference makes another"
    )
    assert recorded.keys() == {**first_step(*made, config), **train(*made, config)}.keys()
    of_first = {k: v for k, v in recorded.items() if k.startswith(("logits", "loss", "grad"))}
    of_first.pop("losses")
    assert_same(first_step(*made, config), of_first, 1e-9)
    of_training = {k: v for k, v in recorded.items() if k not in of_first}
    assert_same(train(*made, config), of_training, 1e-7)


def test_the_recorded_recipe_tries_what_it_should():
    with np.load(reference.FILE, allow_pickle=False) as file:
        for case in CASES:
            norms, losses = file[f"{case}/norms"], file[f"{case}/losses"]
            assert norms.max() > RECIPE.grad_clip > norms.min()
            assert len(losses) == STEPS and losses[-5:].mean() < losses[:5].mean()
    assert reference.FILE.stat().st_size < 300_000


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_the_recording_is_what_torch_says_today(torch, case):
    config = gpt_config(**CASES[case])
    made = problem(config)
    today = reference.first_step(*made, config) | reference.train(*made, config)
    with np.load(reference.FILE, allow_pickle=False) as file:
        recorded = {name: file[f"{case}/{name}"] for name in today}
    assert_same(today, recorded, 1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("options", ALL, ids=lambda options: "-".join(map(str, options.values())))
def test_loss_logits_and_every_gradient(torch, options):
    config = gpt_config(vocab_size=13, block_size=9, n_layer=2, n_head=3, n_embd=12, **options)
    made = problem(config, seed=1)
    assert_same(first_step(*made, config), reference.first_step(*made, config), 1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("bigram", [True, False])
@pytest.mark.parametrize("n_head", [1, 3, 6])
def test_every_gradient_with_rotary_positions_and_pairs(torch, rotary, bigram, n_head):
    config = gpt_config(13, 9, 2, n_head, 12, rotary=rotary, bigram=bigram)
    made = problem(config, seed=4)
    assert_same(first_step(*made, config), reference.first_step(*made, config), 1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_a_larger_model(torch, case):
    sizes = {"vocab_size": 65, "block_size": 70, "n_layer": 3, "n_head": 4, "n_embd": 64}
    config = gpt_config(**{**CASES[case], **sizes})
    weights, ids, targets = problem(config, seed=2)
    made = {name: w / 4 for name, w in weights.items()}, ids, targets
    assert_same(first_step(*made, config), reference.first_step(*made, config), 1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_of_adamw(torch, case):
    config = gpt_config(**{**CASES[case], "n_embd": 12, "n_head": 3})
    made = problem(config, seed=3)
    assert_same(train(*made, config), reference.train(*made, config), 1e-7)


@pytest.mark.reference
@pytest.mark.parametrize("step", range(0, 30, 3))
def test_learning_rate_is_nanogpts(torch, step):
    np.testing.assert_allclose(learning_rate(step, RECIPE), reference.rate(step), rtol=1e-14)


@pytest.mark.reference
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("Tq, Tk", [(5, 5), (3, 150), (150, 3), (140, 140)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs_scaled_dot_product(torch, rng, Tq, Tk, causal, masked):
    arrays = [rng.standard_normal((2, 3, T, 4)) for T in (Tq, Tk, Tk)]
    key_mask = rng.random((2, Tk)) < 0.7 if masked else None
    if masked:
        key_mask[:, 0] = True
    seen = np.tril(np.ones((Tq, Tk), bool), Tk - Tq) if causal else np.ones((Tq, Tk), bool)
    seen = seen & (True if key_mask is None else key_mask[:, None, None])
    q, k, v = (torch.tensor(x, requires_grad=True) for x in arrays)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, torch.tensor(np.broadcast_to(seen, (2, 1, Tq, Tk)).copy())
    )
    expected = torch.where(torch.tensor(seen.any(-1))[..., None], expected, 0.0)
    y, cache = attention_forward(*arrays, causal, key_mask)
    dy = rng.standard_normal(y.shape)
    expected.backward(torch.tensor(dy))
    assert_same(y, expected.detach().numpy(), 1e-12)
    for dx, x in zip(attention_backward(dy, cache), (q, k, v), strict=True):
        assert_same(dx, np.nan_to_num(x.grad.numpy()), 1e-12)
