"""The CUDA kernels: values in all dtypes, cases left to the ops, and reproducible bits."""

import hashlib
import importlib

import numpy as np
import pytest

from minigpt.backend import _override
from minigpt.errors import UserError
from minigpt.ops.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.dropout import Rng, dropout_forward, keep_mask, threshold
from minigpt.ops.embedding import (
    embedding_backward,
    embedding_backward_tied,
    embedding_forward,
)
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.ops.linear_activation import linear_activation_backward, linear_activation_forward
from minigpt.ops.rotary import rotary_qkv_backward, rotary_qkv_forward
from tests.backend.test_overrides import BIG, CASES, RNG, file_of, make, overridable_ops
from tests.tools.dtypes import DTYPES, UNIT, needs_bfloat16
from tests.tools.gradcheck import assert_same, call, float_dtypes, is_float, leaves, map_tree
from tests.tools.orders import assert_any_order

pytestmark = pytest.mark.cupy

# A result is rounded, and so is the stream that y = layernorm(stream) is computed from: twice the
# unit round-off, and what float adds to that.
RTOL = {name: 1e-5 + (0 if unit == UNIT["float32"] else 2 * unit) for name, unit in UNIT.items()}
OTHERS = "attention", "cross"  # their kernels have tests of their own
PAIRS = [(pair, spec) for pair, specs in CASES.items() for spec in specs]
OUR_PAIRS = [(pair, spec) for pair, spec in PAIRS if pair[0].__name__.split("_")[0] not in OTHERS]
BIGGEST = {pair: spec for pair, spec in OUR_PAIRS}  # the last of each


def name_of(x):
    return x[0].__name__


@pytest.fixture
def cupy(xp):
    if xp is np:
        pytest.skip("kernels run on the arrays of --backend cupy")
    return xp


@pytest.fixture
def kernels(cupy):
    return importlib.import_module("minigpt.backend.gpu.launch")


@pytest.fixture
def no_kernels(kernels, monkeypatch):
    """From here on a launch is an error."""

    def refuse(name, dtype):
        raise AssertionError(f"{name} is launched for {dtype}")

    monkeypatch.setattr(kernels, "kernel", refuse)


@pytest.fixture
def launches(kernels, monkeypatch):
    """The names of the kernels launched from here on."""
    names, kernel = [], kernels.kernel
    monkeypatch.setattr(
        kernels, "kernel", lambda name, dtype: names.append(name) or kernel(name, dtype)
    )
    return names


def definition(pair):
    return [op.reference for op in pair]


def to_host(x, dtype=None):
    """A tree with NumPy arrays for CuPy's, floats as `dtype` where one is given."""
    if isinstance(x, dict):
        return {key: to_host(value, dtype) for key, value in x.items()}
    if isinstance(x, tuple):
        values = [to_host(y, dtype) for y in x]
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    x = x.get() if hasattr(x, "get") else x
    return x.astype(dtype) if dtype and is_float(x) else x


def both_passes(pair, case, dy, convert):
    y, cache = call(pair[0], *case, convert)
    return y, cache, pair[1](convert(dy), cache)


def random_dy(rng, pair, case):
    return rng.standard_normal(call(pair[0].reference, *case, np.asarray)[0].shape)


def rounded(case, dtype):
    """The floats of a case, rounded to that dtype, as float64; ids as they should be, int32."""
    *arrays, options = case

    def round_floats(x):
        return x.astype(dtype).astype(float)

    others = {
        k: round_floats(v) if v.dtype.kind == "f" else v.astype(np.int32)
        for k, v in options.items()
        if isinstance(v, np.ndarray)
    }
    return (*map_tree(round_floats, arrays), {**options, **others})


