import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigpt.backend.cpu import crew
from minigpt.backend.cpu.attention_tiles import Tiles
from minigpt.backend.cpu.crew import lend
from minigpt.backend.cpu.threads import Threads
from minigpt.ops.attention import attention_backward, attention_forward, merge_heads, split_heads
from minigpt.ops.dropout import Rng, keep_mask
from tests.tools.gradcheck import (
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
)

OP = attention_forward, attention_backward
MASK = np.array([[True, False, True, True], [False, True, False, False]])
RNG = Rng.of(1, 2)


def inputs(rng, B=2, H=3, Tq=4, Tk=4, D=2):
    return tuple(rng.standard_normal((B, H, T, D)) for T in (Tq, Tk, Tk))


def formula(q, k, v, causal=False, key_mask=None, keep=None):
    """Attention by loops, over the keys that may be seen alone: nothing here is masked."""
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    y = np.zeros_like(q)
    for b, h, i in np.ndindex(B, H, Tq):
        seen = [
            j
            for j in range(Tk)
            if (not causal or j <= i + Tk - Tq) and (key_mask is None or key_mask[b, j])
        ]
        e = [math.exp(q[b, h, i] @ k[b, h, j] / math.sqrt(D)) for j in seen]
        for j, ej in zip(seen, e, strict=True):
            y[b, h, i] += ej / sum(e) * v[b, h, j] * (1 if keep is None else keep[b, h, i, j])
    return y


def check_causal(forward, backward, rng, Tq=6, Tk=6, at=None):
    """Assert that no query sees, and no gradient reaches, a key after it; to the bit.

    What is in the future gets the largest score of all: once because it is large, once because
    those of the past are below any finite number that a mask might put in its place.
    """
    q0, k0, v = inputs(rng, Tq=Tq, Tk=Tk)
    for q, k in ((q0, k0), (abs(q0), -1e6 * abs(k0))):
        y, cache = forward(q, k, v, causal=True)
        for i in at or range(Tq):
            future = slice(max(i + Tk - Tq + 1, 0), None)
            k2, v2 = k.copy(), v.copy()
            k2[:, :, future] = 1e5 * q[:, :, i : i + 1]
            v2[:, :, future] = -1e5
            y2, _ = forward(q, k2, v2, causal=True)
            assert np.array_equal(y2[:, :, : i + 1], y[:, :, : i + 1]), f"{i} sees the future"
            dy = np.zeros_like(y)
            dy[:, :, i] = rng.standard_normal(y[:, :, i].shape)
            dq, dk, dv = backward(dy, cache)
            assert not dk[:, :, future].any() and not dv[:, :, future].any()
            assert not np.delete(dq, i, axis=2).any()
            assert future.start == 0 or dv[:, :, : future.start].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1), (2, 3, 4, 4, 2), (1, 2, 3, 5, 2), (2, 1, 5, 3, 1), (1, 2, 1, 4, 3)],
    ids=str,
)
def test_backward_is_the_gradient(rng, sizes, causal):
    check_backward(*OP, *inputs(rng, *sizes), rng=rng, options={"causal": causal})


@pytest.mark.parametrize("sizes", [(0, 2, 3, 3, 2), (1, 2, 0, 3, 2), (1, 2, 3, 0, 2)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_backward_of_nothing(rng, sizes, causal):
    check_backward(*OP, *inputs(rng, *sizes), rng=rng, options={"causal": causal})
    y, _ = attention_forward(*inputs(rng, *sizes), causal=causal)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"key_mask": MASK},
        {"key_mask": MASK, "causal": True},
        {"dropout": 0.4, "rng": RNG},
        {"dropout": 0.4, "rng": Rng(5, row=3), "key_mask": MASK, "causal": True},
        {"dropout": 0.4, "rng": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_backward_is_the_gradient_with(rng, options):
    check_backward(*OP, *inputs(rng, Tq=4, Tk=4), rng=rng, options=options)


@pytest.mark.parametrize("sizes", [(2, 3, 131, 131, 3), (1, 2, 70, 131, 3), (1, 1, 131, 70, 4)])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_backward_is_the_gradient_by_tiles(rng, sizes, masked):
    B, _, _, Tk, _ = sizes
    options = {"key_mask": rng.random((B, Tk)) < 0.7, "dropout": 0.3, "rng": RNG} if masked else {}
    check_backward(*OP, *inputs(rng, *sizes), rng=rng, options={"causal": True, **options})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 4, 4, 2), (1, 2, 70, 131, 3)])
