"""minigpt.check finds what is wrong with a reader's own passes, and says it clearly."""

import numpy as np
import pytest

import minigpt
from minigpt.ops.attention import attention_backward, attention_forward
from minigpt.ops.dropout import Rng, dropout_backward, dropout_forward
from minigpt.ops.embedding import embedding_backward, embedding_forward
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.ops.softmax import softmax_backward, softmax_forward


def square_forward(x):
    return x * x, (x,)


def square_backward(dy, cache):
    (x,) = cache
    return 2 * x * dy


def times_forward(x, w, b):
    return x @ w + b, (x, w)


def times_backward(dy, cache):
    x, w = cache
    return dy @ w.T, {"w": x.T @ dy, "b": dy.sum(axis=0)}


@pytest.fixture
def arrays(rng):
    return {"x": rng.standard_normal((3, 4)), "w": rng.standard_normal((4, 5)), "b": np.zeros(5)}


def fault_of(report, name):
    (row,) = (row for row in report.splitlines() if row.startswith(f"{name} "))
    return row.partition("WRONG: ")[2]


def test_a_right_pair_passes_with_a_table(arrays):
    x, w, b = arrays.values()
    report = minigpt.check(times_forward, times_backward, x, w=w, b=b)
    assert [row.name for row in report] == ["x", "w", "b"]
    for row in report:
        assert row.differences <= 1e-9 and row.complex_step <= 1e-12 and row.fault == ""
        assert row.shape == arrays[row.name].shape
    head, *lines = repr(report).splitlines()
    assert head.split() == ["gradient", "of", "shape", "differences", "complex", "step"]
    assert len(lines) == 3 and all(line.endswith("  right") for line in lines)
    minigpt.check(square_forward, square_backward, x.astype(np.float32))


@pytest.mark.parametrize("factor", [2.001, -2.0, 0.0, 2 * (1 + 1e-8)])
def test_a_wrong_factor_is_found_and_named(arrays, factor):
    def backward(dy, cache):
        return factor * cache[0] * dy

    with pytest.raises(AssertionError, match="a gradient is wrong") as caught:
        minigpt.check(square_forward, backward, arrays["x"])
    assert f"{factor / 2:.6g} times what it should be" in fault_of(str(caught.value), "x")


def test_a_wrong_gradient_among_right_ones_is_named_with_its_place(arrays):
    def backward(dy, cache):
        dx, grads = times_backward(dy, cache)
        grads["w"][2, 3] += 0.5
        return dx, grads

    x, w, b = arrays.values()
    with pytest.raises(AssertionError) as caught:
        minigpt.check(times_forward, backward, x, w=w, b=b)
    assert fault_of(str(caught.value), "w").startswith("at [2, 3] it is ")
    assert "but should be" in fault_of(str(caught.value), "w")
    for name in ("x", "b"):
        assert fault_of(str(caught.value), name) == ""


def test_a_fault_is_found_where_arrays_are_large(rng):
    x = rng.standard_normal((60, 50))

    def backward(dy, cache):
        dx = square_backward(dy, cache)
        dx[3, 4] += 0.1
        return dx

    minigpt.check(square_forward, square_backward, x)
    with pytest.raises(AssertionError, match="WRONG"):
        minigpt.check(square_forward, backward, x)


GRADIENTS = {
    "another shape": (
        lambda dx, grads: (dx.T, grads),
        r"x: its gradient is \(4, 3\), but x is \(3, 4\)",
    ),
    "a sum too many": (
        lambda dx, grads: (dx, {**grads, "b": grads["b"].sum()}),
        r"b: its gradient is \(\), but b is \(5,\)",
    ),
    "another dtype": (
        lambda dx, grads: (dx.astype(np.float32), grads),
        "x: its gradient is float32, but x is float64",
    ),
    "one array too many": (
        lambda dx, grads: (dx, dx, grads),
        "backward: 2 gradients of arrays, but there are 1: x",
    ),
    "no dict": (
        lambda dx, grads: dx,
        r"gradients of parameters \[\], but they are \['b', 'w'\]",
    ),
    "a name forgotten": (
        lambda dx, grads: (dx, {"w": grads["w"]}),
        r"gradients of parameters \['w'\], but they are \['b', 'w'\]",
    ),
    "not a number": (
        lambda dx, grads: (dx * np.nan, grads),
        "x: its gradient holds numbers that are not finite",
    ),
}


