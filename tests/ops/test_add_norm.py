import numpy as np
import pytest

from minigpt.ops.add_norm import add_norm_backward, add_norm_forward
from minigpt.ops.dropout import Rng, dropout_forward
from minigpt.ops.layernorm import layernorm_forward
from minigpt.ops.linear import linear_backward
from tests.tools.gradcheck import (
    assert_same,
    check_backends,
    check_backward,
    check_float32,
    check_strided,
    forms,
    joined,
)

OP = add_norm_forward, add_norm_backward
RNG = Rng.of(3, 1, 4)
OPTIONS = {
    "": {},
    "dropout": {"dropout": 0.3, "rng": RNG},
    "a shard": {"dropout": 0.3, "rng": RNG._replace(row=5)},
    "no rng": {"dropout": 0.3},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
begins = pytest.mark.parametrize("begins", [False, True], ids=["", "begins"])
some_biases = pytest.mark.parametrize("biases", [("b", "h_b"), ("b",), ("h_b",), ()], ids=str)


def inputs(rng, shape, begins=False, biases=("b", "h_b")):
    """Return [x,] h and the parameters: where the stream begins there is no x."""
    xs = [3 + 2 * rng.standard_normal(shape) for _ in range(2 - begins)]
    return xs, {name: 3 + 2 * rng.standard_normal(shape[-1]) for name in ("w", *biases)}


@begins
@options
@some_biases
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 1), (0, 4), (3, 131, 17)], ids=str)
def test_backward_is_the_gradient(rng, shape, biases, options, begins):
    xs, p = inputs(rng, shape, begins, biases)
    check_backward(*joined(*OP, begins), *xs, **p, rng=rng, options=options)


def test_backward_is_the_gradient_of_large_numbers(rng):
    _, p = inputs(rng, (4, 6))
    xs = 30 * rng.uniform(-1, 1, (2, 4, 6))
    check_backward(*joined(*OP), *xs, **p, rng=rng, options=OPTIONS["dropout"])


def test_backward_knows_eps(rng):
    xs, p = inputs(rng, (3, 4))
    check_backward(*joined(*OP), *xs, **p, rng=rng, options={"eps": 10.0})


@begins
@options
def test_float32_stays_float32(rng, options, begins):
    xs, p = inputs(rng, (2, 3, 4), begins)
    check_float32(*joined(*OP, begins), *xs, **p, rng=rng, options=options)


@pytest.mark.cupy
@begins
@options
@some_biases
def test_backends_agree(rng, xp, biases, options, begins):
    xs, p = inputs(rng, (2, 3, 5), begins, biases)
    check_backends(*joined(*OP, begins), *xs, **p, rng=rng, xp=xp, options=options)


@begins
@options
def test_strided_inputs(rng, options, begins):
    xs, p = inputs(rng, (3, 2, 5), begins)
    check_strided(*joined(*OP, begins), *xs, **p, rng=rng, options=options)


@options
def test_is_dropout_then_sum_then_layernorm(rng, options):
    (x, h), p = inputs(rng, (4, 3, 5))
    share = options.get("dropout", 0.0)
    dropped, _ = dropout_forward(h + p["h_b"], share, options.get("rng"))
    norm = {name: p[name] for name in ("w", "b")}
    for forward, _ in forms(*OP):
        (stream, y), _ = forward(x, h, **p, **options)
        np.testing.assert_allclose(stream, x + dropped, rtol=1e-15)
        np.testing.assert_allclose(y, layernorm_forward(x + dropped, **norm)[0], rtol=1e-12)
        (stream, _), _ = forward(None, h, **p, **options)
        np.testing.assert_array_equal(stream, dropped)


@begins
@options
def test_where_the_stream_ends_nothing_comes_back_along_it(rng, options, begins):
    xs, p = inputs(rng, (2, 3, 4), begins)
    dy = rng.standard_normal((2, 3, 4))
    for forward, backward in forms(*OP):
        _, cache = forward(*[None] * begins, *xs, **p, **options)
        dx, dh, grads = backward(None, dy, cache)
        assert (dx is None) == begins
        expected = backward(np.zeros_like(dy), dy, cache)
        assert_same((dh, grads), expected[1:], 1e-15)


@pytest.mark.parametrize("lost", [None, "the stream", "the mask", "what is added"])
def test_a_fault_in_its_gradient_is_found(rng, lost):
    def backward(dx, dy, cache):
        if lost == "the stream":
            dx = None
        if lost == "the mask":
            cache = cache._replace(rng=None)
        dx, dh, grads = add_norm_backward(dx, dy, cache)
        return dx, 0 * dh if lost == "what is added" else dh, grads

    xs, p = inputs(rng, (2, 3, 4))

    def check():
        pair = joined(add_norm_forward, backward)
        check_backward(*pair, *xs, **p, rng=rng, options=OPTIONS["dropout"])

    if lost is None:
        check()
    else:
        with pytest.raises(AssertionError, match="relative error"):
            check()


def test_a_bias_is_added_here_as_by_the_layer_before(rng):
    """To the last bit, dropout included, whichever of the two adds it."""
    shape = 3, 131, 700  # several blocks of rows
    (x, h), p = inputs(rng, shape)
    x, h, dy = (a.astype("f") for a in (x, h, rng.standard_normal(shape)))
    w, b, h_b = (p[name].astype("f") for name in ("w", "b", "h_b"))
    for options in ({}, OPTIONS["a shard"]):
        found, cache = add_norm_forward(x, h, w, b, h_b, **options)
        expected, of_sum = add_norm_forward(x, h + h_b, w, b, **options)
        assert_same(found, expected, 0)
        dx, dh, grads = add_norm_backward(dy, dy, cache)
        _, of_linear = linear_backward(dh, (x, np.zeros((700, 700), "f"), b))
        assert_same(grads.pop("h_b"), of_linear["b"], 0)
        assert_same((dx, dh, grads), add_norm_backward(dy, dy, of_sum), 0)


@pytest.mark.parametrize("name", ["w", "b", "h_b"])
def test_refuses_parameters_that_would_broadcast(rng, name):
    xs, p = inputs(rng, (2, 3, 4))
    p[name] = p[name][:1]
    for forward, _ in forms(*OP):
        with pytest.raises(ValueError, match=r"\(1,\).*needs \(4,\)"):
            forward(*xs, **p)
