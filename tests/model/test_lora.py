from dataclasses import replace

import numpy as np
import pytest

from minigpt.errors import UserError
from minigpt.library.check import analytic
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import (
    GPTConfig,
    gpt_forward,
    loss_and_gradients,
    loss_backward,
    loss_forward,
)
from minigpt.model.init import init_params
from minigpt.model.lora import (
    Lora,
    adapter_shapes,
    init_adapter,
    join,
    merge,
    weights_sha256,
)
from minigpt.ops.dropout import Rng
from minigpt.params import Params, leaves, map_tree
from tests.tools.gradcheck import MODEL, assert_same, check_backends, check_backward

GPT2 = {"bias": True, "rotary": False, "bigram": False, "qkv_bias": True, "activation": "gelu_tanh"}
QUICK = {"bias": False, "rotary": True, "bigram": True, "activation": "gelu"}
UNTIED = {**QUICK, "tie_head": False, "head_bias": True}
SMALL = GPTConfig(5, 6, 2, 2, 4, **GPT2)
RNG = Rng.of(8, 1)
ALL = ("c_attn", "c_proj", "c_fc")


def problem(rng, config, lora, xp=np, dtype="float64"):
    """Return (base, adapter) with numbers nowhere 0, lora_b among them, ids and targets."""
    shapes = init_params(config, 0).shapes, adapter_shapes(config, lora)
    base, adapter = (Params(tree, xp, dtype) for tree in shapes)
    for params in (base, adapter):
        params.flat[...] = xp.asarray(0.5 * rng.standard_normal(params.size))
    ids, targets = rng.integers(0, config.vocab_size - 1, (2, 3, 5), dtype=np.int32)
    targets[0, 0] = -1
    return base, adapter, ids, targets


def only(shapes, grads):
    """Return the part of a tree of gradients that an adapter of those shapes has."""
    named = dict(leaves(grads))
    return map_tree(lambda name, _: named[name], shapes)


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize(
    "options, lora",
    [
        (GPT2, Lora(2, 3.0)),
        pytest.param(QUICK, Lora(1, 2.0, targets=ALL), marks=pytest.mark.slow),
        (UNTIED, Lora(5, 2.0, targets=("mlp.c_proj", "c_attn"), rslora=True)),
    ],
    ids=["gpt2", "rank 1", "rank above C"],
)
def test_every_gradient_of_an_adapter(rng, options, lora, dropout):
    config = replace(SMALL, qkv_bias=None, dropout=dropout / 2)
    config = replace(config, **options)
    lora = replace(lora, dropout=dropout)
    base, adapter, ids, targets = problem(rng, config, lora)

    def forward(**p):
        moved = any(np.iscomplexobj(x) for _, x in leaves(p))  # then every op has to continue |x|
        frozen = map_tree(lambda _, x: analytic(x), base.tree) if moved else base
        return loss_forward(ids, targets, join(frozen, p, lora), config, RNG)

    def backward(dy, cache):
        return only(adapter.shapes, loss_backward(dy, cache))

    check_backward(forward, backward, **adapter.tree, rng=rng, factor=MODEL)


@pytest.mark.cupy
def test_backends_agree(rng, xp):
    lora = Lora(2, 3.0, 0.3, ALL)
    base, adapter, ids, targets = problem(rng, SMALL, lora)

    def forward(ids, targets, **p):
        base_there = map_tree(lambda _, x: xp.asarray(x), base.tree)
        base_here = base_there if type(ids) is not np.ndarray else base
        return loss_forward(ids, targets, join(base_here, p, lora), SMALL, RNG)

    def backward(dy, cache):
        return only(adapter.shapes, loss_backward(dy, cache))

    arrays = {"ids": ids, "targets": targets}
    check_backends(forward, backward, **adapter.tree, rng=rng, xp=xp, options=arrays)


@pytest.mark.parametrize("options", [GPT2, UNTIED], ids=["tied", "untied"])
def test_both_passes_at_once_give_no_gradient_of_embeddings_and_head(rng, options):
    config, lora = replace(SMALL, **options), Lora(2, 3.0, 0.3)
    base, adapter, ids, targets = problem(rng, config, lora)
    tree = join(base, adapter, lora)
    loss, cache = loss_forward(ids, targets, tree, config, RNG)
    grads = loss_backward(1.0, cache)
    for recompute in (False, True):
        both = loss_and_gradients(ids, targets, tree, config, RNG, recompute=recompute)
        assert_same(both, (loss, grads), 1e-11)
    named = {name for name, _ in leaves(grads)}
    assert {name for name in named if not name.startswith(("h.0.ln", "h.1.ln", "ln_f"))} == {
        f"h.{i}.attn.c_attn.{factor}" for i in (0, 1) for factor in ("lora_a", "lora_b")
    }


@pytest.mark.parametrize("options", [GPT2, QUICK, UNTIED], ids=["gpt2", "quick", "untied"])
def test_merged_weights_give_what_the_joined_ones_give(rng, options):
    config, lora = replace(SMALL, **options), Lora(3, 2.0, 0.5, ALL, rslora=True)
    base, adapter, ids, _ = problem(rng, config, lora)
    before = base.flat.copy()
    joined, _ = gpt_forward(ids, join(base, adapter, lora), config)
    merged = merge(base, adapter, lora)
    np.testing.assert_allclose(gpt_forward(ids, merged.tree, config)[0], joined, rtol=1e-9)
    assert np.array_equal(base.flat, before)
    assert not np.allclose(gpt_forward(ids, base.tree, config)[0], joined)