@pytest.mark.parametrize("change, sentence", GRADIENTS.values(), ids=GRADIENTS)
def test_what_is_no_set_of_gradients_is_said_clearly(arrays, change, sentence):
    x, w, b = arrays.values()
    with pytest.raises(AssertionError, match=sentence):
        minigpt.check(
            times_forward, lambda dy, cache: change(*times_backward(dy, cache)), x, w=w, b=b
        )


def write_forward(x):
    x *= 1
    return x, ()


def write_backward(dy, cache):
    dy *= 2
    return dy * cache[0]


def noise_backward(dy, cache):
    return square_backward(dy, cache) + 1e-9 * np.random.default_rng().standard_normal(dy.shape)


PASSES = {
    "forward writes": (write_forward, square_backward, "writes to an array that it was given"),
    "backward writes": (square_forward, write_backward, "writes to an array that it was given"),
    "noise": (square_forward, noise_backward, "x: its gradient is not repeatable"),
    "no cache": (lambda x: x * x, square_backward, "forward must return two things"),
    "two results": (lambda x: ((x, x), x), square_backward, "y must be one array"),
    "numbers": (lambda x: (1.0, x), square_backward, "y must be one array, not 1.0"),
}


@pytest.mark.parametrize("forward, backward, sentence", PASSES.values(), ids=PASSES)
def test_what_is_no_pair_of_passes_is_said_clearly(arrays, forward, backward, sentence):
    with pytest.raises(AssertionError, match=sentence):
        minigpt.check(forward, backward, arrays["x"])


def test_there_must_be_an_array_of_floats(arrays):
    with pytest.raises(AssertionError, match="no array of floats"):
        minigpt.check(square_forward, square_backward, np.arange(3))


def test_an_error_in_a_pass_is_shown_as_it_is(arrays):
    with pytest.raises(ZeroDivisionError):
        minigpt.check(lambda x: (x, 1 / 0), square_backward, arrays["x"])


def test_an_op_that_takes_no_complex_numbers_is_checked_by_differences(arrays):
    def forward(x):
        return np.tanh(x.real.astype(float)), (x,)

    def backward(dy, cache):
        return dy * (1 - np.tanh(cache[0]) ** 2)

    (row,) = minigpt.check(forward, backward, arrays["x"])
    assert np.isnan(row.complex_step) and row.differences < 1e-9
    with pytest.raises(AssertionError, match="WRONG"):
        minigpt.check(forward, lambda dy, cache: 1.001 * backward(dy, cache), arrays["x"])


def test_ops_of_the_package_pass(rng):
    x = rng.standard_normal((2, 3, 4))
    w, b = rng.standard_normal((2, 4))
    minigpt.check(layernorm_forward, layernorm_backward, x, w=w, b=b)
    minigpt.check(layernorm_forward, layernorm_backward, x, w=w, b=None)
    minigpt.check(softmax_forward, softmax_backward, x)
    minigpt.check(dropout_forward, dropout_backward, x, p=0.5, rng=Rng(0))
    qkv = rng.standard_normal((3, 1, 2, 4, 3))
    assert [row.name for row in minigpt.check(attention_forward, attention_backward, *qkv)] == [
        *"qkv"
    ]
    minigpt.check(attention_forward, attention_backward, *qkv, causal=True)
    ids = np.array([[1, 2, 1]])
    wte, wpe = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    minigpt.check(embedding_forward, embedding_backward, ids, wte=wte, wpe=wpe)
    with pytest.raises(AssertionError, match="-17 times what it should be"):
        minigpt.check(softmax_forward, lambda dy, c: -17 * softmax_backward(dy, c), x)


def test_the_example_of_its_docstring_holds(arrays):
    example = minigpt.check.__doc__.partition(">>> def")[2].partition("Parameters")[0]
    assert "square_forward" in example
    shown = [line.strip() for line in example.splitlines() if line.strip().endswith("right")]
    (mine,) = repr(minigpt.check(square_forward, square_backward, arrays["x"])).splitlines()[1:]
    assert [len(shown), shown[0].split()[:3]] == [1, mine.split()[:3]]
