"""The walk as text: 80 columns, digits of the arrays, shades or colours."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minigpt.cli.characters import display_width
from minigpt.data.characters import CharTokenizer
from minigpt.report.step.numbers import Scale, aligned, digits, scale_of
from minigpt.report.step.pictures import Picture
from minigpt.report.step.record import record_step
from minigpt.report.step.terminal import matrix_lines, seen_width, walk_lines
from minigpt.report.step.walk import walk_of

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([0.0, -np.inf, np.inf])


def numbers_in(line, picture, count):
    """Return the numbers of a row of a matrix, read off its line."""
    margin = 2 + max(map(display_width, picture.rows))
    return [float(x) for x in line[margin:].split()[:count]]


def test_the_digits_that_are_printed_are_those_of_the_arrays(passes):
    for shown in passes.values():
        for picture in shown.pictures:
            _, lines = matrix_lines(picture, colours=False)
            lines = lines[any(picture.columns) :]
            power, decimals = scale_of(picture.values)
            columns = picture.columns_within(8)
            for i in range(min(8, len(picture.rows))):
                found = numbers_in(lines[i], picture, len(columns))
                expected = picture.values[i, columns].astype(float) / 10.0**power
                assert len(found) == len(columns)
                for x, y in zip(found, expected.tolist(), strict=True):
                    assert x == y or abs(x - y) < 0.501 * 10.0**-decimals


@given(arrays.arrays(np.float32, (2, 3), elements=FLOATS))
def test_digits_of_any_matrix(values):
    scale = scale_of(values)
    finite = np.abs(values[np.isfinite(values)]).astype(float)
    for x in values.flat:
        text = digits(x, scale)
        assert float(text) * 10.0**scale.power == pytest.approx(
            float(x), rel=0, abs=0.51 * 10.0 ** (scale.power - scale.decimals)
        )
        assert (text == "0") == (x == 0)
        assert len(text) <= 7
    if finite.max(initial=0):
        largest = digits(finite.max(), scale).replace(".", "").lstrip("0")
        assert 3 <= len(largest) <= 5  # 5 of what is rounded up to a power of ten


@pytest.mark.parametrize(
    ("top", "scale", "text"),
    [
        (0.25, Scale(0, 4), "0.2500"),
        (0.012345, Scale(0, 4), "0.0123"),
        (0.0099, Scale(-3, 3), "9.900"),
        (9.99999, Scale(0, 2), "10.00"),
        (1234.5, Scale(0, 0), "1234"),
        (3e7, Scale(7, 3), "3.000"),
    ],
)
def test_a_matrix_has_the_point_where_its_largest_number_needs_it(top, scale, text):
    found = scale_of(np.array([0.0, -np.inf, -top]))
    assert found == scale and digits(top, found) == text


def test_an_exact_zero_has_no_point_and_stands_in_its_column():
    scale = Scale(0, 3)
    assert digits(0.0, scale) == "0" and digits(1e-9, scale) == "0.000"
    assert aligned("0", scale) == "0    " and aligned("0.000", scale) == "0.000"


COMBINED = "e\u0301 \x1b[31m 漢\u0301\x1b\u0302\u0303\u0304\x1b"
HAN, LONG = "漢字かな交じり文の、テスト🎉を", "a very long sentence, of which the end is cut off"


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize(
    ("prompt", "block_size"),
    [("Be", 8), (HAN, 14), (LONG, 8), (LONG, 40), ("\x1b[31m\t\u0301é", 8), (COMBINED, 20)],
)
def test_no_line_is_wider_than_80_columns_or_moves_the_cursor(prompt, block_size, colours):
    step = record_step(prompt, CharTokenizer.from_text(prompt + "xyz"), block_size)
    lines = walk_lines(walk_of(step, "the file 漢字.txt"), colours)
    assert max(map(seen_width, lines)) <= 80
    text = re.sub("\x1b\\[[0-9;]*m", "", "\n".join(lines)) if colours else "\n".join(lines)
    assert text.replace("\n", " ").isprintable()
    assert bool(re.search(r"^The \d+ tokens after them are left out\.$", text, re.M)) == (
        step.left_out > 0
    )


def test_rows_and_columns_that_are_left_out_are_counted(tokenizer):
    step = record_step("hear me speak. 3 Beer", tokenizer, 12)
    lines = walk_lines(walk_of(step, "a text"), colours=False)
    assert "    ... 4 more rows and 4 more columns" in lines  # of 12 x 12 scores
    assert "    ... 4 more rows" in lines and "    ... and 4 more" in lines


def test_the_columns_of_the_vocabulary_that_are_shown_are_those_of_the_sentence(walk, step):
    (logits,) = walk.stages[-3].forward.pictures
    assert {*step.tokens} <= {*logits.columns_within(8)}


def test_colours_are_blue_and_orange_and_shades_stand_where_there_are_none():
    picture = Picture("x", np.array([[1.0, -1.0, 0.0]]), ["r"], ["a", "b", "c"])
    _, (_, row) = matrix_lines(picture, colours=True)
    assert (
        row == "  r \x1b[38;5;16;48;5;39m 1.000\x1b[0m \x1b[38;5;16;48;5;202m-1.000\x1b[0m  0    "
    )
    _, (_, row) = matrix_lines(picture, colours=False)
    assert row == "  r  1.000 -1.000  0      @@ "


def test_forward_goes_down_and_backward_up(walk):
    lines = walk_lines(walk, colours=False)
    heads = [line for line in lines if re.match(r"\d+\. ", line)]
    numbers = [int(line.partition(".")[0]) for line in heads]
    n = len(walk.stages)
    back = [i for i in range(n, 0, -1) if walk.stages[i - 1].backward is not None]
    assert numbers == [*range(1, n + 1), *back, n + 1, n + 2]
    assert [line.split()[-1] for line in heads[: n + 1]] == [*["forward"] * n, "backward"]
