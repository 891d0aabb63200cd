"""Gradients of weights on a CPU: in their places, or made of what the shards of a batch leave."""

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.backend import places, plain
from minigpt.backend.cpu import attention, attention_tiles, blocking, crew, cross_entropy, pool
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter
from minigpt.ops.dropout import Rng
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.optim.clipping import GRAD_NORM
from minigpt.train import threads
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers, multiply
from tests.tools.calling import assert_same
from tests.tools.options import gpt_config, train_config
from tests.tools.stepping import dates

# Few tokens and wide layers: x and dy take less memory than the gradient of a weight.
CONFIG = gpt_config(vocab_size=300, block_size=4, n_layer=2, n_head=2, n_embd=48, dropout=0.2)
TRAIN = train_config(batch_size=5, max_iters=20, warmup_iters=2, gradient_accumulation_steps=2)
IDS = np.random.default_rng(0).integers(0, 300, 500, dtype=np.int32)
PAIRS = dataclasses.replace(dates()[0], n_embd=160, n_head=2)
MODELS = {
    "tied": CONFIG,
    "untied, biases": dataclasses.replace(CONFIG, tie_head=False, head_bias=True, bias=True),
    "bigram, rotation": dataclasses.replace(CONFIG, bigram=True, rotary=True, vocab_size=300),
    "pairs": PAIRS,
    "pairs, one table": dataclasses.replace(
        PAIRS, share_embedding=True, source_vocab_size=PAIRS.vocab_size
    ),
}
RECIPES = {
    **dict.fromkeys(MODELS, {}),
    "recomputed": {"recompute": True},
    "adapter": {"lora_rank": 3, "lora_targets": "c_attn\nmlp.c_proj", "init_from": "x"},
}


def trainer(name, workers, dtype="float64"):
    """A Trainer of that model or recipe with fresh weights."""
    config, recipe = MODELS.get(name, CONFIG), dataclasses.replace(TRAIN, **RECIPES[name])
    params, frozen = init_params(config, 1337, np, dtype), None
    if recipe.lora is not None:
        frozen, params = params, init_adapter(config, recipe.lora, 1337)
        frozen = init_params(config, 1337, np)
        params.flat += 0.01  # else lora_b is 0, and lora_a has no gradient
    return Trainer(params, config, recipe, np, workers, frozen)


def gradients(name, n, use_places=True, dtype="float64"):
    """The gradients of two batches, on n threads, by name."""
    with Workers(n) as workers:
        this = trainer(name, workers, dtype)
        if not use_places:
            this._places = {}
        split = dates()[1] if "pairs" in name else IDS
        for i, batch in enumerate(this.batches(split, 0)):
            batch = [np.minimum(ids, this.config.vocab_size - 1) for ids in batch]
            this.gradients(*batch, Rng.of(1, 0, i), 100, add=i > 0)
        return dict(this.grads.leaves())


@pytest.fixture
def made(monkeypatch):
    """The shapes of the gradients that are made of factors, in each call."""
    shapes, multiply = [], threads.multiply

    def seen(workers, products, add):
        shapes.append([place.shape for place, *_ in products])
        multiply(workers, products, add)

    monkeypatch.setattr(threads, "multiply", seen)
    return shapes


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("name", RECIPES)
def test_gradients_made_of_what_shards_leave_are_their_sums(made, name, n):
    expected = gradients(name, n, use_places=False)
    assert made == [[], []]
    found = gradients(name, n)
    if name == "adapter":
        assert made[2:] == [[], []]
    else:
        weights = {g.shape for key, g in expected.items() if "h.0." in key and g.ndim == 2}
        assert weights <= set(made[2]) and made[2] == made[3]
        assert all(g.shape in made[2] for g in expected.values() if g.shape[1:] and len(g) == 300)
    for key, g in expected.items():
        tolerance = 1e-12 if g.dtype == "float64" else 1e-5
        near = tolerance * np.abs(g).max() + 1e-15
        np.testing.assert_allclose(found[key], g, rtol=0, atol=near, err_msg=key)


@pytest.mark.parametrize("name", RECIPES)
def test_one_thread_has_the_bits_of_gradients_that_are_gathered(name, gathered):
    expected = gradients(name, 1, use_places=False, dtype="float32")
    assert sum(gathered) == 2 * sum(g.size for g in expected.values())
    gathered.clear()
    found = gradients(name, 1, dtype="float32")
    for key, g in expected.items():
        np.testing.assert_array_equal(found[key], g, err_msg=key)
    layers = {key: g for key, g in found.items() if "h." in key and g.ndim == 2}
    head = found.get("lm_head.w", found.get("wte"))
    if name != "adapter":  # the head is gathered where it is added to a batch before
        others = sum(g.size for g in found.values()) - sum(g.size for g in layers.values())
        assert sum(gathered) == 2 * others - head.size