def test_a_new_adapter_changes_nothing(rng):
    lora = Lora(2, 3.0, targets=ALL)
    base, _, ids, _ = problem(rng, SMALL, lora, dtype="float32")
    adapter = init_adapter(SMALL, lora, 1)
    joined, _ = gpt_forward(ids, join(base, adapter, lora), SMALL)
    plain, _ = gpt_forward(ids, base.tree, SMALL)
    np.testing.assert_allclose(joined, plain, rtol=1e-5, atol=1e-6)
    assert np.array_equal(merge(base, adapter, lora).flat, base.flat)


@pytest.mark.cupy
def test_first_factors_are_uniform_and_second_ones_0(xp):
    config = replace(SMALL, n_embd=64, n_layer=3)
    adapter = init_adapter(config, Lora(16, 1.0, targets=ALL), 7, xp)
    again = init_adapter(config, Lora(16, 1.0, targets=ALL), 7)
    for (name, view), (_, same) in zip(adapter.leaves(), again.leaves(), strict=True):
        assert np.array_equal(view.get() if hasattr(view, "get") else view, same)
        if name.endswith("lora_b"):
            assert not same.any()
            continue
        bound = 1 / np.sqrt(len(same))
        assert 0.99 * bound < abs(same).max() <= bound
        assert abs(same.std() - bound / 3**0.5) < 0.03 * bound  # of a uniform distribution
        assert abs(same.mean()) < 0.06 * bound
    firsts = [view for name, view in again.leaves() if name.endswith("c_attn.lora_a")]
    assert not np.array_equal(firsts[0], firsts[1])
    other = init_adapter(config, Lora(16, 1.0, targets=ALL), 8)
    assert not np.array_equal(other.flat, again.flat)


@pytest.mark.parametrize(
    "targets, found",
    [
        (("c_attn",), {"attn.c_attn"}),
        (("c_proj",), {"attn.c_proj", "mlp.c_proj"}),
        (("mlp.c_proj", "c_fc"), {"mlp.c_proj", "mlp.c_fc"}),
        (("attn.c_proj",), {"attn.c_proj"}),
    ],
    ids=lambda x: str(x),
)
def test_targets_are_the_ends_of_names(targets, found):
    tree = adapter_shapes(SMALL, Lora(2, 1.0, targets=targets))
    names = {name.rpartition(".")[0] for name, _ in leaves(tree)}
    assert names == {f"h.{i}.{name}" for i in (0, 1) for name in found}


def test_one_layer_can_be_a_target():
    tree = adapter_shapes(SMALL, Lora(2, 1.0, targets=("h.1.mlp.c_fc",)))
    assert tree == {"h": [{}, {"mlp": {"c_fc": {"lora_a": (4, 2), "lora_b": (2, 16)}}}]}


@pytest.mark.parametrize("target", ["attn", "proj", "wte", "lm_head", "c_kv", "h.2.mlp.c_fc", ""])
def test_a_target_that_is_no_layer_is_refused(target):
    with pytest.raises(UserError, match=r"is no linear layer .* choose from attn.c_attn, ") as e:
        adapter_shapes(SMALL, Lora(2, 1.0, targets=("c_fc", target)))
    assert "\n" not in str(e.value)


def test_an_encoder_decoder_is_refused():
    config = Seq2SeqConfig(4, 4, 1, 1, 4, source_vocab_size=4)
    with pytest.raises(UserError, match="LoRA adapts the GPT"):
        init_adapter(config, Lora(2, 1.0), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": True},
        {"rank": "8"},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"targets": ()},
        {"targets": "c_attn"},
        {"targets": (1,)},
        {"rslora": 1},
    ],
    ids=str,
)
def test_what_no_adapter_can_be_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"LoRA: {name} is"):
        Lora(**{"rank": 2, "alpha": 1.0} | wrong)


def test_the_scale_is_alpha_by_rank_or_by_its_root():
    assert Lora(4, 32.0).scale == 8
    assert Lora(4, 32.0, rslora=True).scale == 16


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_merged(rng, bad):
    lora = Lora(2, 3.0)
    base, adapter, _, _ = problem(rng, SMALL, lora)
    adapter["h"][1]["attn"]["c_attn"]["lora_a"][0, 0] = bad
    with pytest.raises(UserError, match=r"h\.1\.attn\.c_attn holds numbers that are not finite"):
        merge(base, adapter, lora)


def test_an_adapter_of_another_model_is_not_merged(rng):
    lora = Lora(2, 3.0)
    base, _, _, _ = problem(rng, SMALL, lora)
    for other, needed in (
        ({"n_embd": 8}, r"h\.0\.attn\.c_attn is 8 x 24, the model has 4 x 12"),
        ({"n_layer": 3}, r"h\.2\.attn\.c_attn is 4 x 12, the model has no such layer"),
    ):
        adapter = init_adapter(replace(SMALL, **other), lora, 0)
        with pytest.raises(UserError, match=f"adapter is of another model: its {needed}"):
            merge(base, adapter, lora)


@pytest.mark.cupy
def test_the_hash_of_weights_is_of_their_numbers_names_and_shapes(rng, xp):
    params = init_params(SMALL, 1)
    there = Params(params.shapes, xp, "float32", xp.array(params.flat))
    assert weights_sha256(there) == weights_sha256(params) == weights_sha256(init_params(SMALL, 1))
    assert weights_sha256(init_params(SMALL, 2)) != weights_sha256(params)
    params.flat[-1] = np.nextafter(params.flat[-1], np.float32(2))
    assert weights_sha256(there) != weights_sha256(params)
