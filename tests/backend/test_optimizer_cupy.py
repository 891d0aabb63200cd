"""The optimizer's kernels: bits, skipped steps, how many launches, what goes to the definition."""

import math

import numpy as np
import pytest

from minigpt.optim import gradients
from minigpt.optim.adamw import AdamW, adamw_step
from minigpt.optim.clipping import GRAD_NORM, GRAD_SCALE, LOSS_SCALE, SKIPPED, STEPS, clip
from minigpt.params import Params
from tests.tools.dtypes import DTYPES, LOW

cupy = pytest.importorskip("cupy", reason="needs CuPy", exc_type=ImportError)

from minigpt.backend.gpu import adamw as adamw_kernel  # noqa: E402
from minigpt.backend.gpu import clipping as clip_kernel  # noqa: E402
from minigpt.backend.gpu import gradients as kernels  # noqa: E402

pytestmark = pytest.mark.cupy

EPS = 2.0**-24  # unit round-off of float32
EPS16 = 2.0**-11
OPTIONS = 1e-2, 0.9, 0.99, 1e-8, 0.1  # lr, beta1, beta2, eps, weight_decay


@pytest.fixture
def names(monkeypatch):
    """The names of the kernels that are launched, one after the other."""
    names, launch = [], kernels.launch

    def note(name, *args):
        names.append(name)
        launch(name, *args)

    for module in (kernels, clip_kernel, adamw_kernel):
        monkeypatch.setattr(module, "launch", note)
    return names


def device(*arrays, dtype="float32"):
    return [cupy.asarray(x, dtype) for x in arrays]


def leaves_of(rng, sizes, dtype):
    return tuple(cupy.asarray(rng.standard_normal(n), dtype) for n in sizes)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [(1,), (kernels.WIDTH,), (kernels.WIDTH + 1, 0, 0, 3), (0, 5), (7,) * kernels.ARRAYS]
    + [(13,) * (2 * kernels.ARRAYS + 1), (0,) * kernels.ARRAYS + (9,), (3, 20_000, 1, 4096)],
)
def test_gather(rng, names, sizes, dtype, add):
    arrays = leaves_of(rng, sizes, dtype)
    whole = np.concatenate([x.get().astype(np.float64) for x in arrays])
    flat = cupy.full(whole.size, 0.75 if add else math.nan, "float32")
    gradients.gather(flat, (arrays,), add)
    full = [i for i in range(0, len(sizes), kernels.ARRAYS) if sum(sizes[i : i + kernels.ARRAYS])]
    assert names == ["gather"] * len(full)
    expected = whole + 0.75 * add
    np.testing.assert_allclose(flat.get(), expected, rtol=EPS)  # one rounding


def test_gather_follows_arrays_that_move(rng):
    here, there = (leaves_of(rng, (5, 7), "float32") for _ in range(2))
    flat = cupy.empty(12, "float32")
    for arrays in here, there, here[::-1], here:
        gradients.gather(flat, (arrays,))
        np.testing.assert_array_equal(flat.get(), np.concatenate([x.get() for x in arrays]))


