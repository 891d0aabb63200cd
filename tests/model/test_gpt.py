import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from minigpt.backend import to_host
from minigpt.errors import UserError
from minigpt.model.gpt import (
    bigrams,
    embed_backward,
    embed_forward,
    gpt_backward,
    gpt_forward,
    logits,
    loss_and_gradients,
    loss_backward,
    loss_forward,
    shapes,
)
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.optim.adamw import AdamW
from tests.tools.gradcheck import (
    MODEL,
    assert_same,
    check_backends,
    check_backward,
    check_float32,
    leaves,
    map_tree,
)
from tests.tools.options import gpt_config, rows
from tests.tools.rings import fast

TINY = gpt_config(vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=4)
SMALL = gpt_config(vocab_size=11, block_size=8, n_layer=2, n_head=3, n_embd=12)
NANOGPT = {"bias": False, "qkv_bias": None}
GPT2 = {"activation": "gelu_tanh"}
LECTURE = {
    "activation": "relu",
    "qkv_bias": False,
    "tie_head": False,
    "head_bias": True,
    "init_scale": "plain",
}
TURNED = {"rotary": True, "bigram": True}
OPTIONS = {
    "nanogpt": NANOGPT,
    "gpt2": GPT2,
    "lecture": LECTURE,
    "untied": {"tie_head": False},
    "only qkv biased": {"bias": False, "qkv_bias": True},
    "dropout": {"dropout": 0.3},
    "lecture with dropout": {**LECTURE, "dropout": 0.2},
    "rotary with bigrams": TURNED,
}
ROWS = rows("share_embedding")
RNG = Rng.of(1337, 0)
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def problem(rng, config, B=2, T=3):
    """Return weights that are large and nowhere 0 or 1, ids with repeats, targets with a gap."""
    tree = map_tree(lambda x: rng.standard_normal(x.shape), init_params(config, 0, np).tree)
    ids, targets = rng.integers(0, config.vocab_size - 1, (2, B, T), dtype=np.int32)
    targets[0, 0] = -1
    return tree, ids, targets


def loss_of(config, ids, targets, key=RNG):
    """Return the loss as a function of the parameters by name."""
    return lambda **p: loss_forward(ids, targets, p, config, key)


@pytest.mark.parametrize("options", fast(OPTIONS, "lecture", "rotary with bigrams"))
def test_every_gradient_of_the_loss(rng, options):
    config = replace(TINY, **options)
    tree, ids, targets = problem(rng, config)
    check_backward(loss_of(config, ids, targets), loss_backward, **tree, rng=rng, factor=MODEL)


@pytest.mark.parametrize("options", [{}, {"bigram": True}, TURNED], ids=range(3))
def test_every_gradient_of_the_embeddings(rng, options):
    tree, ids, _ = problem(rng, replace(TINY, **options))
    tables = {name: tree[name] for name in ("wte", "wpe", "wbe") if name in tree}
    check_backward(lambda **p: embed_forward(ids, p), embed_backward, **tables, rng=rng)


@pytest.mark.slow
@pytest.mark.parametrize("T, options", [(1, {}), (4, {}), (4, TURNED)])
def test_every_gradient_of_the_last_hidden_state(rng, T, options):
    config = replace(TINY, **options)
    tree, ids, _ = problem(rng, config, T=T)
    check_backward(
        lambda **p: gpt_forward(ids, p, config), gpt_backward, **tree, rng=rng, factor=MODEL
    )


@pytest.mark.parametrize("options", fast(ROWS, *list(ROWS)[2:5]))
def test_every_gradient_of_a_deeper_model_along_random_directions(rng, options):
    config = replace(SMALL, **options)
    tree, ids, targets = problem(rng, config, B=3, T=7)
    tree = map_tree(lambda x: 0.5 * x, tree)
    check_backward(loss_of(config, ids, targets), loss_backward, **tree, rng=rng, factor=MODEL)


@options
def test_float32_stays_float32(rng, options):
    config = replace(TINY, **options)
    tree, ids, targets = problem(rng, config)
    check_float32(loss_of(config, ids, targets), loss_backward, **tree, rng=rng, rtol=2e-5)


@pytest.mark.cupy
@pytest.mark.parametrize("options", [NANOGPT, {**LECTURE, "dropout": 0.2}, TURNED], ids=range(3))
def test_backends_agree(rng, xp, options):
    config = replace(SMALL, **options)
    tree, ids, targets = problem(rng, config, T=5)

    def forward(ids, targets, **p):
        return loss_forward(ids, targets, p, config, RNG)

    arrays = {"ids": ids, "targets": targets}
    check_backends(forward, loss_backward, **tree, rng=rng, xp=xp, options=arrays)


