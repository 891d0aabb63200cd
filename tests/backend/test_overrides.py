"""Every override against its definition: signature, values, memory; all pairings of the passes."""

import ast
import importlib
import inspect
import itertools
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import minigpt
from minigpt.backend import _override
from minigpt.backend.cpu.blocking import BLOCK
from minigpt.ops import activation as activation_module
from minigpt.ops.activation import activation_backward, activation_forward
from minigpt.ops.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.attention import attention_backward, attention_forward
from minigpt.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minigpt.ops.dropout import Rng, dropout_backward, dropout_forward
from minigpt.ops.embedding import embedding_backward, embedding_forward
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.ops.linear import linear_backward, linear_forward
from minigpt.ops.linear_activation import linear_activation_backward, linear_activation_forward
from minigpt.ops.lora import lora_backward, lora_forward
from minigpt.ops.rotary import (
    rotary_backward,
    rotary_forward,
    rotary_qkv_backward,
    rotary_qkv_forward,
)
from minigpt.ops.softmax import softmax_backward, softmax_forward
from tests.tools.gradcheck import (
    assert_same,
    call,
    float_dtypes,
    joined,
    map_tree,
    read_only,
    strided,
)

LARGE = 5000  # vocabulary
BOTH = "b", "h_b"  # biases of add_norm
BIG = (3, BLOCK // 97 // 3 + 20, 97)  # more than one block of rows, and none of them whole
RTOL = {"float32": 5e-6, "float64": 1e-12}  # relative to the largest, for scores of some units
RNG = Rng.of(1, 2)


def draw(numbers, *shapes):
    return tuple(numbers.standard_normal(shape) for shape in shapes)


def linear(numbers, shape, n_out, bias):
    x, w, b = draw(numbers, shape, (shape[-1], n_out), n_out)
    return (x,), {"w": w, "b": b} if bias else {"w": w}, {}


def lora(numbers, shape, n_out, rank, bias, **options):
    x, w, b, *factors = draw(
        numbers, shape, (shape[-1], n_out), n_out, (shape[-1], rank), (rank, n_out)
    )
    frozen = {"w": w, "b": b} if bias else {"w": w}
    frozen = {name: x.astype(np.float32).astype(float) for name, x in frozen.items()}
    named = dict(zip(("lora_a", "lora_b"), factors, strict=True)) if rank else {}
    return (x,), named, {**frozen, "scale": 0.5, **options}


def layernorm(numbers, shape, bias):
    x, w, b = draw(numbers, shape, shape[-1:], shape[-1:])
    return (1 + 2 * x,), {"w": w, "b": b} if bias else {"w": w}, {}


def linear_activation(numbers, shape, n_out, bias, kind):
    xs, ws, _ = linear(numbers, shape, n_out, bias)
    return xs, ws, {"kind": kind}


def add_norm(numbers, shape, n, biases, **options):
    names = "w", *biases
    arrays = draw(numbers, *[shape] * n, *[shape[-1:]] * len(names))
    return arrays[:n], dict(zip(names, arrays[n:], strict=True)), options


def elementwise(numbers, shape, **options):
    return (3 * numbers.standard_normal(shape),), {}, options


def embedding(numbers, B, T, V, positions=True):
    wte, wpe = draw(numbers, (V, 5), (T + 2, 5))
    tables = {"wte": wte, "wpe": wpe} if positions else {"wte": wte}
    return (), tables, {"ids": numbers.integers(0, V, (B, T)), "start": 1}


def rotary(numbers, B, H, T, D, start):
    return draw(numbers, (B, H, T, D)), {}, {"start": start}


def rotary_qkv(numbers, B, T, H, D, start):
    return draw(numbers, (B, T, 3 * H * D)), {}, {"n_head": H, "start": start}


def attention(numbers, B, H, Tq, Tk, D, size=1, masked=False, **options):
    q, k, v = draw(numbers, *[(B, H, T, D) for T in (Tq, Tk, Tk)])
    if masked:
        options["key_mask"] = numbers.random((B, Tk)) < 0.7
        options["key_mask"][-1:] = False  # the queries of the last sequence see nothing
    return (size * q, size * k, v), {}, options


def cross_entropy(numbers, shape, V, bias):
    x, w, b = draw(numbers, (*shape, 6), (V, 6), V)
    targets = numbers.integers(-1, V, shape)
    return (x,), {"w": w, "b": b} if bias else {"w": w}, {"targets": targets}


CASES = {
    (linear_forward, linear_backward): [
        (linear, *spec)
        for spec in (((4,), 3, True), ((0, 4), 3, True), ((2, 3, 4), 5, False), (BIG, 97, True))
    ],
    (layernorm_forward, layernorm_backward): [
        (layernorm, *spec)
        for spec in (((4,), True), ((0, 4), True), ((2, 3, 1), False), (BIG, True), (BIG, False))
    ],
    **{
        joined(add_norm_forward, add_norm_backward, begins): [
            (add_norm, shape, 2 - begins, biases, dropout)
            for dropout in ({}, {"dropout": 0.3})
            for shape, biases in (((4,), BOTH), ((0, 4), BOTH), ((2, 3, 1), ()))
            + ((BIG, ("h_b",)), (BIG, ()), (BIG, ("b",)), (BIG, BOTH))
        ]
        for begins in (False, True)
    },
    (activation_forward, activation_backward): [
        (elementwise, shape, {"kind": kind})
        for kind in ("gelu", "gelu_tanh", "relu")
        for shape in ((5,), (0, 4), (1, 1), BIG)
    ],
    (linear_activation_forward, linear_activation_backward): [
        (linear_activation, shape, n_out, bias, {"kind": kind})
        for kind in ("relu", "gelu_tanh", "gelu")
        for shape, n_out in (((5,), 3), ((0, 4), 3), ((1, 1), 1), (BIG, 97))
        for bias in (False, True)
    ],
    (lora_forward, lora_backward): [
        (lora, *spec, dropout)
        for dropout in ({}, {"dropout": 0.3})
        for spec in (((4,), 3, 1, True), ((0, 4), 3, 2, True), ((2, 3, 4), 5, 0, True))
        + (((2, 3, 4), 5, 7, False), (BIG, 97, 8, True))
    ],
    (dropout_forward, dropout_backward): [
        (elementwise, shape, {"p": p, "rng": key})
        for shape in ((5,), (0, 4), (3, 7), BIG)
        for p, key in ((0.3, RNG), (0.3, RNG._replace(row=3)), (0.0, RNG), (0.3, None))
    ],
    (softmax_forward, softmax_backward): [
        (elementwise, s, {}) for s in ((5,), (0, 4), (4, 0), BIG)
    ],
    (embedding_forward, embedding_backward): [
        (embedding, *spec, positions)
        for spec in ((2, 3, 5), (0, 3, 5), (2, 0, 5), (16, 64, 65), (2, 9, 5000), (17, 64, 2000))
        for positions in (False, True)
    ],
    (rotary_forward, rotary_backward): [
        (rotary, *spec) for spec in ((2, 1, 3, 2, 0), (0, 2, 3, 4, 1), (3, 2, 317, 34, 5))
    ],
    (rotary_qkv_forward, rotary_qkv_backward): [
        (rotary_qkv, *spec)
        for spec in ((2, 3, 1, 2, 0), (0, 3, 2, 4, 1), (2, 0, 2, 4, 1), (2, 1, 3, 6, 9))
        + ((3, 317, 2, 34, 5),)
    ],
    (cross_entropy_forward, cross_entropy_backward): [
        (cross_entropy, *spec)
        for spec in (
            ((4,), 5, True),
            ((0, 3), 5, True),
            ((3, 50), 65, False),
            ((900,), LARGE, True),
        )
    ],
    (attention_forward, attention_backward): [
        (attention, *sizes, {**size, **masks, **drop})
        for sizes in ((2, 3, 5, 5, 4), (2, 1, 1, 7, 3), (0, 2, 3, 3, 4), (2, 2, 0, 3, 4))
        for size, masks, drop in itertools.product(
            ({},), ({}, {"causal": True}, {"causal": True, "masked": True}), ({}, {"dropout": 0.3})
        )
    ]
    + [
        (attention, *sizes, options)
        for sizes in ((2, 2, 131, 131, 8), (2, 1, 5, 1100, 4), (2, 1, 300, 170, 3))
        for options in (
            {},
            {"causal": True},
            {"masked": True},
            {"causal": True, "masked": True, "dropout": 0.3},
            {"causal": True, "size": 6},
        )
    ],
}
ELSEWHERE = {"adamw_step": "optim.test_adamw", "clip": "optim.test_adamw"}
ELSEWHERE |= {"gather": "test_params", "sum_of_squares": "test_params"}
ELSEWHERE |= {"split_heads": "ops.test_attention", "merge_heads": "ops.test_attention"}
ELSEWHERE |= {"cross_entropy_both": "ops.test_cross_entropy"}
ELSEWHERE["embedding_backward_tied"] = "ops.test_embedding"
ELSEWHERE |= {"batched_product": "optim.test_muon", "windows": "data.test_batches"}


def overridable_ops():
    """Return every op of the package that a backend may replace, by name."""
    ops = {}
    for module in pkgutil.walk_packages(minigpt.__path__, "minigpt."):
        if module.name.startswith("minigpt.backend.") or module.name.endswith("__main__"):
            continue
        for name, op in vars(importlib.import_module(module.name)).items():
            if hasattr(op, "reference"):
                ops[name] = op
    return ops


def make(rng, spec):
    """Return (xs, ws, options) of a case, numbers rounded to what float32 can hold."""
    builder, *args = spec
    keywords = args.pop() if isinstance(args[-1], dict) else {}
    if "dropout" in keywords:
        keywords = {**keywords, "rng": RNG._replace(row=3)}
    xs, ws, options = builder(rng, *args, **keywords)
    return (*map_tree(lambda x: x.astype(np.float32).astype(float), (xs, ws)), options)


def file_of(op):
    """Return the name of an op's own file, which its overrides' files bear too."""
    return op.__module__.rpartition(".")[2]


@pytest.mark.cupy
def test_every_override_is_checked_and_has_its_definitions_signature(xp):
    checked = {op.__name__ for pair in CASES for op in pair} | ELSEWHERE.keys()
    ops = overridable_ops()
    assert ops.keys() <= checked, "a new op needs its cases here"
    overrides = {name: _override(xp, file_of(op), name) for name, op in ops.items()}
    assert sum(override is not None for override in overrides.values()) > 10
    for name, override in overrides.items():
        if override is not None:
            assert inspect.signature(override) == inspect.signature(ops[name].reference), name
    for name, file in ELSEWHERE.items():
        source = inspect.getsource(importlib.import_module(f"tests.{file}"))
        assert f"{name}.reference" in source


@pytest.mark.parametrize("folder", ["cpu", "gpu"])
def test_every_override_is_in_the_file_of_its_op(folder):
    files = {name: file_of(op) for name, op in overridable_ops().items()}
    for path in (Path(inspect.getfile(minigpt)).parent / "backend" / folder).glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name in files:
                assert files[node.name] == path.stem, node.name


@pytest.mark.cupy
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize(
    "pair, spec",
    [
        pytest.param(pair, spec, marks=pytest.mark.slow if LARGE in spec else ())
        for pair, specs in CASES.items()
        for spec in specs
    ],
    ids=lambda x: x[0].__name__,
)
def test_all_pairings_of_the_passes(xp, rng, pair, spec, dtype, layout):
    case = make(rng, spec)
    definition = [op.reference for op in pair]
    y, cache = call(definition[0], *case, np.asarray)
    dy = rng.standard_normal(y.shape).astype(np.float32).astype(float)
    expected = y, definition[1](dy, cache)

    def convert(x):
        x = x.astype(dtype) if x.dtype.kind == "f" else x
        x = strided(x) if layout == "strided" else x
        return read_only(x) if xp is np else xp.asarray(x)

    for forward, backward in itertools.product(*zip(pair, definition, strict=True)):
        y, cache = call(forward, *case, convert)
        gradients = backward(convert(dy), cache)
        assert float_dtypes((y, cache, gradients)) == {dtype}
        size = spec[-1].get("size", 1) if isinstance(spec[-1], dict) else 1
        assert_same((y, gradients), expected, RTOL[dtype] * size)  # rounding grows with scores


@pytest.mark.parametrize(
    "pair, spec", [(pair, specs[-1]) for pair, specs in CASES.items()], ids=lambda x: x[0].__name__
)
def test_calls_do_not_disturb_the_results_of_others(rng, pair, spec):
    cases = [make(rng, spec) for _ in range(3)]
    running = [call(pair[0], *case, np.asarray) for case in cases]
    dys = [read_only(rng.standard_normal(y.shape)) for y, _ in running]
    results = [(y, pair[1](dy, cache)) for dy, (y, cache) in zip(dys, running, strict=True)]
    del running
    for case, dy, result in zip(cases, dys, results, strict=True):
        y, cache = call(pair[0], *case, np.asarray)
        assert_same(result, (y, pair[1](dy, cache)), 0)


def test_an_activation_that_no_override_knows_runs_as_an_op(rng, monkeypatch):
    """So a new one is a function in ops/activation.py and a line in its KINDS."""
    monkeypatch.setitem(activation_module.KINDS, "square", lambda x: (x * x, 2 * x))
    x, w, dy = (rng.standard_normal(shape).astype("f") for shape in ((3, 4), (4, 5), (3, 5)))
    y, cache = linear_activation_forward(x, w, kind="square")
    dx, _ = linear_activation_backward(dy, cache)
    assert np.allclose(y, (x @ w) ** 2, rtol=1e-5)
    assert np.allclose(dx, 2 * (dy * (x @ w)) @ w.T, rtol=1e-4, atol=1e-4)
    assert np.array_equal(activation_forward(x, "square")[0], x * x)