def test_backward_is_the_gradient_of_saturated_weights(rng, sizes, causal):
    q, k, v = inputs(rng, *sizes)
    options = {"causal": causal, "key_mask": rng.random((sizes[0], sizes[3])) < 0.9}
    check_backward(*OP, 6 * q, 6 * k, v, rng=rng, options=options)


@pytest.mark.parametrize("options", [{}, {"causal": True, "key_mask": MASK}], ids=["", "masked"])
def test_float32_stays_float32(rng, options):
    options = {**options, "dropout": 0.3, "rng": RNG}
    check_float32(*OP, *inputs(rng), rng=rng, options=options)


@pytest.mark.parametrize("causal", [False, True])
def test_strided_inputs(rng, causal):
    options = {"causal": causal, "key_mask": MASK}
    check_strided(*OP, *inputs(rng), rng=rng, options=options)


@pytest.mark.cupy
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True, "key_mask": MASK, "dropout": 0.3, "rng": RNG}],
    ids=["plain", "all"],
)
def test_backends_agree(rng, xp, options):
    check_backends(*OP, *inputs(rng, Tq=3), rng=rng, xp=xp, options=options)


@given(*[st.integers(1, n) for n in (3, 3, 5, 5, 4)], st.booleans(), st.booleans(), st.booleans())
def test_is_its_formula(B, H, Tq, Tk, D, causal, masked, dropped):
    rng = np.random.default_rng(0)
    q, k, v = inputs(rng, B, H, Tq, Tk, D)
    mask = rng.random((B, Tk)) < 0.6 if masked else None
    keep = keep_mask((B, H, Tq, Tk), 0.5, RNG, np) / 0.5 if dropped else None
    y, _ = attention_forward(q, k, v, causal, mask, 0.5, RNG if dropped else None)
    expected = formula(q, k, v, causal, mask, keep)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("Tq, Tk", [(6, 6), (3, 7), (7, 3)])
def test_no_query_sees_the_future(rng, Tq, Tk):
    for pair in forms(*OP):
        check_causal(*pair, rng, Tq, Tk)


