import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.pairs import (
    BUCKET,
    Pairs,
    check_lengths,
    digest,
    eval_batches,
    needed_length,
    notes_on,
    random_pairs,
    split_by_position,
    split_by_source,
)
from minigpt.data.tokenizers import PairTokenizer
from minigpt.errors import UserError

PAIRS = [("ab", "x"), ("b", "yx"), ("abba", "xxyyx"), ("a" * 9, "y"), ("b" * 20, "x" * 30)]


def many(rng, n=400):
    """Pairs of many lengths, no two alike: the target spells the number of the pair."""
    lengths = rng.integers(1, 40, n)
    return [("ab" * (m // 2) + "c" * (m % 2), f"{i:x}") for i, m in enumerate(lengths)]


def texts(tokenizer, source, targets):
    """Decode a batch."""
    end = tokenizer.vocab_size - 1
    for s, t in zip(source, targets, strict=True):
        s, t = s[s >= 0], t[t >= 0]
        assert t[-1] == end and end not in t[:-1]
        yield tokenizer.source.decode(s), tokenizer.target.decode(t[:-1])


def test_rows_are_padded_after_their_end():
    tokenizer = PairTokenizer.from_pairs(PAIRS)
    assert (tokenizer.source.chars, tokenizer.target.chars) == ("ab", "xy")
    source, targets = Pairs(PAIRS, tokenizer).rows(np.array([1, 2, 0]))
    assert source.dtype == targets.dtype == np.int32
    assert source.tolist() == [[1, -1, -1, -1], [0, 1, 1, 0], [0, 1, -1, -1]]
    assert targets.tolist() == [
        [1, 0, 2, -1, -1, -1],
        [0, 0, 1, 1, 0, 2],
        [0, 2, -1, -1, -1, -1],
    ]


words = st.text("abc\U0001f600", min_size=1, max_size=20)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=30), st.booleans())
def test_all_pairs_come_back_once(pairs, shared):
    tokenizer = PairTokenizer.from_pairs(pairs, shared)
    assert not shared or tokenizer.source.chars == tokenizer.target.chars
    found = []
    for source, targets in eval_batches(Pairs(pairs, tokenizer), 7):
        assert len(source) <= 7
        found += texts(tokenizer, source, targets)
    assert sorted(found) == sorted(pairs)


def test_a_batch_is_a_function_of_seed_and_step(rng):
    pairs = many(rng)
    data = Pairs(pairs, PairTokenizer.from_pairs(pairs))
    batches = [
        random_pairs(data, seed, step, 16) for seed, step in ((1, 5), (1, 6), (1, 5), (2, 5))
    ]
    same = [[np.array_equal(a[0], b[0]) for b in batches] for a in batches]
    np.testing.assert_array_equal(same, np.eye(4) + [[0, 0, 1, 0], [0] * 4, [1, 0, 0, 0], [0] * 4])
    again = random_pairs(Pairs(pairs, PairTokenizer.from_pairs(pairs)), 1, 5, 16)
    for a, b in zip(again, batches[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_lengths_in_a_batch_are_alike_and_pairs_equally_frequent(rng):
    pairs = [*many(rng, 59), ("c" * 39, "f" * 9)]  # the last one has a bucket of its own
    tokenizer = PairTokenizer.from_pairs(pairs)
    data, counts = Pairs(pairs, tokenizer), dict.fromkeys(pairs, 0)
    for step in range(1500):
        source, targets = random_pairs(data, 0, step, 8)
        assert len(source) == 8
        lengths = (source >= 0).sum(axis=1)
        assert len(set(-(-lengths // BUCKET))) == 1 and source.shape[1] == lengths.max()
        for pair in texts(tokenizer, source, targets):
            counts[pair] += 1
    expected = 1500 * 8 / 60
    assert abs(np.array([*counts.values()]) / expected - 1).max() < 0.5


def test_batches_for_evaluation_go_from_short_to_long(rng):
    pairs = many(rng)
    data = Pairs(pairs, PairTokenizer.from_pairs(pairs))
    widths = [source.shape[1] for source, _ in eval_batches(data, 50)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_the_tokenizer_comes_back_from_json():
    tokenizer = PairTokenizer.from_pairs(PAIRS)
    again = PairTokenizer.from_json(tokenizer.to_json())
    assert (again.source.chars, again.target.chars, again.vocab_size) == ("ab", "xy", 3)


@pytest.mark.parametrize(
    "table",
    ["", "{}", "[]", "7", '{"kind": "pair"}', PairTokenizer.from_pairs(PAIRS).source.to_json()]
    + [json.dumps({"kind": "pair", "source": {"kind": "char", "chars": ["a"]}, "target": 3})],
)
def test_another_table_is_refused(table):
    with pytest.raises(UserError, match="not the table") as error:
        PairTokenizer.from_json(table)
    assert "\n" not in str(error.value)


def test_pairs_that_are_too_long():
    tokenizer = PairTokenizer.from_pairs(PAIRS)
    parts = [Pairs(part, tokenizer) for part in (PAIRS[:2], PAIRS[2:])]
    check_lengths(31, *parts)  # 30 characters and END
    with pytest.raises(UserError, match="1 of 5 pairs are longer than --block-size 30.*needs 31"):
        check_lengths(30, *parts)
    with pytest.raises(UserError, match="2 of 5 .* needs 31 .characters of .*set --block-size 31"):
        check_lengths(8, *parts, unit="characters")


@pytest.mark.report("10")
def test_a_tenth_of_the_sources_is_for_validation_with_all_their_pairs(rng):
    pairs = [(f"{i % 40:03d}", f"{i}") for i in rng.permutation(400).tolist()]
    train, val = split_by_source(pairs)
    sides = [{source for source, _ in part} for part in (train, val)]
    assert not sides[0] & sides[1] and [*map(len, sides)] == [36, 4]
    assert sorted(train + val) == sorted(pairs) and len(val) == 40
    for part, side in zip((train, val), sides, strict=True):
        assert part == [pair for pair in pairs if pair[0] in side]  # in the order of the file


@pytest.mark.report("10")
@given(st.randoms(), st.integers(10, 60))
def test_the_split_follows_the_texts_and_not_their_order(random, n):
    pairs = [(f"source {i}", f"{i % 7}") for i in range(n)] * 2
    shuffled = random.sample(pairs, len(pairs))
    parts = [split_by_source(x) for x in (pairs, shuffled, [*pairs, *pairs[:9]])]
    assert len({frozenset(val) for _, val in parts}) == 1
    assert len(set(parts[0][1])) == n // 10


@pytest.mark.report("10")
@pytest.mark.parametrize("period", [10, 20, 50])
def test_the_split_does_not_follow_a_period_of_the_file(period):
    pairs = [(f"{'abcdefghij'[i % 10]}{i:04d}", str(i % period)) for i in range(2000)]
    _, val = split_by_source(pairs)
    assert len({source[0] for source, _ in val}) == 10
    assert len({target for _, target in val}) > 0.8 * period


def test_fewer_than_ten_sources_are_too_few_for_a_split():
    pairs = [(str(i), "x") for i in range(9)]
    with pytest.raises(UserError, match="--data holds 9 different sources; .*: give 10"):
        split_by_source(pairs * 5)
    assert len(split_by_source([*pairs, ("9", "x")])[1]) == 1


def test_the_old_split_takes_every_tenth_pair():
    pairs = [(str(i), "x") for i in range(1, 26)]
    train, val = split_by_position(pairs)
    assert [int(source) for source, _ in val] == [10, 20] and len(train) == 23
    assert not set(train) & set(val)
    with pytest.raises(UserError, match="--data holds 9 pairs; .* give 10"):
        split_by_position(pairs[:9])


@pytest.mark.report("10")
@pytest.mark.parametrize(
    "train, val, notes",
    [
        ([("a", "x"), ("b", "y")], [("ab", "x")], []),
        ([("a", "x")] * 3, [("aa", "x")], ["2 of 4 pairs repeat another pair"]),
        ([("a", "x"), ("a", "y")], [("aa", "x")], ["1 of 2 sources have several targets"]),
        (
            [("a\n", "x"), ("b", "x\r\ny")],
            [("c", "d"), ("\rc", "\n")],
            [
                "3 of 4 pairs have a line break; `minigpt sample` reads and writes lines: a source "
                r"is one line, and a line break in an answer is printed as \n"
            ],
        ),
        (
            [("a", "x"), ("b", "x")],
            [("a", "x"), ("a", "x")],
            [
                "2 of 4 pairs repeat another pair",
                "the sources of 2 validation pairs are trained on as well",
            ],
        ),
    ],
)
def test_what_is_odd_about_a_split_is_noted(train, val, notes):
    assert notes_on(train, val) == notes


def length(*lengths):
    """What a model needs for pairs with sources of these lengths."""
    pairs = [("a" * n, "x") for n in lengths]
    return needed_length(Pairs(pairs, PairTokenizer.from_pairs(pairs)))


def test_the_length_that_is_needed_leaves_outliers_to_the_user():
    assert length(5, 70) == 70 and length(*[5] * 200, 256) == 256
    assert length(*[5] * 200, 257) == 0  # far longer than 99 % of the others
    assert length(*[100] * 200, 400) == 400 and length(*[100] * 200, 401) == 0
    assert length(*[1024] * 9) == 1024 and length(*[1025] * 9) == 0


def test_the_digest_tells_texts_and_sides_apart():
    variants = [[("a", "b")], [("a", "c")], [("a", "b"), ("c", "d")], [("b", "a")]]
    assert len({digest(pairs) for pairs in variants}) == 4
