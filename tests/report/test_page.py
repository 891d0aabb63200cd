"""The shell of a page: one file that holds all it needs, and whatever text is in it stays text."""

import json
import re
import sys

import numpy as np
import pytest

from minigpt.errors import UserError
from minigpt.report import page
from minigpt.report.page import Section
from minigpt.report.vega import NoLibrary

EVIL = '</script><script>alert("1")</script> & \ud800'


def test_a_page_without_charts_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    page.library.cache_clear()
    section = Section("a", "First", page.matrix([[1.0, -0.5]], "weights of a"))
    size = page.write_page(tmp_path / "page.html", "A page", [section], refresh=3)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert size == len(text.encode()) < 100_000
    assert '<html lang="en" data-refresh="3">' in text
    assert '<a href="#a">First</a>' in text and 'id="a-title"' in text
    with pytest.raises(NoLibrary, match=r"need vl-convert-python: pip install 'minigpt\[report\]'"):
        page.page("A page", [Section("c", "Chart", page.chart({}, "of nothing"))])


def test_a_plotting_library_that_is_broken_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "vl_convert.py").write_text("raise OSError('no such\\nsymbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vl_convert", raising=False)
    page.library.cache_clear()
    with pytest.raises(UserError, match="cannot be made: vl_convert: OSError: no such symbol$"):
        page.library()


def test_text_stays_text():
    parts = [page.paragraph(EVIL), page.table([EVIL] * 2, [[EVIL, EVIL]], EVIL), page.note(EVIL)]
    parts += [page.matrix([[0.0]], EVIL, [EVIL], [EVIL]), page.facts({EVIL: EVIL})]
    text = page.page(EVIL, [Section("a", EVIL, "".join(parts), data={"text": EVIL})])
    text.encode("utf-8")
    assert text.count("alert(") == text.count("alert(&quot;1&quot;)") + text.count('alert(\\"1\\")')
    held = re.search(r'<script type="application/json">(.*?)</script>', text, re.S)[1]
    assert json.loads(held)["text"].startswith(EVIL[:-1])


def test_a_page_names_nothing_outside_of_it():
    text = page.page("A page", [Section("a", "First", page.paragraph("text"), data=[1])])
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|src=|@import|url\(", text)


def test_cells_of_a_matrix_show_their_values_and_how_large_they_are():
    text = page.matrix([[2.0, -1.0, float("-inf")]], "scores", ["q"], ["a", " ", "\n"])
    assert '<td style="--w:1.000">2.00</td>' in text
    assert '<td class="less" style="--w:0.500">−1.00</td>' in text
    assert '<td class="masked">−∞</td>' in text
    assert '<th scope="col">&#x27; &#x27;</th><th scope="col">\\n</th>' in text
    assert 'style="--w:0.250">0.25</td>' in page.matrix([[0.25]], "weights", kind="weights")


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        (tmp_path / "page.html").mkdir()
        page.write_page(tmp_path / "page.html", "A page", [])


def colours_of(css):
    """The colours of a theme of page.css, {name: (3,) linear RGB}."""
    found = {}
    for name, digits in re.findall(r"--([\w-]+): #(\w{6});", css):
        rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        found[name] = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return found


def test_text_can_be_read_on_every_colour_that_stands_behind_it():
    light, dark = page.own_file("page.css").split("@media (prefers-color-scheme: dark)")
    for theme in map(colours_of, (light, dark.split("* {")[0])):
        pairs = [("text", x) for x in ("ground", "raised", "more", "less")]
        pairs += [(x, y) for x in ("quiet", "accent", "warn") for y in ("ground", "raised")]
        for text, behind in pairs:  # WCAG 2.2: relative luminance, contrast of AA
            low, high = sorted(theme[x] @ (0.2126, 0.7152, 0.0722) for x in (text, behind))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind)


def test_columns_of_numbers_stand_at_the_right_and_no_others():
    rows = [["a", "3 4 5", 1, "97%"], ["b", "x", 2.5, "0.1%"], ["c", "7", 1234, "3%"]]
    html = page.table(["name", "token", "count", "share"], rows, "tokens")
    assert re.findall(r"<th scope=\"col\" class=number>(\w+)</th>", html) == ["count", "share"]
    right = re.findall(r"<td class=number>(.*?)</td>", html)
    assert right == ["1", "97%", "2.5", "0.1%", "1,234", "3%"]


def test_controls_are_escapes():
    assert page.escape("a\x00\x1b[31m\u202eb\n\tc") == "a\\x00\\x1b[31m\\u202eb\n\tc"
