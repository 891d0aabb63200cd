import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.backend import to_host
from minigpt.model.gpt import GPTConfig, loss_backward, loss_forward
from minigpt.model.init import init_params
from minigpt.optim.gradients import gather, sum_of_squares
from minigpt.params import Params, leaves, map_tree

SHAPES = {
    "b": (3,),
    "wte": (4, 3),
    "h": [{"w": (2, 2), "ln": {"w": (2,)}}, {"w": (2, 1), "ln": {"w": (5,)}}],
    "cube": (2, 1, 3),
}
NAMES = ["b", "wte", "h.0.w", "h.0.ln.w", "h.1.w", "h.1.ln.w", "cube"]
shape_trees = st.recursive(
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    lambda child: (
        st.lists(child, max_size=3) | st.dictionaries(st.text("abc", min_size=1), child, max_size=3)
    ),
    max_leaves=8,
).filter(lambda tree: not isinstance(tree, tuple))


@pytest.mark.cupy
def test_leaves_are_views_on_one_buffer(xp):
    params = Params(SHAPES, xp, "float32")
    assert [name for name, _ in params.leaves()] == NAMES
    assert params.size == params.flat.size == 3 + 12 + 4 + 2 + 2 + 5 + 6
    assert params.flat.ndim == 1 and not params.flat.any()
    params.flat[...] = xp.arange(params.size)
    seen = np.concatenate([to_host(view).ravel() for _, view in params.leaves()])
    np.testing.assert_array_equal(np.sort(seen), np.arange(params.size))
    for _, view in params.leaves():
        assert view.dtype == xp.float32
        view[...] = -1
    assert (params.flat == -1).all()


def test_the_tree_is_nested_as_the_shapes():
    tree = Params(SHAPES, np, "float64").tree
    assert list(tree) == list(SHAPES) and isinstance(tree["h"], list)
    assert tree["h"][1]["ln"]["w"].shape == (5,) and tree["cube"].shape == (2, 1, 3)
    assert dict(leaves(tree)).keys() == dict(leaves(SHAPES)).keys()


def test_params_can_be_read_like_their_tree():
    params = Params(SHAPES, np, "float32")
    assert params["h"][1]["ln"]["w"] is params.tree["h"][1]["ln"]["w"]
    assert params.get("b") is params["b"] and params.get("c", 7) == 7 and params.get("c") is None
    assert "wte" in params and "c" not in params and list(params) == [*SHAPES] and len(params) == 4
    assert {**params}.keys() == params.keys() and dict(params.items())["b"] is params["b"]
    with pytest.raises(KeyError, match="wpe"):
        params["wpe"]
    assert Params([(2,), (3, 1)], np, "float32")[1].shape == (3, 1)
    assert [name for name, _ in leaves(params)] == NAMES
    assert all(
        x is y for x, y in zip(params.ordered(params), params.ordered(params.tree), strict=True)
    )


@pytest.mark.parametrize("build", [lambda p: p, lambda p: p.tree])
def test_params_stand_where_a_tree_is_expected(rng, build):
    config = GPTConfig(vocab_size=7, block_size=4, n_layer=2, n_head=2, n_embd=8)
    params, ids = init_params(config, 0), rng.integers(0, 7, (2, 4))
    loss, cache = loss_forward(ids, ids, build(params), config)
    assert loss_backward(1.0, cache)["h"][1]["ln_2"]["w"].any() and 1 < loss < 3
    assert loss == loss_forward(ids, ids, init_params(config, 0, np), config)[0]


@pytest.mark.cupy
def test_params_are_printed_as_a_table(xp):
    shapes = {"wte": (50257, 4), "h": [{"ln": {"w": (4,)}}]}
    rows = [line.split("  ") for line in str(Params(shapes, xp, "float32")).splitlines()]
    assert len({len("  ".join(row)) for row in rows}) == 1
    assert [[text.strip() for text in row if text] for row in rows] == [
        ["wte", "(50257, 4)", "201,028"],
        ["h.0.ln.w", "(4,)", "4"],
        ["total", f"float32, {xp.__name__}", "201,032"],
    ]
    assert str(Params({}, xp, "float16")) == f"total  float16, {xp.__name__}  0"


def test_a_map_over_a_tree_keeps_its_nesting():
    names = map_tree(lambda name, shape: (name, len(shape)), SHAPES)
    assert names["h"][1]["ln"]["w"] == ("h.1.ln.w", 1) and names["cube"] == ("cube", 3)
    assert [name for name, _ in leaves(names)] == NAMES


def test_matrices_come_first_and_only_they_decay():
    params = Params(SHAPES, np, "float32")
    params.flat[: params.decayed] = 1
    assert params.decayed == 12 + 4 + 2 + 6
    for name, view in params.leaves():
        assert (view == (view.ndim >= 2)).all(), name


