import itertools
from datetime import date, timedelta

import numpy as np
import pytest

from minigpt.data.dates import (
    DAYS,
    FIRST,
    ORDINALS,
    PATTERNS,
    VALIDATION,
    date_pairs,
    ordinal,
    write_date,
)


@pytest.fixture(scope="module")
def pairs():
    return date_pairs(seed=1, forms=1)


def forms(day):
    """Many forms of a date."""
    return {write_date(day, bits) for bits in np.random.Philox(key=0).random_raw(40_000).tolist()}


def test_every_date_is_there_once(pairs):
    train, val = pairs
    targets = [target for _, target in train + val]
    assert (len(val), len(train)) == (VALIDATION, DAYS - VALIDATION)
    assert sorted(targets) == [(FIRST + timedelta(i)).isoformat() for i in range(DAYS)]
    assert (min(targets), max(targets)) == ("1900-01-01", "2099-12-31")


def test_train_and_validation_share_no_date():
    train, val = date_pairs(seed=1, validation=300, forms=2)
    assert len(val) == 300 and len(train) == 2 * (DAYS - 300)
    assert not {target for _, target in train} & {target for _, target in val}
    years = {target[:4] for _, target in val}
    assert len(years) > 100  # spread over the two centuries


def test_the_first_pairs_can_be_made_alone(pairs):
    train, val = pairs
    assert date_pairs(seed=1, forms=1, most=50) == (train[:50], val)


@pytest.mark.slow
def test_the_seed_decides(pairs):
    assert date_pairs(seed=1, forms=1) == pairs != date_pairs(seed=2, forms=1)


@pytest.mark.slow
def test_no_form_means_two_dates(pairs):
    meanings = {}
    for source, target in itertools.chain(*pairs, *date_pairs(seed=3, forms=2)):
        assert meanings.setdefault(source, target) == target


@pytest.mark.parametrize(
    "day, expected",
    [
        (
            date(2021, 3, 3),
            "the third of March, 2021|3/3/21|Mar 3 2021|Wed, Mar 3, 2021|2021-03-03|20210303|"
            "03.03.2021|3. 3. 2021|on Wednesday, March the 3rd, '21|3-Mar-2021|2021 mar 03|"
            "WED 2021/03/03|2021/3/3|3-3-21|third march 2021",
        ),
        (date(1999, 12, 31), "12/31/99|31.12.99|31-12-1999|1999-12-31|the 31st of Dec, '99"),
        (date(1905, 1, 22), "1/22/1905|22.01.1905|January twenty-second, 1905|Sun 1905/1/22"),
    ],
)
def test_forms_of_a_date(day, expected):
    assert set(expected.split("|")) <= forms(day)


@pytest.mark.parametrize("day", [date(1905, 1, 22), date(1968, 12, 31), date(2069, 1, 1)])
def test_years_beyond_the_reach_of_two_digits_are_written_in_full(day):
    assert all(str(day.year) in form for form in forms(day))


def test_all_that_can_be_written_is_written(pairs):
    text = "\n".join(source for source, _ in itertools.chain(*pairs))
    for word in ("on Monday, ", "Tue ", "Tue, ", "the 2nd of", "thirty-first", "SEPTEMBER", "sep "):
        assert word in text
    assert len(PATTERNS) == len(set(PATTERNS))


def test_ordinals():
    expected = "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd 31st"
    days = (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 31)
    assert " ".join(ordinal(day) for day in days) == expected
    assert len(ORDINALS) == len(set(ORDINALS)) == 31
    assert ORDINALS[11] == "twelfth" and ORDINALS[20] == "twenty-first"