@pytest.mark.parametrize("key", [None, RNG], ids=["", "dropout"])
@options
def test_no_token_sees_the_future(rng, options, key):
    config = replace(SMALL, **{"dropout": 0.2, **options})
    tree, ids, _ = problem(rng, config, T=7)
    x, cache = gpt_forward(ids, tree, config, key)
    for t in range(7):
        changed = ids.copy()
        changed[:, t + 1 :] = (ids[:, t + 1 :] + 1) % config.vocab_size
        np.testing.assert_array_equal(
            gpt_forward(changed, tree, config, key)[0][:, : t + 1], x[:, : t + 1]
        )
        dx = np.zeros_like(x)
        dx[:, t] = rng.standard_normal(x[:, t].shape)
        grads = gpt_backward(dx, cache)
        if not config.rotary:
            assert not grads["wpe"][t + 1 :].any()
            assert key is not None or grads["wpe"][: t + 1].all()
        if config.bigram:
            pairs = np.unique(bigrams(ids, config.vocab_size)[:, : t + 1])
            assert not np.delete(grads["wbe"], pairs, axis=0).any()
            assert key is not None or grads["wbe"][pairs].all()


def test_a_longer_context_changes_no_earlier_output(rng):
    tree, ids, _ = problem(rng, SMALL, T=8)
    x, _ = gpt_forward(ids, tree, SMALL)
    np.testing.assert_allclose(gpt_forward(ids[:, :5], tree, SMALL)[0], x[:, :5], rtol=1e-11)


def test_ids_never_used_move_nothing_but_the_tied_head(rng):
    config = replace(SMALL, tie_head=False)
    tree, ids, targets = problem(rng, config)
    grads = loss_backward(1.0, loss_of(config, ids, targets)(**tree)[1])
    unused = np.setdiff1d(np.arange(11), ids)
    assert len(unused) and not grads["wte"][unused].any()
    assert grads["wte"][np.unique(ids)].any(axis=1).all() and grads["lm_head"]["w"].all()


@options
def test_shards_of_a_batch_add_up_to_the_whole(rng, options):
    config = replace(SMALL, **options)
    tree, ids, targets = problem(rng, config, B=4)
    loss, cache = loss_forward(ids, targets, tree, config, RNG)
    losses, grads = [], []
    for s in (slice(0, 1), slice(1, 4)):
        part, part_cache = loss_forward(
            ids[s], targets[s], tree, config, RNG._replace(row=s.start), count=11
        )
        losses.append(part)
        grads.append(dict(leaves(loss_backward(1.0, part_cache))))
    np.testing.assert_allclose(sum(losses), loss, rtol=1e-12)
    added = {name: grads[0][name] + grads[1][name] for name in grads[0]}
    assert_same(added, dict(leaves(loss_backward(1.0, cache))), 1e-11)


def test_threads_do_not_disturb_each_other(rng):
    config = replace(SMALL, n_embd=48, block_size=64, dropout=0.1)
    tree, ids, targets = problem(rng, config, B=4, T=64)

    def run(i):
        loss, cache = loss_forward(ids[i:], targets[i:], tree, config, RNG)
        return loss, loss_backward(1.0, cache)

    with threadpool_limits(1), ThreadPoolExecutor(4) as pool:
        alone = [run(i) for i in range(4)]
        together = list(pool.map(run, [0, 1, 2, 3] * 3))
    for i, result in enumerate(together):
        assert_same(result, alone[i % 4], 0)


@options
@pytest.mark.parametrize("V", [65, pytest.param(1000, marks=pytest.mark.slow)])
def test_loss_at_initialization_is_near_that_of_a_uniform_guess(rng, options, V):
    config = replace(SMALL, vocab_size=V, n_embd=48, **options)
    tree = init_params(config, 1, np, "float64").tree
    ids, targets = rng.integers(0, V, (2, 16, 8))
    loss, _ = loss_forward(ids, targets, tree, config)
    assert abs(loss - math.log(V)) < 0.05


@pytest.mark.parametrize("options", [NANOGPT, GPT2, LECTURE, TURNED], ids=range(4))
def test_one_batch_overfits(rng, options):
    config = replace(SMALL, **options)
    params = init_params(config, 0, np)
    ids, targets = rng.integers(0, config.vocab_size, (2, 4, 8), dtype=np.int32)
    ids[:, 0] = range(4)  # no two rows are the same to begin with and then differ
    grads, adamw = params.zeros_like(), AdamW(params, beta2=0.99, weight_decay=0.0)
    for _ in range(200):
        loss, cache = loss_forward(ids, targets, params.tree, config)
        found = dict(leaves(loss_backward(1.0, cache)))
        for name, into in grads.leaves():
            into[...] = found[name]
        adamw.step(grads.flat, 1e-2)
    assert loss < 0.02


