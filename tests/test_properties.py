"""What holds of every op whatever the numbers, and of a model on every path through it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.backend import to_host
from minigpt.model.gpt import (
    gpt_backward,
    gpt_forward,
    loss_backward,
    loss_forward,
    shapes,
)
from minigpt.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minigpt.params import Params
from minigpt.sample.kv_cache import KVCache
from minigpt.train.threads import Workers
from tests.backend.test_overrides import CASES, make
from tests.tools.gradcheck import assert_same, call, forms, leaves, map_tree, read_only
from tests.tools.options import gpt_config
from tests.tools.problem import form

SMALL = 5000  # numbers that go into an op here
CONFIG = gpt_config(vocab_size=11, block_size=131, n_layer=2, n_head=2, n_embd=8)


def size(spec):
    """Return how many numbers go into an op."""
    return sum(x.size for _, x in leaves(make(np.random.default_rng(0), spec)[:2]))


SPECS = [(pair, spec) for pair, specs in CASES.items() for spec in specs if size(spec) < SMALL]
cases = given(st.sampled_from(SPECS), st.integers(0, 2**32 - 1))
# Without scores so large that gradients are denormal, whose double need not be representable.
NORMAL = [(pair, spec) for pair, spec in SPECS if "size" not in str(spec[-1])]


def gradients(pair, case, dy):
    """Return {name: gradient} of a pair of passes."""
    _, cache = call(pair[0], *case, read_only)
    return dict(leaves(pair[1](read_only(np.asarray(dy)), cache)))


def draw(pair, spec, seed):
    """Return a case, two upstream gradients, and a source of more numbers."""
    rng = np.random.default_rng(seed)
    case = make(rng, spec)
    shape = np.shape(call(pair[0], *case, read_only)[0])
    return case, rng.standard_normal((2, *shape)), rng


@cases
def test_a_backward_pass_is_linear_in_the_upstream(pair_and_spec, seed):
    pair, spec = pair_and_spec
    case, (a, b), _ = draw(pair, spec, seed)
    for passes in forms(*pair):
        of_a, of_b = (gradients(passes, case, dy) for dy in (a, b))
        expected = {name: of_a[name] - 3 * of_b[name] for name in of_a}
        assert_same(gradients(passes, case, a - 3 * b), expected, 1e-12, least=1.0)


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pair, spec", NORMAL, ids=lambda x: x[0].__name__)
def test_a_zero_gives_zeros_a_double_the_double_and_the_same_the_same(rng, xp, pair, spec, dtype):
    xs, ws, options = make(rng, spec)
    case = (*map_tree(lambda x: x.astype(dtype), (xs, ws)), options)

    def convert(x):
        return read_only(x) if xp is np else xp.asarray(x)

    def run(factor):
        y, cache = call(pair[0], *case, convert)
        return y, pair[1](convert(np.asarray(dy * factor)), cache)

    y, _ = call(pair[0], *case, convert)
    dy = np.asarray(rng.standard_normal(y.shape), dtype)
    y, once = run(np.dtype(dtype).type(1))
    for factor in (1, 0, 2):
        again, found = run(np.dtype(dtype).type(factor))
        assert_same(again, to_host(y), 0)
        assert_same(found, map_tree(lambda x, f=factor: f * to_host(x), once), 0)


def batch(spec):
    """Return the size of the batch of a case, or None where it is one vector."""
    xs, _, options = make(np.random.default_rng(0), spec)
    first = options.get("ids", *xs[:1])
    return len(first) if first.ndim > 1 else None


FROZEN = {"w", "b"}  # arrays among the options that are weights, and the same for all rows
BATCHED = [(pair, spec) for pair, spec in SPECS if batch(spec)]
batches = given(st.sampled_from(BATCHED), st.integers(0, 2**32 - 1))


def of_rows(case, rows, first=None):
    """Return the case for some rows of the batch, the first of which is that of the dropout."""
    xs, ws, options = case
    of_batch = {k for k, v in options.items() if isinstance(v, np.ndarray)} - FROZEN
    options = {k: v[rows] if k in of_batch else v for k, v in options.items()}
    if options.get("rng") is not None:
        rng = options["rng"]
        options["rng"] = None if first is None else rng._replace(row=rng.row + first)
    if "targets" in options:
        options["count"] = 7
    return map_tree(lambda x: x[rows], xs), ws, options


def results(passes, case, dy, rows):
    """Return {name: y or gradient}, where y has a batch and dy of those rows goes in."""
    y, _ = call(passes[0], *case, read_only)
    if np.ndim(y):
        dy = dy[:, rows] if hasattr(passes[0], "inputs") else dy[rows]
    return {"y": y, **gradients(passes, case, dy)}


def along_batch(name, y, passes):
    """Return the axis of a result that is the batch's, or None."""
    if name == "y":
        return None if not np.ndim(y) else int(hasattr(passes[0], "inputs"))
    return 0 if name == "" or name.isdigit() else None  # of an array, not of a parameter


