import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.ops.embedding import (
    embedding_backward,
    embedding_backward_tied,
    embedding_forward,
)
from tests.tools.gradcheck import (
    assert_same,
    check_backends,
    check_backward,
    check_float32,
    check_strided,
)

OP = embedding_forward, embedding_backward
IDS = np.array([[3, 0, 3, 3], [1, 3, 5, 0]], dtype=np.int32)  # 3 is repeated, 2 and 4 are unused


positions = pytest.mark.parametrize("positions", [True, False], ids=["", "no positions"])


def tables(rng, V=6, block_size=5, C=3, positions=True):
    wte, wpe = (rng.standard_normal((n, C)) for n in (V, block_size))
    return {"wte": wte, "wpe": wpe} if positions else {"wte": wte}


@positions
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("ids", [IDS, IDS[:, :1], IDS[:1], IDS[:0], IDS[:, :0]], ids=np.shape)
def test_backward_is_the_gradient(rng, ids, start, positions):
    p = tables(rng, positions=positions)
    check_backward(*OP, **p, rng=rng, options={"ids": ids, "start": start})


@positions
def test_backward_is_the_gradient_of_many_tokens(rng, positions):
    ids = rng.integers(0, 60, (5, 37)) * 2  # no odd one
    p = tables(rng, V=120, block_size=40, C=7, positions=positions)
    check_backward(*OP, **p, rng=rng, options={"ids": ids, "start": 3})


@positions
def test_float32_stays_float32(rng, positions):
    check_float32(*OP, **tables(rng, positions=positions), rng=rng, options={"ids": IDS})


@pytest.mark.cupy
@positions
@pytest.mark.parametrize("ids", [IDS, IDS[:0]], ids=np.shape)
def test_backends_agree(rng, xp, ids, positions):
    def forward(ids, wte, wpe=None):
        return embedding_forward(ids, wte, wpe, start=1)

    p = tables(rng, positions=positions)
    check_backends(forward, embedding_backward, **p, options={"ids": ids}, rng=rng, xp=xp)


@given(st.integers(0, 4), st.integers(0, 5), st.integers(1, 7), st.integers(0, 99))
def test_is_the_one_hot_product(B, T, V, seed):
    rng = np.random.default_rng(seed)
    p, ids = tables(rng, V=V), rng.integers(0, V, (B, T), dtype=np.int32)
    x, cache = embedding_forward(ids, **p)
    onehot = np.eye(V)[ids]
    np.testing.assert_allclose(x, onehot @ p["wte"] + p["wpe"][:T], rtol=1e-15)
    dy = rng.standard_normal(x.shape)
    grads = embedding_backward(dy, cache)
    expected = onehot.reshape(-1, V).T @ dy.reshape(-1, 3)
    np.testing.assert_allclose(grads["wte"], expected, rtol=1e-12, atol=1e-14)
    unused = np.setdiff1d(np.arange(V), ids)
    assert not grads["wte"][unused].any() and not grads["wpe"][T:].any()


@pytest.mark.parametrize("ids", [IDS, np.arange(1500)[None] % 900], ids=["few", "many"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", ""])
@positions
def test_a_tied_backward_adds_to_the_gradient_from_the_other_use(rng, ids, positions, plain):
    p = tables(rng, V=901, block_size=1500, positions=positions)
    x, cache = embedding_forward(ids, **p)
    dy, other = rng.standard_normal(x.shape), rng.standard_normal(p["wte"].shape)
    expected = embedding_backward.reference(dy, cache)
    expected["wte"] = other + expected["wte"]
    op, before = embedding_backward_tied, other.copy()
    grads = (op.reference if plain else op)(dy, cache, other)
    assert_same(grads, expected, 1e-14)
    if plain:
        np.testing.assert_array_equal(other, before)
    else:
        assert grads["wte"] is other  # no second table is made


@pytest.mark.cupy
@positions
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_agree_on_a_tied_backward(rng, xp, dtype, positions):
    p = tables(rng, positions=positions)
    x, cache = embedding_forward(IDS, **p)
    dy, other = rng.standard_normal(x.shape), rng.standard_normal(p["wte"].shape)
    expected = embedding_backward_tied.reference(dy, cache, other)
    ids, start, *arrays = cache
    arrays = (x if x is None else xp.asarray(x, dtype) for x in arrays)
    cache = xp.asarray(ids), start, *arrays
    found = embedding_backward_tied(xp.asarray(dy, dtype), cache, xp.asarray(other, dtype))
    assert_same(found, expected, 1e-6 if dtype == "float32" else 1e-13)


def test_repeats_to_the_bit(rng):
    x, cache = embedding_forward(rng.integers(0, 6, (7, 5)), **tables(rng))
    dy = rng.standard_normal(x.shape)
    first, second = (embedding_backward(dy, cache)["wte"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@positions
def test_strided_inputs(rng, positions):
    check_strided(*OP, **tables(rng, positions=positions), rng=rng, options={"ids": IDS})


def test_refuses_positions_beyond_the_last(rng):
    with pytest.raises(ValueError, match=r"positions 2 to 5 .*\(5, 3\) holds 5"):
        embedding_forward(IDS, **tables(rng), start=2)


@pytest.mark.parametrize("ids", [IDS, np.arange(1500)[None] % 900], ids=["few", "many"])
def test_without_positions_there_are_none(rng, ids):
    p = tables(rng, V=901, block_size=1500)
    x, cache = embedding_forward(ids, p["wte"], start=10**6)
    np.testing.assert_array_equal(x, p["wte"][ids])
    dy = rng.standard_normal(x.shape)
    grads = embedding_backward(dy, cache)
    _, cache = embedding_forward(ids, **p)
    assert grads.keys() == {"wte"}
    np.testing.assert_array_equal(grads["wte"], embedding_backward(dy, cache)["wte"])
