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
    random_pairs,
    read_pairs,
    split_pairs,
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


def write(path, raw):
    path.write_bytes(raw)
    return path


def test_a_file_of_pairs(tmp_path):
    raw = "\ufeffun chat\ta cat\r\nà côté\tbeside\nx y z\t1 2".encode()
    expected = [("un chat", "a cat"), ("à côté", "beside"), ("x y z", "1 2")]
    assert read_pairs(write(tmp_path / "p.tsv", raw)) == expected
    assert read_pairs(write(tmp_path / "p.tsv", raw + b"\n")) == expected
    separators = "a\u2028b\tc\x0bd\n".encode()  # no ends of lines
    assert read_pairs(write(tmp_path / "p.tsv", separators)) == [("a\u2028b", "c\x0bd")]


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"a\tb\nc d\n", "p.tsv, line 2 has 0 TABs, but needs exactly one: source TAB target"),
        (b"a\tb\nc\td\te\n", "p.tsv, line 2 has 2 TABs"),
        (b"a\tb\n\nc\td\n", "p.tsv, line 2 has 0 TABs"),
        (b"a\tb\n\td\n", "p.tsv, line 2 has an empty source"),
        (b"a\t\r\n", "p.tsv, line 1 has an empty target"),
        (b"a\tb\xe9\n", "p.tsv is not UTF-8: byte 0xe9 at offset 3"),
        (b"", "p.tsv is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, raw, message):
    with pytest.raises(UserError, match=message) as error:
        read_pairs(write(tmp_path / "p.tsv", raw))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="none.tsv cannot be read: No such file"):
        read_pairs(tmp_path / "none.tsv")


def test_pairs_that_are_too_long():
    tokenizer = PairTokenizer.from_pairs(PAIRS)
    parts = [Pairs(part, tokenizer) for part in (PAIRS[:2], PAIRS[2:])]
    check_lengths(31, *parts)  # 30 characters and END
    with pytest.raises(UserError, match="1 of 5 pairs are longer than --block-size 30.*needs 31"):
        check_lengths(30, *parts)
    with pytest.raises(UserError, match="2 of 5 .* needs 31 .characters of .*set --block-size 31"):
        check_lengths(8, *parts, unit="characters")


def test_every_tenth_pair_is_for_validation():
    pairs = [(str(i), "x") for i in range(1, 26)]
    train, val = split_pairs(pairs)
    assert [int(source) for source, _ in val] == [10, 20] and len(train) == 23
    assert not set(train) & set(val)
    with pytest.raises(UserError, match="--data holds 9 pairs; .* give 10"):
        split_pairs(pairs[:9])


def test_the_digest_tells_texts_and_sides_apart():
    variants = [[("a", "b")], [("a", "c")], [("a", "b"), ("c", "d")], [("b", "a")]]
    assert len({digest(pairs) for pairs in variants}) == 4
