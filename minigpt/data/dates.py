"""The built-in data of the encoder-decoder: dates as people write them -> ISO 8601.

    the third of March, 2021    ->  2021-03-03
    Wed 3/3/21                  ->  2021-03-03

Every form means one date. Where numbers alone would be ambiguous, the rule is:

    year first       year, month, day, whatever stands between them
    slashes          month, day, year, as in the United States
    dots, hyphens    day, month, year, as in most of Europe
    two digits       of a year: 69 to 99 are 1969 to 1999, 00 to 68 are 2000 to 2068, as in POSIX

A weekday in front is the right one, and the letters may be all small or all capital.
"""

import itertools
from datetime import date, timedelta

import numpy as np

FIRST, DAYS = date(1900, 1, 1), 73049  # to 2099-12-31
VALIDATION = 2000  # dates of which no form is in the training pairs
FORMS = 3  # training pairs for each other date
TRAINING = FORMS * (DAYS - VALIDATION)  # pairs in all
SHORT_YEARS = range(1969, 2069)

MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth"),
    *("seventeenth", "eighteenth", "nineteenth", "twentieth", "twenty-first"),
    *("twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth", "twenty-sixth"),
    *("twenty-seventh", "twenty-eighth", "twenty-ninth", "thirtieth", "thirty-first"),
)

SUFFIXES = {1: "st", 21: "st", 31: "st", 2: "nd", 22: "nd", 3: "rd", 23: "rd"}

PREFIXES = ("", "", "{weekday}, ", "{weekday} ", "on {weekday}, ")
PATTERNS = (
    "{month} {day}, {year}",
    "{month} {day} {year}",
    "{day} {month} {year}",
    "{day} {month}, {year}",
    "{month} {nth}, {year}",
    "{month} the {nth}, {year}",
    "the {nth} of {month}, {year}",
    "the {nth} of {month} {year}",
    "{nth} {month} {year}",
    "{nth} of {month} {year}",
    "{day}-{month}-{year}",
    "{Y} {month} {day}",
    "{Y}, {month} {nth}",
    "{m}/{d}/{year}",
    "{d}.{m}.{year}",
    "{d}. {m}. {year}",
    "{d}-{m}-{year}",
    "{Y}-{m}-{d}",
    "{Y}/{m}/{d}",
    "{Y}.{m}.{d}",
    "{Y}{mm}{dd}",
)
CASES = (*(str,) * 6, str.lower, str.upper)


def ordinal(day):
    """Return 1st, 2nd, 3rd, 4th, ..."""
    return str(day) + SUFFIXES.get(day, "th")


def write_date(day, bits):
    """Return one of the forms of a date, chosen by `bits`, an integer from 0 to 2^64 - 1."""

    def pick(options):
        nonlocal bits
        bits, i = divmod(bits, len(options))
        return options[i]

    month, weekday, year = MONTHS[day.month - 1], WEEKDAYS[day.weekday()], str(day.year)
    years = (year, year[2:], "'" + year[2:]) if day.year in SHORT_YEARS else (year,)
    pattern = pick(PREFIXES) + pick(PATTERNS)
    numeric = "{month}" not in pattern
    return pick(CASES)(
        pattern.format(
            weekday=pick((weekday, weekday[:3])),
            month=pick((month, month[:3])),
            nth=pick((ordinal(day.day), ORDINALS[day.day - 1])),
            day=pick((str(day.day), ordinal(day.day), f"{day.day:02}")),
            d=pick((str(day.day), f"{day.day:02}")),
            m=pick((str(day.month), f"{day.month:02}")),
            dd=f"{day.day:02}",
            mm=f"{day.month:02}",
            Y=year,
            year=pick(years[:2] if numeric else years),
        )
    )


def date_pairs(seed, validation=VALIDATION, forms=FORMS, most=None):
    """Make the pairs of dates.

    Parameters
    ----------
    seed : int
    validation : int
        Dates to keep for validation, with one form each.
    forms : int
        Pairs for each of the other dates.
    most : int, optional
        Pairs for training that are made, the first of them, if not all.

    Returns
    -------
    train, val : lists of (source, target)
    """
    order = np.random.Philox(key=seed).random_raw(DAYS).argsort(kind="stable").tolist()
    counts = [1] * validation + [forms] * (DAYS - validation)
    bits = iter(np.random.Philox(key=seed, counter=1 << 64).random_raw(sum(counts)).tolist())

    def made():
        for i, n in zip(order, counts, strict=True):
            day = FIRST + timedelta(i)
            iso = day.isoformat()
            yield from ((write_date(day, next(bits)), iso) for _ in range(n))

    pairs = [*itertools.islice(made(), None if most is None else validation + most)]
    return pairs[validation:], pairs[:validation]
