import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigpt.backend import to_host
from minigpt.data import __main__ as walkthrough
from minigpt.data import batches as data
from minigpt.data.characters import CharTokenizer
from minigpt.data.datasets import TextData
from minigpt.errors import UserError


@given(st.integers(0, 100), st.integers(1, 20), st.integers(1, 5))
@example(0, 8, 2)
def test_eval_batches_ask_for_every_token_but_the_first_once(n, block_size, batch_size):
    ids = np.arange(n, dtype=np.int32) * 7
    batches = list(data.eval_batches(ids, block_size, batch_size))
    x, y = ([row for batch in batches for row in batch[i]] for i in (0, 1))
    assert np.concatenate([ids[:0], *x]).tolist() == ids[:-1].tolist()
    assert np.concatenate([ids[:0], *y]).tolist() == ids[1:].tolist()
    assert all(len(row) == block_size for row in x[:-1])
    for a, b in batches:
        assert a.shape == b.shape and a.dtype == b.dtype == np.int32
        assert len(a) <= batch_size and a.size and a.base is not None
    # Only the last whole batch and the left-over window may be smaller.
    assert all(len(a) == batch_size for a, _ in batches[:-2])


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
@pytest.mark.parametrize("n, block_size", [(0, 4), (1, 1), (3, 100), (70, 9)])
def test_windows_are_those_of_the_definition(xp, rng, dtype, n, block_size):
    ids = rng.integers(0, 200, 400).astype(dtype)
    starts = rng.integers(0, 400 - block_size, n)
    starts[-1:] = 399 - block_size  # to the last token
    expected = data.windows.reference(ids, starts, block_size)
    found = data.windows(xp.asarray(ids), xp.asarray(starts), block_size)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype == np.int32
        np.testing.assert_array_equal(to_host(x), y)


batches = st.builds(
    lambda block_size, more, **others: dict(n=block_size + more, block_size=block_size, **others),
    block_size=st.integers(1, 30),
    more=st.integers(1, 100),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**64),
    number=st.integers(0, 10**9),
    sampler=st.sampled_from(sorted(data.SAMPLERS)),
)


@given(batches)
def test_random_batch_is_in_range_and_y_is_x_moved_on(case):
    ids = np.arange(case.pop("n"), dtype=np.int32)
    x, y = data.random_batch(ids, **case)
    assert x.shape == y.shape == (case["batch_size"], case["block_size"])
    assert x.dtype == y.dtype == np.int32
    assert (np.diff(x, axis=1) == 1).all() and (y == x + 1).all()
    assert x.min() >= 0 and y.max() < len(ids)


@given(batches)
def test_random_batch_is_a_function_of_its_arguments(case):
    ids = np.arange(case.pop("n"), dtype=np.int32)
    ids.flags.writeable = False
    state = np.random.get_state()[1].tolist()
    first = data.random_batch(ids, **case)
    data.random_batch(ids, **case | {"number": case["number"] + 1})
    np.testing.assert_array_equal(first, data.random_batch(ids, **case))
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize(
    "sampler, expected",
    [
        ("uniform", [[585, 883, 142, 5], [635, 287, 123, 812], [629, 758, 225, 966]]),
        ("weyl", [[912, 533, 154, 767], [388, 9, 622, 243], [189, 803, 424, 45]]),
    ],
)
def test_random_batch_never_changes_between_versions(sampler, expected):
    ids = np.arange(1000, dtype=np.int32)
    batches = [data.random_batch(ids, 1337, step, 4, 8, sampler)[0] for step in (0, 1, 2000)]
    assert [x[:, 0].tolist() for x in batches] == expected


def test_steps_and_seeds_share_no_draws():
    ids = np.arange(10**6, dtype=np.int32)
    draws = [
        data.random_batch(ids, seed, step, 200, 1)[0].ravel()
        for seed in range(3)
        for step in range(3)
    ]
    assert len(np.unique(draws)) > 1790  # 1800 starts of 10^6, of which about 1.6 coincide


def test_random_batch_reaches_every_start_equally_often():
    ids = np.arange(12, dtype=np.int32)
    x = np.concatenate([data.random_batch(ids, 0, step, 100, 4)[0] for step in range(80)])
    counts = np.bincount(x[:, 0], minlength=8)
    assert len(counts) == 8
    assert abs(counts - 1000).max() < 120  # four standard deviations


@given(st.integers(0, 2**64), st.integers(2, 300), st.integers(0, 10**6))
def test_weyl_starts_have_gaps_of_three_lengths(seed, count, step):
    n = 2**32
    starts = np.sort(data.weyl(n, seed, step, step * count, count))
    gaps = np.diff(starts, append=starts[0] + n)  # once round
    lengths = 1 + np.count_nonzero(np.diff(np.sort(gaps)) > 1)  # but for rounding
    assert lengths <= 3
    assert gaps.max() < 2.619 * gaps.min() + 2


def test_weyl_starts_leave_no_part_of_the_text_out():
    ids = np.arange(10_000, dtype=np.int32)
    seen = {}
    for sampler in data.SAMPLERS:
        batches = [data.random_batch(ids, 5, step, 10, 20, sampler)[0] for step in range(50)]
        seen[sampler] = len(np.unique(batches)) / len(ids)
    assert seen["weyl"] > 0.85
    assert 0.6 < seen["uniform"] < 0.66  # 1 - 1/e