@pytest.mark.parametrize("n", [2, 3])
def test_a_number_of_threads_has_the_same_bits_every_time(n):
    first, *others = (gradients("tied", n, dtype="float32") for _ in range(4))
    for other in others:
        for key, g in first.items():
            np.testing.assert_array_equal(other[key], g, err_msg=key)


def test_recomputed_blocks_leave_the_same():
    found = gradients("recomputed", 2, dtype="float32")
    for key, g in gradients("tied", 2, dtype="float32").items():
        np.testing.assert_array_equal(found[key], g, err_msg=key)


def test_plain_ops_leave_nothing(made):
    with plain():
        found = gradients("tied", 2)
    assert made == [[], []]
    for key, g in gradients("tied", 2).items():
        np.testing.assert_allclose(found[key], g, rtol=0, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_norm(made, bad):
    with np.errstate(invalid="ignore", over="ignore"), Workers(2) as workers:
        this = trainer("tied", workers, "float32")
        this.params["wpe"][0] = bad
        this.step(IDS, 0)
        assert made[0] and not np.isfinite(this.optimizer.state[GRAD_NORM])


def test_a_place_is_one_thread_s_while_the_context_lasts(rng):
    x, w, dy = (rng.standard_normal(shape) for shape in ((5, 3), (3, 4), (5, 4)))
    place, cache = np.full((3, 4), 2.0), linear_forward(x, w)[1]
    found = places.gradient_places([w], [place])
    for add in (False, True):
        with places.gradients_into(found, add) as filled:
            assert linear_backward(dy, cache)[1]["w"] is place
            assert [y is place for y in filled] == [True]
            others = linear_forward(x, w.copy())[1], linear_forward(x[:, :2], w[:2])[1]
            for other in others:  # the second begins where w does
                assert linear_backward(dy, other)[1]["w"] is not place
        np.testing.assert_allclose(place, (1 + add) * (x.T @ dy))
    with Workers(2) as workers, places.gradients_into(found, False):
        _, second = workers.map(lambda _: linear_backward(dy, cache)[1]["w"], range(2))
    assert second is not place


def test_after_an_error_nothing_is_left_anywhere(rng):
    x, w, dy = (rng.standard_normal(shape) for shape in ((2, 9), (9, 9), (2, 9)))
    _, cache = linear_forward(x, w)
    place, later = np.empty((9, 9)), places.Later([2, 2])
    found = places.gradient_places([w], [place])
    with (
        pytest.raises(ZeroDivisionError),
        places.gradients_into(found, False, later, 0) as filled,
    ):
        assert linear_backward(dy, cache)[1]["w"] is place and filled[0] is place
        1 / 0  # noqa: B018
    np.testing.assert_allclose(linear_backward(dy, cache)[1]["w"], x.T @ dy)


@pytest.mark.parametrize("rows", [[1, 1, 1], [1, 2], [2, 1], [2, 3, 3]])
def test_all_shards_decide_alike_by_the_largest(rng, rows):
    w = rng.standard_normal((12, 12))
    for T in (1, 2, 3, 4, 6):
        decided, later = set(), places.Later(rows)
        for i, n in enumerate(rows):
            x, dy = rng.standard_normal((2, n, T, 12))
            place = np.empty_like(w)
            found = places.gradient_places([w], [place])
            with places.gradients_into(found, False, later, i):
                dw = linear_backward(dy, linear_forward(x, w)[1])[1]["w"]
            decided.add(dw is place)
            if dw is not place:
                np.testing.assert_allclose(dw, x.reshape(-1, 12).T @ dy.reshape(-1, 12))
        assert decided == {max(rows) * T * 24 <= 144}


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=4),
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    n=st.integers(1, 5),
    add=st.booleans(),
    stack=st.integers(1, 60),
)
def test_rows_of_gradients_are_split_among_any_number_of_threads(shapes, rows, n, add, stack):
    rng = np.random.default_rng(1)
    flat = rng.standard_normal(sum(a * b for a, b in shapes) + 2)
    before, at, products = flat.copy(), 1, []
    for a, b in shapes:
        place = flat[at : at + a * b].reshape(a, b)
        at += a * b
        xs, dys = (tuple(rng.standard_normal((r, width)) for r in rows) for width in (a, b))
        products.append((place, xs, dys))
    expected = [add * place + np.vstack(xs).T @ np.vstack(dys) for place, xs, dys in products]
    with pytest.MonkeyPatch.context() as patch, Workers(n) as workers:
        patch.setattr(threads, "STACK", stack)
        multiply(workers, products, add)
    for (place, *_), g in zip(products, expected, strict=True):
        np.testing.assert_allclose(place, g, rtol=0, atol=1e-12)
    assert (flat[[0, -1]] == before[[0, -1]]).all()