@pytest.mark.parametrize("Tq, Tk", [(33, 33), (131, 131), (257, 257), (70, 131), (131, 70)])
def test_no_query_of_a_long_sequence_sees_the_future(rng, Tq, Tk):
    for pair in forms(*OP):
        check_causal(*pair, rng, Tq, Tk, at=[0, 1, Tq // 2 - 1, Tq // 2, Tq - 2])


def test_padding_is_as_if_it_were_not_there(rng):
    q, k, v = inputs(rng)
    expected = attention_forward(q[:1], k[:1, :, MASK[0]], v[:1, :, MASK[0]])[0]
    k[:, :, 1], v[:, :, 1] = 1e5, -1e5
    y, cache = attention_forward(q, k, v, key_mask=MASK)
    np.testing.assert_allclose(y[:1], expected, rtol=1e-14)
    _, dk, dv = attention_backward(rng.standard_normal(y.shape), cache)
    assert not dk[0, :, 1].any() and not dv[0, :, 1].any()


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_that_may_see_nothing_gets_zeros(rng, causal):
    mask = MASK.copy()
    mask[1] = False
    for f, b in forms(*OP):
        y, cache = f(*inputs(rng), causal=causal, key_mask=mask)
        grads = b(rng.standard_normal(y.shape), cache)
        for x in (y, *grads):
            assert np.isfinite(x).all() and not x[1].any() and x[0].any()


def test_the_order_of_keys_does_not_matter_without_a_mask(rng):
    q, k, v = inputs(rng, Tk=5)
    y, _ = attention_forward(q, k, v)
    np.testing.assert_allclose(attention_forward(q, k[:, :, ::-1], v[:, :, ::-1])[0], y, rtol=1e-13)


def test_scores_of_any_size_are_finite(rng):
    q, k, v = inputs(rng)
    for causal in (False, True):
        y, cache = attention_forward(1e4 * q, 1e4 * k, v, causal)
        assert np.isfinite(y).all()
        assert all(np.isfinite(d).all() for d in attention_backward(y, cache))


@pytest.mark.parametrize("T", [4, 131])
def test_scores_whose_bound_overflows_are_finite(rng, T):
    """|q|^2 |k|^2 is beyond float32; the scores themselves are not."""
    q, k, v = (x.astype(np.float32) for x in inputs(rng, Tq=T, Tk=T))
    for causal in (False, True):
        y, cache = attention_forward(1e15 * q, 1e15 * k, v, causal)
        assert np.isfinite(y).all()
        assert all(np.isfinite(d).all() for d in attention_backward(y, cache))


def test_shards_of_a_batch_drop_what_the_whole_drops(rng):
    q, k, v = inputs(rng, B=4)
    y, cache = attention_forward(q, k, v, True, None, 0.5, RNG)
    grads = attention_backward(y, cache)
    for a, b in ((0, 1), (1, 4)):
        shard = RNG._replace(row=a)
        part, cache = attention_forward(q[a:b], k[a:b], v[a:b], True, None, 0.5, shard)
        np.testing.assert_allclose(part, y[a:b], rtol=1e-14)
        for d, d_part in zip(grads, attention_backward(part, cache), strict=True):
            np.testing.assert_allclose(d_part, d[a:b], rtol=1e-12, atol=1e-15)


@given(H=st.integers(1, 9), T=st.integers(65, 1500), n=st.integers(1, 19))
@example(H=1, T=1024, n=2)
@example(H=2, T=1100, n=18)
def test_threads_share_a_head_s_queries_evenly(H, T, n):
    q = np.empty((1, H, T, 64))
    with lend(n, None):
        tiles = Tiles(q, q, True, None, 0.0, None)
    loads = {(h, part): 0 for h in range(H) for part in range(tiles.cuts)}
    seen = np.zeros((H, T))
    for (_, heads), part in tiles.parts():
        queries = [*tiles.queries(part)]
        assert queries == sorted(queries, key=lambda i: -i.start)
        assert (part == 0) == (queries[0].stop == T)  # those that see all keys
        for i in queries:
            seen[heads, i] += 1
            for h in range(heads.start, heads.stop):
                loads[h, part] += sum(j.stop - j.start for j in tiles.keys(i))
    assert (seen == 1).all()
    left = -(-T // tiles.rows) % (2 * tiles.cuts)  # tiles that are no whole turn: the shortest
    assert max(loads.values()) - min(loads.values()) <= left * tiles.rows
    assert len(tiles.parts()) <= max(H, n)
    if n >= 2 * H and T > 512:
        assert tiles.cuts == min(n // H, -(-T // tiles.rows))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 331, 331, 3), (1, 1, 260, 331, 3), (1, 1, 331, 260, 4)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [1, 1000], ids=["", "large"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_threads_that_share_a_head_make_the_same_of_it(
    rng, n, sizes, causal, scale, masked, monkeypatch
):
    B, _, _, Tk, _ = sizes
    q, k, v = inputs(rng, *sizes)
    dy = rng.standard_normal(q.shape)
    mask, dropped = (rng.random((B, Tk)) < 0.7, RNG) if masked else (None, None)

    def both(_):
        y, cache = attention_forward(scale * q, k, v, causal, mask, 0.3, dropped)
        return y, *attention_backward(dy, cache)

    monkeypatch.setattr(crew, "PART", 1)
    alone = both(0)
    with Threads(n) as threads:
        [first], [second] = threads.map(both, [0]), threads.map(both, [0])
    for one, x, again in zip(alone, first, second, strict=True):
        np.testing.assert_array_equal(x, again)
        np.testing.assert_allclose(x, one, rtol=1e-12, atol=1e-12 * scale)
    for one, x in zip(alone[:2], first[:2], strict=True):  # y and dq: a query is one thread's
        np.testing.assert_array_equal(x, one)


@pytest.mark.cupy
@pytest.mark.parametrize("n", [1, 3])
def test_heads_are_split_and_merged_without_loss(rng, xp, n):
    x = xp.asarray(rng.standard_normal((2, 5, n * 12)))
    heads = split_heads(x, n, 3)
    assert len(heads) == n and heads[0].shape == (2, 3, 5, 4)
    assert (heads[-1][1, 2, 4] == x[1, 4, -4:]).all()
    for y in (x, x[:, ::2], x[1:], x[:0]):
        for head, written in zip(split_heads(y, n, 3), split_heads.reference(y, n, 3), strict=True):
            assert head.shape == written.shape and (head == written).all()
            assert not y.size or xp.may_share_memory(head, x)
    for merge in (merge_heads, merge_heads.reference):
        assert (merge(*heads) == x).all()
        assert (merge(*[h.copy() for h in heads]) == x).all()


def test_merging_does_not_mistake_what_lies_side_by_side(rng):
    q, k, v = split_heads(rng.standard_normal((2, 5, 36)), 3, 3)
    for arrays in ((v, q, k), (q, q, q), (q, k), (v[::-1], q, k), (q, k, v[:, ::-1])):
        expected = np.concatenate([merge_heads(x.copy()) for x in arrays], axis=-1)
        np.testing.assert_array_equal(merge_heads(*arrays), expected)
