import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.backend import to_host
from minigpt.ops.dropout import Rng, dropout_backward, dropout_forward, keep_mask, random_words
from tests.tools.gradcheck import check_backends, check_backward, check_float32, check_strided

OP = dropout_forward, dropout_backward
RNG = Rng.of(1337, 1)
U64 = 2**64


class SplitMix64:
    """SplitMix64 as in Java 8 and in Vigna's splitmix64.c, in Python's own integers.

    This is the definition of the bits.
    """

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) % U64
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % U64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % U64
        return z ^ (z >> 31)


def keeps(shape, p, rng):
    """The mask, element by element: 16 bits of a word each, from the lowest up."""
    rows = int(np.prod(shape[1:]))
    stream = SplitMix64(rng.key)
    words = [stream.next() for _ in range((rng.row + shape[0]) * rows // 4 + 1)]
    at = range(rng.row * rows, (rng.row + shape[0]) * rows)
    bits = [(words[i // 4] >> (16 * (i % 4))) & 0xFFFF for i in at]
    return np.array([b >= round(p * 65536) for b in bits], dtype=bool).reshape(shape)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 1), (0, 4), (3, 0), (3, 317, 97)])
@pytest.mark.parametrize("p, rng_", [(0.3, RNG), (0.3, Rng(5, row=3)), (0.3, None), (0.0, RNG)])
def test_backward_is_the_gradient(rng, shape, p, rng_):
    check_backward(*OP, rng.standard_normal(shape), rng=rng, options={"p": p, "rng": rng_})


def test_float32_stays_float32(rng):
    check_float32(*OP, rng.standard_normal((2, 3, 4)), rng=rng, options={"p": 0.3, "rng": RNG})


@pytest.mark.cupy
@pytest.mark.parametrize("shape", [(2, 3, 5), (0, 4)])
def test_backends_agree_on_every_bit(rng, xp, shape):
    x = rng.standard_normal(shape)
    check_backends(*OP, x, rng=rng, xp=xp, options={"p": 0.3, "rng": Rng(7, row=3)}, rtol=1e-15)
    mask = keep_mask(shape, 0.3, RNG, xp)
    np.testing.assert_array_equal(to_host(mask), keep_mask(shape, 0.3, RNG, np))


@pytest.mark.cupy
def test_the_generator_is_splitmix64(xp):
    # The five words that follow seed 1234567 in the implementation of the authors' generator in
    # the Java library and in many others.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert to_host(random_words(1234567, 0, 5, xp)).tolist() == published


@given(st.integers(0, U64 - 1), st.integers(0, 100), st.integers(0, 20))
def test_words_are_those_of_the_definition(key, start, n):
    stream = SplitMix64(key)
    expected = [stream.next() for _ in range(start + n)][start:]
    words = random_words(key, start, n, np)
    assert words.dtype == np.uint64 and words.tolist() == expected


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 9), st.floats(0.01, 0.9))
def test_the_mask_is_that_of_the_definition(shape, row, p):
    rng = Rng.of(2, 3)._replace(row=row)
    np.testing.assert_array_equal(keep_mask(tuple(shape), p, rng, np), keeps(shape, p, rng))


def test_keys_are_words_of_the_definition():
    def word(key, i):
        return SplitMix64((key + i * 0x9E3779B97F4A7C15) % U64).next()

    assert Rng.of(3).key == word(0, 3)
    assert Rng.of(3, 0, 8).key == word(word(word(0, 3), 0), 8)
    assert Rng(11, row=5).fold(2) == Rng(word(11, 2), row=5)
    keys = {Rng.of(a, b, c).key for a in range(9) for b in range(9) for c in range(9)}
    assert len(keys) == 9**3


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 7))
def test_shards_get_their_part_of_the_whole_mask(sizes, columns):
    x = np.ones((sum(sizes), columns, 3))
    whole, _ = dropout_forward(x, 0.5, RNG)
    starts = np.cumsum([0, *sizes])
    parts = [
        dropout_forward(x[a:b], 0.5, RNG._replace(row=int(a)))[0]
        for a, b in zip(starts[:-1], starts[1:], strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate_and_mean(p):
    n = 1_000_000
    y, _ = dropout_forward(np.ones((1000, 1000)), p, RNG)
    sigma = (p * (1 - p) / n) ** 0.5
    assert abs((y != 0).mean() - (1 - p)) < 4 * sigma
    assert abs(y.mean() - 1) < 4 * sigma / (1 - p)
    # E y = x exactly, for the rate that was in fact used
    kept, scale = 65536 - round(p * 65536), y.max()
    np.testing.assert_allclose(scale * kept / 65536, 1, rtol=1e-15)


def test_neighbours_rows_and_keys_are_independent():
    n = 512
    masks = [keep_mask((n, n), 0.5, Rng.of(0, i), np) for i in range(3)]
    pairs = [(masks[0], masks[1]), (masks[1], masks[2])]
    pairs += [(masks[0][1:], masks[0][:-1])]
    pairs += [(masks[0][:, k:], masks[0][:, :-k]) for k in (1, 2, 4, 16, 64)]
    for a, b in pairs:
        assert abs((a == b).mean() - 0.5) < 4 * 0.5 / a.size**0.5


def test_backward_uses_the_mask_of_the_forward(rng):
    x = rng.standard_normal((20, 30))
    y, cache = dropout_forward(x, 0.4, RNG)
    dx = dropout_backward(np.ones_like(x), cache)
    np.testing.assert_array_equal(dx == 0, y == 0)
    np.testing.assert_allclose(x * dx, y, rtol=1e-15)


def test_nothing_happens_without_rng_or_rate(rng):
    x = rng.standard_normal((3, 4))
    for p, rng_ in ((0.5, None), (0.0, RNG)):
        y, cache = dropout_forward(x, p, rng_)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(dropout_backward(x, cache), x)


def test_strided_input(rng):
    check_strided(*OP, rng.standard_normal((2, 3, 5)), rng=rng, options={"p": 0.3, "rng": RNG})