def test_logits_are_what_the_loss_is_made_of(rng):
    for config in (SMALL, replace(SMALL, tie_head=False, head_bias=True)):
        tree, ids, targets = problem(rng, config)
        z = logits(gpt_forward(ids, tree, config)[0], tree)
        assert z.shape == (2, 3, 11)
        z = z - z.max(axis=-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        of_targets = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
        loss, _ = loss_forward(ids, targets, tree, config)
        np.testing.assert_allclose(loss, -of_targets[targets >= 0].mean(), rtol=1e-12)


@pytest.mark.parametrize("init_scale", ["residual", "plain"])
def test_initialization(init_scale):
    config = gpt_config(300, 100, 8, 2, 64, tie_head=False, head_bias=True, init_scale=init_scale)
    for name, w in init_params(config, 3, np).leaves():
        assert w.dtype == np.float32
        if name.endswith(".b"):
            assert not w.any(), name
        elif w.ndim == 1:
            assert (w == 1).all(), name
        else:
            residual = init_scale == "residual" and name.endswith("c_proj.w")
            std = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            assert abs(w.std() / std - 1) < 5 / math.sqrt(2 * w.size), name
            assert abs(w.mean()) < 5 * std / math.sqrt(w.size), name


@pytest.mark.cupy
def test_initialization_depends_on_the_seed_alone(xp):
    first, again, other = (init_params(SMALL, seed, np).flat for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    on_xp = dict(leaves(init_params(SMALL, 0, xp, "float64").tree))
    assert_same(on_xp, init_params(SMALL, 0, np, "float64").tree, 0)
    same = np.concatenate([w.ravel()[:4] for _, w in init_params(SMALL, 0, np).leaves()])
    drawn = same[(same != 0) & (same != 1)]
    assert len(set(drawn)) == len(drawn)  # no two matrices share their numbers


def test_parameters_bear_gpt2s_names():
    names = {name for name, _ in init_params(replace(TINY, **LECTURE), 0, np).leaves()}
    block = {"ln_1.w", "ln_1.b", "attn.c_attn.w", "attn.c_proj.w", "attn.c_proj.b"}
    block |= {"ln_2.w", "ln_2.b", "mlp.c_fc.w", "mlp.c_fc.b", "mlp.c_proj.w", "mlp.c_proj.b"}
    expected = {"wte", "wpe", "ln_f.w", "ln_f.b", "lm_head.w", "lm_head.b"}
    assert names == expected | {f"h.0.{name}" for name in block}
    assert shapes(TINY)["h"][0]["attn"]["c_attn"] == {"w": (4, 12), "b": (12,)}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_embd": 10, "n_head": 4}, "n_embd is 10, not a multiple of n_head 4.*use 12"),
        ({"n_layer": 0}, "n_layer is 0; it must be at least 1"),
        ({"n_layer": 2.5}, "n_layer is 2.5; it must be a whole number"),
        ({"block_size": "8"}, "block_size is '8'; it must be a whole number"),
        ({"block_size": -1}, "block_size is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": math.nan}, "dropout is nan"),
        ({"activation": "swish"}, "activation is 'swish'; choose from gelu"),
        ({"init_scale": "zero"}, "init_scale is 'zero'; choose from residual, plain"),
        ({"head_bias": True}, "head_bias is on with a tied head"),
        ({"rotary": True, "n_head": 4}, "rotary turns pairs .* n_head is 1, which is odd"),
        ({"bigram": True, "vocab_size": 46341}, "pairs of 46341 tokens.* at most 46340"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(wrong, message):
    with pytest.raises(UserError, match=message) as error:
        replace(TINY, **wrong)
    assert "\n" not in str(error.value)


@pytest.mark.cupy
@options
def test_both_passes_at_once_give_what_the_pair_gives(rng, xp, options):
    config = replace(SMALL, **options)
    tree, ids, targets = problem(rng, config)
    tree, ids, targets = map_tree(xp.asarray, (tree, ids, targets))
    loss, cache = loss_forward(ids, targets, tree, config, RNG, count=7)
    grads = loss_backward(0.3, cache)
    assert_same(
        map_tree(to_host, loss_and_gradients(ids, targets, tree, config, RNG, 7, 0.3)),
        map_tree(to_host, (loss, grads)),
        1e-12,
    )
    assert_same(map_tree(np.shape, grads), config.shapes(), 0)


def test_a_hook_sees_the_output_of_every_layer(rng):
    tree, ids, _ = problem(rng, SMALL)
    seen = {}
    y, _ = gpt_forward(ids, tree, SMALL, on_layer=lambda name, *xs: seen.update({name: xs}))
    assert [*seen] == ["wte", "h.0", "h.1", "ln_f"]
    assert seen["ln_f"][0] is y and [len(xs) for xs in seen.values()] == [1, 2, 2, 1]