def test_a_gradient_that_was_replaced_is_an_error():
    with Workers(2) as workers:
        grads = trainer("tied", workers).grads
        left, other = grads.tree, grads.zeros_like().tree
        for trees in ([left, other], [other, other], [other]):
            with pytest.raises(RuntimeError, match="left in its place"):
                threads.sum_gradients(workers, trees, grads, False, grads.arrays)


def test_rows_that_pass_the_head_in_parts_leave_them_all(monkeypatch):
    expected = gradients("tied", 2)
    monkeypatch.setattr(cross_entropy, "KEPT", 5 * 300)
    for key, g in gradients("tied", 2).items():
        np.testing.assert_allclose(g, expected[key], rtol=0, atol=1e-12, err_msg=key)


def test_what_is_larger_as_factors_is_not_left(rng):
    x, dy, w = (rng.standard_normal((9, 9)) for _ in range(3))
    place = np.empty((9, 9))
    with places.gradients_into(places.gradient_places([w], [place]), False, places.Later([9, 9])):
        dw = linear_backward(dy, linear_forward(x, w)[1])[1]["w"]
        assert dw is not place


def test_batches_of_a_step_cut_no_buffers_anew(monkeypatch):
    config = dataclasses.replace(CONFIG, block_size=64, n_embd=128)
    with Workers(2) as workers:
        this = Trainer(init_params(config, 1337, np), config, TRAIN, np, workers)
        this.step(IDS, 0)
        monkeypatch.setattr(pool, "recycle", None)
        this.step(IDS, 1)


@pytest.mark.parametrize("n", [2, 3])
def test_a_row_alone_has_the_same_gradients_on_any_number_of_threads(n, monkeypatch):
    config = dataclasses.replace(CONFIG, block_size=128, n_head=4)  # attention by tiles
    monkeypatch.setattr(attention_tiles, "TILE", 64 * 128)  # a head at a time
    shared, share = [], attention.share

    def seen(fn, items):
        shared.append(len(items))
        share(fn, items)

    monkeypatch.setattr(attention, "share", seen)

    def gradients(n):
        with Workers(n) as workers:
            this = Trainer(init_params(config, 1337, np), config, TRAIN, np, workers)
            this.gradients(IDS[None, :128], IDS[None, 1:129], Rng.of(1, 0, 0))
            return this.grads.flat

    np.testing.assert_array_equal(gradients(n), gradients(1))  # each head is one thread's
    assert shared == [4] * 8


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("n", [2, 3])
def test_a_row_alone_is_shared_out_by_rows_and_blocks(n, activation, monkeypatch):
    config = dataclasses.replace(CONFIG, block_size=128, n_head=3, activation=activation)
    monkeypatch.setattr(crew, "PART", 1)
    monkeypatch.setattr(blocking, "BLOCK", 2**10)
    names, heads, matmul, share = set(), [], np.matmul, attention.share

    def seen(*args, **options):
        names.add(threading.current_thread().name)
        return matmul(*args, **options)

    def seen_heads(fn, items):
        heads.append(len(items))
        share(fn, items)

    def gradients(n):
        with Workers(n) as workers:
            this = Trainer(init_params(config, 1337, np), config, TRAIN, np, workers)
            return this.gradients(IDS[None, :128], IDS[None, 1:129], Rng.of(1, 0, 0)), this.grads

    loss, one = gradients(1)
    monkeypatch.setattr(np, "matmul", seen)
    monkeypatch.setattr(attention, "share", seen_heads)
    again = [gradients(n) for _ in range(2)]
    assert len(names) == n and set(heads) == {n}
    np.testing.assert_array_equal(again[0][1].flat, again[1][1].flat)
    for shared_loss, shared in again:
        assert_same(shared_loss, loss, 1e-6)
        assert_same(shared.tree, one.tree, 1e-5)


def test_a_small_row_alone_wakes_up_no_thread(monkeypatch):
    with Workers(2) as workers:
        this = Trainer(init_params(CONFIG, 1337, np), CONFIG, TRAIN, np, workers)
        monkeypatch.setattr(workers, "_spread", None)
        this.gradients(IDS[None, :4], IDS[None, 1:5], Rng.of(1, 0, 0))