@pytest.mark.parametrize("n", [1, kernels.WIDTH, kernels.WIDTH + 1, 70_001])
def test_sum_of_squares_is_a_part_per_block_and_the_same_bits_twice(rng, names, n):
    g = cupy.asarray(rng.standard_normal(n), "float32")
    parts, again = (gradients.sum_of_squares(g) for _ in range(2))
    assert names == ["sum_of_squares"] * 2 and parts.size == -(-n // kernels.WIDTH)
    # A thread adds 16 squares, and a block 256 sums by halves and warps.
    assert parts.dtype == np.float32
    expected = (g.get().astype("d") ** 2).sum()
    np.testing.assert_allclose(parts.get().sum(dtype="d"), expected, rtol=32 * EPS)
    np.testing.assert_array_equal(parts.get(), again.get())


def test_a_leaf_that_is_not_contiguous_is_copied(rng):
    x = cupy.asarray(rng.standard_normal((6, 4)), "float32")
    flat = cupy.empty(24, "float32")
    gradients.gather(flat, ((x.T,),))
    np.testing.assert_array_equal(flat.get(), x.get().T.ravel())


def test_148_leaves_of_a_gpt_are_one_launch(rng, names):
    shapes = [{"w": (16, 4), "b": (4,)}] * 74
    grads, tree = (Params(shapes, cupy, "float32") for _ in range(2))
    tree.flat[...] = cupy.asarray(rng.standard_normal(tree.size))
    gradients.gather(grads.flat, (tuple(grads.ordered(tree.tree)),))
    assert names == ["gather"]
    np.testing.assert_array_equal(grads.flat.get(), tree.flat.get())


@pytest.mark.parametrize("n", [1, 255, 1024, 5000])
@pytest.mark.parametrize("max_norm", [0.0, 0.3])
def test_clip(rng, names, n, max_norm):
    squares = rng.standard_normal(n) ** 2
    state = device([1024.0, 3, 4, 1, 0, 0])[0]
    clip(state, *device(squares), max_norm, 100)
    assert names == ["clip"]
    norm = math.sqrt(squares.sum()) / 1024
    scale = min(1, max_norm / (norm + 1e-6)) / 1024 if max_norm else 1 / 1024
    np.testing.assert_allclose(state.get(), [1024, 4, 5, 1, scale, norm], rtol=32 * EPS)


def adamw_arrays(rng, n):
    p, g, m, v = rng.standard_normal((4, n)).astype(np.float32)
    return p, g, m, v * v


@pytest.mark.parametrize("n, decayed", [(1, 0), (255, 255), (1025, 7), (70_001, 30_000)])
@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("dtype", LOW)
def test_adamw_is_near_its_definition_in_float64(rng, names, n, decayed, step, dtype):
    arrays = adamw_arrays(rng, n)
    low, (step_at, scale) = cupy.zeros(n, dtype), device(step, 0.37)
    expected = [x.astype(np.float64) for x in arrays]
    adamw_step.reference(*expected, *OPTIONS, decayed, step, float(np.float32(0.37)))
    came = device(*arrays)
    adamw_step(*came, *OPTIONS, decayed, step_at, scale, low)
    assert names == ["adamw_step"]
    for x, y, before in zip(came, expected, arrays, strict=True):
        # Some ten roundings, each of a number no larger than these.
        size = np.maximum(np.abs(before), np.abs(y)) + 1
        assert (np.abs(x.get() - y) <= 10 * EPS * size).all()
    np.testing.assert_array_equal(low.get(), came[0].get().astype(dtype))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mixed", [False, True])
def test_an_overflow_leaves_every_bit(rng, scale, mixed):
    arrays = device(*adamw_arrays(rng, 3001))
    arrays[1][1000] = math.inf
    low = arrays[0].astype("float16") if mixed else None
    step, scale = device(3, scale)
    before = [x.get().tobytes() for x in arrays]
    adamw_step(*arrays, *OPTIONS, 17, step, scale, low)
    assert [x.get().tobytes() for x in arrays] == before
    assert low is None or (low == arrays[0].astype("float16")).all()


SHAPES = {"wte": (31, 4), "h": [{"w": (4, 12), "b": (12,)}, {"w": (12, 4), "b": (4,)}]}


def trees(xp, n):
    """The gradients of n steps, the same for each xp."""
    numbers = np.random.default_rng(7)
    for _ in range(n):
        tree = Params(SHAPES, xp, "float32")
        tree.flat[...] = xp.asarray(numbers.standard_normal(tree.size), "float32")
        yield tree


def trained(xp, n=20):
    model = Params(SHAPES, xp, "float32")
    model.flat[...] = xp.asarray(np.random.default_rng(8).standard_normal(model.size), "float32")
    adamw, grads = AdamW(model, max_norm=3.0), model.zeros_like()
    norms = []
    for tree in trees(xp, n):
        gradients.gather(grads.flat, (tuple(grads.ordered(tree.tree)),))
        adamw.step(grads.flat, 1e-2)
        norms.append(float(adamw.state[GRAD_NORM]))
    return adamw, norms


def test_20_steps_are_numpys_to_rounding():
    (here, norms), (host, expected) = trained(cupy), trained(np)
    np.testing.assert_allclose(norms, expected, rtol=8 * EPS)
    for x, y in ((here.params, host.params), (here.m, host.m), (here.v, host.v)):
        # The ten roundings of a step do not grow: what came before is multiplied by less than 1.
        np.testing.assert_allclose(x.flat.get(), y.flat, rtol=0, atol=20 * 10 * EPS)


def test_the_same_steps_give_the_same_bits():
    one, other = (trained(cupy)[0] for _ in range(2))
    for name in ("params", "m", "v"):
        assert getattr(one, name).flat.get().tobytes() == getattr(other, name).flat.get().tobytes()
    assert one.state.get().tobytes() == other.state.get().tobytes()


def test_mixed_precision_skips_what_overflowed_in_four_launches(names):
    model, low = Params(SHAPES, cupy, "float32"), Params(SHAPES, cupy, "float16")
    adamw, grads = AdamW(model, half_params=low, loss_scaling=True), model.zeros_like()
    for i, tree in enumerate(trees(cupy, 4)):
        half = Params(SHAPES, cupy, "float16")
        half.flat[...] = tree.flat * adamw.loss_scale / 100
        if i == 1:
            half.flat[5] = math.inf
        names.clear()
        gradients.gather(grads.flat, (tuple(grads.ordered(half.tree)),))
        adamw.step(grads.flat, 1e-2)
        assert names == ["gather", "sum_of_squares", "clip", "adamw_step"]
        state = adamw.state.get()
        assert np.isfinite(state[GRAD_SCALE]) == (i != 1)
        np.testing.assert_array_equal(low.flat.get(), model.flat.get().astype(np.float16))
    assert (state[LOSS_SCALE], state[STEPS], state[SKIPPED]) == (2.0**15, 3, 1)


def test_what_the_kernels_do_not_take_goes_to_the_definition(names):
    x = cupy.ones(5, "float32")
    for flat, shards in (
        (cupy.zeros(5), ((cupy.ones(5),),)),
        (cupy.zeros(5, "float32"), ((x, x[:0].astype("float16")),)),  # two types
        (cupy.zeros(5, "float32"), ((x,), (x,))),
        (cupy.zeros(10, "float32")[::2], ((x,),)),
        (cupy.zeros(0, "float32"), ((x[:0],),)),
    ):
        assert kernels.gather(flat, shards) is NotImplemented
        gradients.gather(flat, shards)
        assert (flat == len(shards)).all()

    for g in (cupy.ones(6), cupy.ones(6, "float32")[::2], cupy.ones(0, "float32")):
        assert kernels.sum_of_squares(g) is NotImplemented
        parts = gradients.sum_of_squares(g)
        assert parts.ndim == 1 and float(parts.sum()) == g.size

    for state, parts in (
        (cupy.ones(6), cupy.ones(3)),
        (cupy.ones(12, "float32")[::2], cupy.ones(3, "float32")),
        (cupy.ones(6, "float32"), cupy.ones(6, "float32")[::2]),
        (cupy.ones(6, "float32"), cupy.ones(3)),
    ):
        assert clip_kernel.clip(state, parts, 1.0) is NotImplemented
        clip(state, parts, 1.0)
        np.testing.assert_allclose(float(state[GRAD_NORM]), math.sqrt(3), rtol=2 * EPS)

    for dtype, n, stride in (("float64", 6, 1), ("float32", 6, 2), ("float32", 0, 1)):
        p, g, m, v = (cupy.ones(n * stride, dtype)[::stride] for _ in range(4))
        assert adamw_kernel.adamw_step(p, g, m, v, *OPTIONS, 0, 1, 1.0) is NotImplemented
        adamw_step(p, g, m, v, *OPTIONS, 0, 1, 1.0)
        assert (p < 1).all()
    p, g, m, v = (cupy.ones(6, "float32") for _ in range(4))
    half = cupy.zeros(6, "float32")
    assert adamw_kernel.adamw_step(p, g, m, v, *OPTIONS, 0, 1, 1.0, half) is NotImplemented
    adamw_step(p, g, m, v, *OPTIONS, 0, 1, 1.0, half)
    assert (half == p).all() and (p < 1).all()
    assert names == []