def test_weyl_starts_are_drawn_by_the_seed_and_continue_from_step_to_step():
    n = 10**6
    one, other = (data.weyl(n, seed, 0, 0, 12) for seed in (1, 2))
    assert (one != other).all()
    parts = [data.weyl(n, 1, step, 4 * step, 4) for step in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), one)


def split(ids):
    """Cut ids into nine tenths and the rest."""
    n = int(0.9 * len(ids))
    return ids[:n], ids[n:]


def test_facts_of_tiny_shakespeare(corpus):
    ids = CharTokenizer.from_text(corpus).encode(corpus)
    train, val = split(ids)  # of characters; test_token_files.py has that of a text
    assert (ids.shape, len(train), len(val)) == ((1115394,), 1003854, 111540)
    assert ids[:5].tolist() == [18, 47, 56, 57, 58]
    assert "".join(walkthrough.pieces(corpus)) == corpus


@given(st.integers(1, 50), st.integers(0, 600))
def test_length_is_refused_unless_both_parts_hold_a_block(block_size, n):
    train, val = split(range(n))
    if min(len(train), len(val)) > block_size:
        data.check_length(train, val, block_size)
    else:
        with pytest.raises(UserError, match=rf"--block-size {block_size} needs {block_size + 1};"):
            data.check_length(train, val, block_size)


@given(st.integers(1, 500))
def test_length_that_the_error_asks_for_is_enough(block_size):
    data.check_length(*split(range(10 * block_size + 1)), block_size)


def test_length_error_says_what_came_and_what_to_do():
    with pytest.raises(UserError) as error:
        data.check_length(*split(range(100)), 64)
    assert str(error.value) == (
        "the text is too short: its validation part has 10 of 100 tokens, but --block-size 64 "
        "needs 65; give --data with 641 tokens or more or --block-size 9 or less"
    )
    with pytest.raises(UserError, match="train part has 0 of 1 tokens, .* 81 tokens or more$"):
        data.check_length(*split(range(1)), 8)
    with pytest.raises(UserError, match="--block-size is 0, but must be at least 1"):
        data.check_length(*split(range(100)), 0)


def test_a_text_with_more_tokens_than_can_be_told_apart_is_refused():
    data.check_length(range(2**32), range(2**29), 8)
    with pytest.raises(UserError, match="train part has 4,294,967,297 tokens, but at most"):
        data.check_length(range(2**32 + 1), range(2**29), 8)


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_tokens_of_one_part_only(ids, others):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "PART", 3)
        parts = [np.array(part, np.uint8) for part in (ids, others)]
        assert data.only_in(*parts, 10).tolist() == sorted({*ids} - {*others})


@pytest.mark.report("33")
def test_characters_of_the_validation_part_alone_are_named(tmp_path):
    (tmp_path / "tail.txt").write_text(
        "the cat sat on the mat. " * 90 + "ЖЗИЙКЛМНОП " * 20, "utf-8"
    )
    assert TextData(str(tmp_path / "tail.txt")).notes == [
        "10 of 21 different characters occur in the validation part only (the last tenth), so "
        "training never sees them: Ж З И Й К Л М Н О П"
    ]
    (tmp_path / "tail.txt").write_text("a" * 900 + "".join(map(chr, range(0x4E00, 0x4E64))))
    (note,) = TextData(str(tmp_path / "tail.txt")).notes
    assert note.startswith("100 of 101 different") and note.endswith("丐 丑 丒 专 and 80 more")


@pytest.mark.cupy
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_batches_of_small_ids_are_int32_on_every_backend(xp, dtype):
    ids = (97 * np.arange(1000)).astype(dtype)  # the last of them need four bytes
    small = xp.asarray(ids)
    large = ids.astype(np.int32)
    drawn = [[data.random_batch(x, 1, 2, B, 9) for x in (small, large)] for B in (1, 40)]
    windows = zip(data.eval_batches(small, 7, 5), data.eval_batches(large, 7, 5), strict=True)
    for one, other in (*drawn, *windows):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == np.int32 and type(a) is type(small)
            np.testing.assert_array_equal(to_host(a), b)


@given(st.integers(2, 100), st.integers(1, 20), st.integers(1, 5), st.data())
def test_a_part_of_a_text_is_evaluated_in_the_windows_of_the_whole(n, block_size, size, draws):
    ids = np.arange(n, dtype=np.int32) * 7
    items, targets = data.count_windows(ids, block_size)
    whole = [tuple(row) for _, y in data.eval_batches(ids, block_size, 1) for row in y]
    assert (len(whole), sum(map(len, whole))) == (items, targets)
    which = np.flatnonzero([draws.draw(st.booleans()) for _ in range(items)])
    part = [tuple(row) for _, y in data.eval_batches(ids, block_size, size, which) for row in y]
    assert part == [whole[i] for i in which]


def test_a_batch_takes_up_the_row_of_the_run_that_it_is_told():
    ids, size = np.arange(1000, dtype=np.int32), 4
    usual = data.random_batch(ids, 1, 3, size, 8, "weyl")
    np.testing.assert_array_equal(usual, data.random_batch(ids, 1, 9, size, 8, "weyl", 3 * size))
    np.testing.assert_array_equal(
        data.random_batch(ids, 1, 3, size, 8, "uniform", 99),
        data.random_batch(ids, 1, 3, size, 8, "uniform"),
    )