@given(shape_trees)
def test_any_tree_is_laid_out_without_gap_or_overlap(shapes):
    params = Params(shapes, np, "float64")
    sizes = [math.prod(shape) for _, shape in leaves(shapes)]
    assert params.size == sum(sizes)
    for i, (_, view) in enumerate(params.leaves()):
        view += i + 1
    expected = np.repeat(np.arange(len(sizes)) + 1, sizes)
    np.testing.assert_array_equal(np.sort(params.flat), expected)


@given(shape_trees)
def test_ordered_leaves_are_end_to_end_as_the_buffer(shapes):
    params = Params(shapes, np, "float64", None)
    params.flat[...] = np.arange(params.size)
    parts = [leaf.reshape(-1) for leaf in params.ordered(params.tree)]
    np.testing.assert_array_equal(np.concatenate([*parts, []]), params.flat)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_like_has_the_layout_and_memory_of_its_own(dtype):
    params = Params(SHAPES, np, dtype)
    params.flat[...] = 7
    zeros = params.zeros_like()
    assert zeros.flat.dtype == dtype and not zeros.flat.any()
    assert zeros.decayed == params.decayed
    for (name, a), (name2, b) in zip(params.leaves(), zeros.leaves(), strict=True):
        assert name == name2 and a.shape == b.shape
    zeros.flat[...] = 1
    assert (params.flat == 7).all()


def test_a_buffer_that_is_given_is_used():
    flat = np.arange(34, dtype=np.float32)
    params = Params(SHAPES, np, "float32", flat)
    assert params.flat is flat and np.shares_memory(params.tree["b"], flat)


@pytest.mark.cupy
@pytest.mark.parametrize("n", [0, 1, 4095, 4097, 600_003])
def test_parts_of_the_sum_of_squares_add_up_to_it(rng, xp, n):
    g = rng.standard_normal(n)
    for op in dict.fromkeys((sum_of_squares, sum_of_squares.reference)):
        for dtype, rtol in (("float64", 1e-12), ("float32", 1e-5)):
            parts = op(xp.asarray(g, dtype))
            assert parts.ndim == 1 and parts.dtype in (dtype, "float64")
            np.testing.assert_allclose(float(parts.sum()), math.fsum(g * g), rtol=rtol)


SIZES = (5, 1, 0, 100_003, 17)


def shards_of(rng, xp, n, dtype):
    """n rows of arrays, and what they are end to end, (n, N) in float64 on the host."""
    flats = [rng.standard_normal(sum(SIZES)).astype(dtype) for _ in range(n)]
    edges = np.cumsum(SIZES)[:-1]
    shards = [[xp.asarray(part) for part in np.split(flat, edges)] for flat in flats]
    for shard in shards:
        shard[-1] = shard[-1][:, None] if n == 1 else shard[-1]
        shard[0] = xp.repeat(shard[0], 2)[::2]  # not contiguous
    return tuple(map(tuple, shards)), np.array(flats, np.float64)


@pytest.mark.cupy
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "dtype, of", [("float64", "float64"), ("float32", "float32"), ("float32", "float16")]
)
def test_gather_puts_the_sum_of_arrays_end_to_end(rng, xp, dtype, of, n, add):
    shards, flats = shards_of(rng, xp, n, of)
    expected = flats.sum(axis=0) + 0.5 * add
    for op in dict.fromkeys((gather, gather.reference)):
        flat = xp.full(expected.size, 0.5 if add else math.nan, dtype)
        assert op(flat, shards, add) is None
        assert flat.dtype == dtype
        if n == 1 and not add:
            np.testing.assert_array_equal(to_host(flat), expected)
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(to_host(flat), expected, rtol=0, atol=10 * eps)
        if of == "float16":  # the sum is of the precision of flat
            assert (to_host(flat).astype(of) != to_host(flat)).any() == (n > 1 or add)


@pytest.mark.cupy
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_sum_of_squares_tells_what_is_not_finite(rng, xp, bad):
    g = xp.asarray(rng.standard_normal(100_003), "float32")
    g[77_777] = bad
    for op in dict.fromkeys((sum_of_squares, sum_of_squares.reference)):
        assert not math.isfinite(float(op(g).sum()))


@pytest.mark.cupy
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gather_passes_on_what_is_not_finite(rng, xp, add, bad):
    shards, flats = shards_of(rng, xp, 1, "float32")
    shards[0][3][77_777] = bad
    for op in dict.fromkeys((gather, gather.reference)):
        flat = xp.zeros(flats.size, "float32")
        op(flat, shards, add)
        np.testing.assert_equal(to_host(flat)[6 + 77_777], bad)


@pytest.mark.cupy
@pytest.mark.parametrize("n", [0, 4, 6])
def test_gather_refuses_arrays_that_are_not_the_whole(xp, n):
    for op in dict.fromkeys((gather, gather.reference)):
        with pytest.raises(ValueError, match="gather: the arrays have 5 elements, but flat has"):
            op(xp.zeros(n), ((xp.zeros(2), xp.zeros(3)),))