@batches
def test_permuting_the_batch_permutes_the_result(pair_and_spec, seed):
    pair, spec = pair_and_spec
    case, (dy, _), rng = draw(pair, spec, seed)
    order = rng.permutation(batch(spec))
    for passes in forms(*pair):
        whole = results(passes, of_rows(case, slice(None)), dy, slice(None))
        moved = results(passes, of_rows(case, order), dy, order)
        for name, y in whole.items():
            axis = along_batch(name, y, passes)
            whole[name] = y if axis is None else y.take(order, axis)
        assert_same(moved, whole, 1e-12, least=1.0)


@batches
def test_gradients_of_parts_of_a_batch_add_up_to_those_of_the_whole(pair_and_spec, seed):
    pair, spec = pair_and_spec
    case, (dy, _), rng = draw(pair, spec, seed)
    n = batch(spec)
    cut = int(rng.integers(n + 1))
    for passes in forms(*pair):
        whole, *parts = (
            results(passes, of_rows(case, rows, rows.start), dy, rows)
            for rows in (slice(0, n), slice(0, cut), slice(cut, n))
        )
        for name, y in whole.items():
            axis = along_batch(name, y, passes)
            found = [part[name] for part in parts]
            joined = sum(found) if axis is None else np.concatenate(found, axis)
            assert_same(joined, y, 1e-12, least=1.0)


@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 99))
def test_the_gradient_of_the_logits_of_each_token_sums_to_zero(N, V, seed):
    rng = np.random.default_rng(seed)
    logits, targets = 5 * rng.standard_normal((N, V)), rng.integers(0, V, N)
    for forward, backward in forms(cross_entropy_forward, cross_entropy_backward):
        _, cache = forward(logits, targets, np.eye(V))
        dx, _ = backward(1.0, cache)
        # exp(logit - lse) takes over the rounding of its argument, and V of them are added
        rounding = 2.0**-52 * (np.abs(logits).max() + V)
        np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=rounding)
        assert (dx[np.arange(N), targets] < 0).all() and ((dx > 0).sum(axis=-1) == V - 1).all()


def model(rng):
    params = Params(shapes(CONFIG), np, "float64")
    params.flat[...] = 0.5 * rng.standard_normal(params.size)
    return params.tree


def check_causal(tree, rng, T):
    """Assert that no place of a sequence depends on a later one, in both passes; to the bit."""
    ids = rng.integers(0, CONFIG.vocab_size, (2, T))
    y, cache = gpt_forward(ids, tree, CONFIG)
    for t in {0, T // 2, T - 2}:
        changed = ids.copy()
        changed[:, t + 1 :] = (ids[:, t + 1 :] + 1) % CONFIG.vocab_size
        other, _ = gpt_forward(changed, tree, CONFIG)
        assert np.array_equal(other[:, : t + 1], y[:, : t + 1]), f"{t} sees the future"
        assert (other[:, t + 1 :] != y[:, t + 1 :]).any(axis=-1).all()
        dy = np.zeros_like(y)
        dy[:, t] = rng.standard_normal(y[:, t].shape)
        dwpe = gpt_backward(dy, cache)["wpe"]
        assert not dwpe[t + 1 :].any(), f"a gradient of {t} reaches the future"
        assert dwpe[: t + 1].any(axis=1).all()


@pytest.mark.parametrize(
    "path, T", [("plain", 7), ("override", 7), ("plain", 131), ("override", 65), ("override", 131)]
)
def test_no_token_sees_the_future(rng, path, T):
    with form(path):
        check_causal(model(rng), rng, T)


def test_no_token_sees_the_future_in_threads(rng):
    tree = model(rng)
    with Workers(3) as workers:
        workers.map(lambda seed: check_causal(tree, np.random.default_rng(seed), 70), range(6))


@pytest.mark.parametrize("path", ["plain", "override"])
@pytest.mark.parametrize("lengths", [(3, 4), (1, 1, 1, 4), (60, 71), (130, 1)], ids=str)
def test_no_token_sees_the_future_through_a_cache(rng, path, lengths):
    tree, ends = model(rng), np.cumsum(lengths)
    ids = rng.integers(0, CONFIG.vocab_size, (2, ends[-1]))

    def run(ids):
        kv = KVCache(CONFIG, 2, np, np.float64)
        parts = [gpt_forward(part, tree, CONFIG, kv=kv)[0] for part in np.split(ids, ends[:-1], 1)]
        return np.concatenate(parts, axis=1)

    with form(path):
        y = run(ids)
        assert_same(y, gpt_forward(ids, tree, CONFIG)[0], 1e-12)
        for t in {0, ends[0] - 1, ends[-1] - lengths[-1] // 2 - 1}:
            changed = ids.copy()
            changed[:, t + 1 :] = (ids[:, t + 1 :] + 1) % CONFIG.vocab_size
            np.testing.assert_array_equal(run(changed)[:, : t + 1], y[:, : t + 1])


@pytest.mark.parametrize("path", ["plain", "override"])
def test_permuting_the_batch_changes_no_gradient_of_a_model(rng, path):
    tree, ids = model(rng), rng.integers(0, CONFIG.vocab_size, (2, 5, 9))
    order = rng.permutation(5)
    with form(path):
        loss, cache = loss_forward(*ids, tree, CONFIG)
        moved, moved_cache = loss_forward(*ids[:, order], tree, CONFIG)
        assert_same(moved, loss, 1e-13)
        assert_same(loss_backward(1.0, moved_cache), loss_backward(1.0, cache), 1e-11)