def converter(cupy, dtype, layout=lambda x: x):
    return lambda x: layout(cupy.asarray(x.astype(dtype) if x.dtype.kind == "f" else x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair, spec", OUR_PAIRS, ids=name_of)
def test_values(cupy, rng, pair, spec, dtype):
    """The backward pass is checked against its definition on the forward pass's cache."""
    case = rounded(make(rng, spec), dtype)
    dy = random_dy(rng, pair, case).astype(dtype)
    y, cache, gradients = both_passes(pair, case, dy, converter(cupy, dtype))
    assert float_dtypes((y, gradients)) == {dtype}
    if hasattr(cache, "rstd"):
        assert float_dtypes((cache.mu, cache.rstd)) == {"float32"}
    forward, backward = definition(pair)
    assert_same(y, call(forward, *case, np.asarray)[0], RTOL[dtype])
    assert_same(gradients, backward(dy.astype(float), to_host(cache, float)), RTOL[dtype])


@pytest.mark.parametrize("pair, spec", PAIRS, ids=name_of)
def test_float64_goes_to_the_definition(cupy, no_kernels, rng, pair, spec):
    case = make(rng, spec)
    dy = random_dy(rng, pair, case)
    y, _, gradients = both_passes(definition(pair), case, dy, np.asarray)
    found_y, _, found = both_passes(pair, case, dy, converter(cupy, "float64"))
    assert_same((found_y, found), (y, gradients), 1e-12)


def test_every_override_is_tried_with_float64(cupy):
    elsewhere = {"split_heads", "merge_heads", "adamw_step", "clip", "gather", "sum_of_squares"}
    elsewhere |= {"embedding_backward_tied", "cross_entropy_both", "windows", "batched_product"}
    tried = {op.__name__ for pair in CASES for op in pair} | elsewhere
    ops = overridable_ops()
    assert {name for name, op in ops.items() if _override(cupy, file_of(op), name)} <= tried


@pytest.mark.parametrize("pair", BIGGEST, ids=name_of)
def test_views_with_gaps_go_to_the_definition(cupy, rng, pair, launches):
    def gaps(x):
        y = cupy.zeros((*x.shape, 2), x.dtype)[..., 0]
        y[...] = x
        return y

    case = make(rng, BIGGEST[pair])
    dy = random_dy(rng, pair, case)
    y, _, gradients = both_passes(definition(pair), case, dy, np.asarray)
    found_y, _, found = both_passes(pair, case, dy, converter(cupy, "float32", gaps))
    assert_same((found_y, found), (y, gradients), 1e-5)
    assert not {op.__name__ for op in pair} & set(launches)


@pytest.mark.parametrize("pair", BIGGEST, ids=name_of)
def test_any_alignment(cupy, rng, pair):
    """A view into a flat buffer may start anywhere; four elements are then loaded one by one."""

    def shifted(x):
        y = cupy.zeros(x.size + 1, x.dtype)[1:].reshape(x.shape)
        y[...] = x
        return y

    spec = tuple((3, 50, 96) if part == BIG else part for part in BIGGEST[pair])
    case = rounded(make(rng, spec), "float32")
    dy = random_dy(rng, pair, case)
    expected = both_passes(pair, case, dy, converter(cupy, "float32"))
    found = both_passes(pair, case, dy, converter(cupy, "float32", shifted))
    # For other addresses cuBLAS takes other kernels, which sum in another order.
    products = pair[0].__name__.startswith(("linear", "lora"))
    tolerance = RTOL["float32"] if products else 0
    assert_same((found[0], found[2]), to_host((expected[0], expected[2])), tolerance)


def test_rows_too_wide_for_a_block(cupy, kernels, rng, launches):
    wide = "add_norm_forward_4096"
    for C, kernel in ((1024, "add_norm_forward_1024"), (1025, wide), (4096, wide), (4097, None)):
        x, w, dy = (cupy.asarray(rng.standard_normal(s), "f") for s in ((2, C), C, (2, C)))
        y, cache = layernorm_forward(x, w)
        dx, grads = layernorm_backward(dy, cache)
        assert (kernel in launches) == (kernel is not None)
        expected, cache = layernorm_forward.reference(x.get(), w.get())
        assert_same(
            (y, dx, grads), (expected, *layernorm_backward.reference(dy.get(), cache)), 1e-5
        )
        launches.clear()


def check_pending_bias(cupy, rng, C):
    """Check both passes of add_norm with all biases, on 23 rows of C channels."""
    *xs, dy = rng.standard_normal((3, 23, C)).astype("f")
    ws = rng.standard_normal((3, C)).astype("f")
    expected, cache = add_norm_forward.reference(*xs, *ws, 0.2, RNG)
    expected = expected, add_norm_backward.reference(dy, dy, cache)
    xs, ws, dy = ([*map(cupy.asarray, arrays)] for arrays in (xs, ws, (dy, dy)))
    found, cache = add_norm_forward(*xs, *ws, 0.2, RNG)
    assert_same((found, add_norm_backward(*dy, cache)), expected, 1e-5)


@pytest.mark.parametrize("C", [70, 1024, 1100])
def test_a_warp_normalizes_one_row_after_the_other(cupy, rng, monkeypatch, C):
    module = importlib.import_module("minigpt.backend.gpu.linear")
    monkeypatch.setattr(module, "PARTS", 2)
    check_pending_bias(cupy, rng, C)


def test_a_bias_has_its_gradient_from_the_kernel_that_adds_it(cupy, rng, launches):
    """But for rows of which three sums do not fit into shared memory."""
    own = ["add_norm_forward_4096", "add_norm_backward_4096", "column_sums"]
    for C, others in ((4080, []), (4096, ["column_parts", "column_sums"])):
        check_pending_bias(cupy, rng, C)
        assert launches == own + others
        launches.clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, row", [((3, 7), 0), ((3, 7), 1), ((2, 5, 13), 3), ((4, 64), 2)])
def test_dropout_has_the_bits_of_numpy(cupy, rng, shape, row, dtype):
    key, p = Rng.of(7, 9)._replace(row=row), 0.4
    x = rng.standard_normal(shape).astype(dtype)
    expected = np.where(
        keep_mask(shape, p, key, np), x.astype("f") * np.float32(threshold(p)[1]), 0
    )
    y, _ = dropout_forward(cupy.asarray(x), p, key)
    np.testing.assert_array_equal(y.get(), expected.astype(dtype))
    w = cupy.ones(shape[-1], dtype)
    (stream, _), cache = add_norm_forward(None, cupy.asarray(x), w, None, None, p, key)
    np.testing.assert_array_equal(stream.get(), expected.astype(dtype))
    _, dh, _ = add_norm_backward(None, cupy.asarray(x), cache)
    assert (keep_mask(shape, p, key, np) | (dh.get() == 0)).all()


@pytest.mark.parametrize("V, B, T, C", [(3, 4, 40, 6), (65, 9, 256, 130), (999, 3, 50, 520)])
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_embedding_backward_with_repeated_and_unused_ids(cupy, rng, V, B, T, C, tied):
    ids = rng.integers(0, V, (B, T)).astype(np.int32)
    ids[rng.random((B, T)) < 0.4] = V - 1
    ids[ids == 1] = 0  # 1 is unused
    dy = rng.integers(-3, 4, (B, T, C)).astype("f")  # whole numbers: sums are exact
    dwte = [rng.integers(-3, 4, (V, C)).astype("f")] if tied else []
    op = embedding_backward_tied if tied else embedding_backward
    cache = ids, 2, *(np.zeros((n, C), "f") for n in (V, T + 5))
    expected = op.reference(dy, cache, *dwte)
    on_device = [cupy.asarray(x) for x in dwte]
    cache = cupy.asarray(ids), 2, *(cupy.asarray(x) for x in cache[2:])
    grads = op(cupy.asarray(dy), cache, *on_device)
    assert not tied or grads["wte"] is on_device[0]
    assert_same(grads, expected, 0)


def digest():
    """Return a hash of all results of the kernels for the largest case of each op."""
    xp, total = importlib.import_module("cupy"), hashlib.sha256()
    for pair, spec in BIGGEST.items():
        rng = np.random.default_rng(1)
        case = rounded(make(rng, spec), "float32")
        dy = random_dy(rng, pair, case)
        for _, x in leaves(both_passes(pair, case, dy, converter(xp, "float32"))):
            total.update(x.get().tobytes() if hasattr(x, "get") else b"")
    return total.hexdigest()


def test_the_same_bits_in_any_order_of_blocks_and_threads(cupy):
    assert_any_order(digest)


def test_one_launch_where_the_op_has_a_dozen_steps(cupy, rng, launches):
    x, h, dy = (cupy.asarray(rng.standard_normal((2, 5, 8)), "f") for _ in range(3))
    w, b = (cupy.asarray(rng.standard_normal(8), "f") for _ in range(2))
    (_, y), cache = add_norm_forward(x, h, w, b, b, 0.2, RNG)
    assert launches == ["add_norm_forward_1024"]
    add_norm_backward(dy, dy, cache)
    assert launches[1:] == ["add_norm_backward_1024", "column_sums"]
    launches.clear()
    for bias, sums in ((b, ["column_sums"]), (None, [])):
        _, cache = linear_activation_forward(y, cupy.ones((8, 8), "f"), bias, kind="gelu")
        linear_activation_backward(dy, cache)
        assert launches == ["activation_forward", "activation_backward", *sums]
        launches.clear()
    ids = cupy.zeros((2, 5), np.int32)
    for tables in ((x[0], h[0]), (x[0],)):
        _, cache = embedding_forward(ids, *tables)
        embedding_backward(dy, cache)
        assert launches == ["embedding_forward", "embedding_backward"]
        launches.clear()
    _, cache = rotary_qkv_forward(cupy.concatenate([x, x, x], axis=2), 2)
    rotary_qkv_backward(cupy.concatenate([dy, dy, dy], axis=2), cache)
    assert launches == ["rotary", "rotary"]


def test_a_transposed_operand_of_a_product_is_not_copied(cupy, rng):
    sizes = []

    class Sizes(cupy.cuda.MemoryHook):
        name = "sizes"

        def malloc_preprocess(self, **call):
            sizes.append(call["size"])

    x, dy = cupy.ones((4, 16, 8), "f"), cupy.ones((4, 16, 24), "f")
    _, cache = linear_forward(x, cupy.ones((8, 24), "f"))
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc), Sizes():
        dx, grads = linear_backward(dy, cache)
    assert sorted(sizes) == sorted([dx.nbytes, grads["w"].nbytes])


@needs_bfloat16
def test_what_kernels_take(cupy, kernels):
    x = cupy.zeros((4, 6), "f")
    assert kernels.supported(x, None, x[1:])
    half, lower = x.astype(np.float16), cupy.empty(x.shape, "bfloat16")
    others = (half, lower, np.zeros(3, "f"), x[:, ::2], x.T, x[:0], x.astype(float), x.astype(int))
    for other in others:
        assert not kernels.supported(x, other)
    assert kernels.supported(half) and kernels.supported(lower)
    assert not kernels.supported(half, lower) and not kernels.supported(x.astype(np.int32))


def test_a_numpy_array_is_refused_before_a_kernel_sees_it(cupy, no_kernels):
    x = cupy.ones((2, 4), "f")
    with pytest.raises((TypeError, UserError)):
        layernorm_forward(x, np.ones(4, "f"))
    override = _override(cupy, "layernorm", "layernorm_forward")
    assert override(x, np.ones(4, "f")) is NotImplemented
    with pytest.raises(TypeError):
        layernorm_forward.reference(x, np.ones(4, "f"))


def test_a_kernel_that_does_not_compile_is_one_line(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "source", lambda: "error here")
    monkeypatch.setattr(kernels, "_module", kernels._module.__wrapped__)
    with pytest.raises(UserError, match=r"^--backend cupy: the kernels for float32 .* pip install"):
        kernels.kernel.__wrapped__("softmax_forward", np.dtype("f"))
