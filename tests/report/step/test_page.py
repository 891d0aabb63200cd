"""The walk as a page: the digits of the terminal, and where each number is from."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

from minigpt.data.characters import CharTokenizer
from minigpt.errors import UserError
from minigpt.report.page import check_place
from minigpt.report.step.numbers import digits, scale_of
from minigpt.report.step.page import code_of, write_walk
from minigpt.report.step.record import record_step
from minigpt.report.step.walk import walk_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def html(walk, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "walk.html"
    assert write_walk(path, walk) == path.stat().st_size < 2_000_000
    return path.read_text("utf-8")


def test_every_number_of_the_page_is_that_of_the_passes(html, passes):
    boxes = re.findall(r'<div data-picture="(.*?)">(.*?)</table>', html, re.S)
    found = {unescape(key): re.findall(r"<td .*?>(.*?)</td>", text) for key, text in boxes}
    assert len(found) == len(boxes)
    for (stage, _), shown in passes.items():
        for picture in shown.pictures:
            scale = scale_of(picture.values)
            values = picture.values[:32, picture.first_columns(72)]
            texts = found.pop(f"{stage}.{picture.name}")
            texts = [x.strip().replace("−", "-").replace("∞", "inf") for x in texts]
            assert texts == [digits(x, scale) for x in values.flat], (stage, picture.name)
    assert found == {}


def test_the_script_knows_every_matrix_and_where_its_numbers_are_from(html, passes):
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])
    keys = {unescape(key) for key in re.findall(r'data-picture="(.*?)"', html)}
    assert data.keys() == keys
    assert {key for entry in data.values() for key in entry["from"]} <= keys
    assert data["scores.s"]["from"] == {"qkv.q": ["i", "all"], "qkv.k": ["j", "all"]}
    assert 'page.section("sentence"' in html


def test_columns_of_the_vocabulary_begin_with_the_targets(walk, step):
    (logits,) = walk.stages[-3].forward.pictures
    columns = logits.first_columns(72)
    first = [*dict.fromkeys(step.tokens[1:])]
    assert columns[: len(first)] == first
    assert sorted(columns) == [*range(step.config.vocab_size)]


def test_labels_stand_above_their_numbers(html, walk):
    (logits,) = walk.stages[-3].forward.pictures
    box = re.search(r'<div data-picture="logits.logits">(.*?)</table>', html, re.S)[1]
    labels = [unescape(x) for x in re.findall(r'<th scope="col">(.*?)</th>', box)]
    assert labels == [logits.columns[j] for j in logits.first_columns(72)]


def test_the_code_of_an_op_is_shown_as_it_is(html, passes):
    shown = passes["softmax", "backward"]
    assert code_of(shown.call.file, int(shown.place.split(":")[1])) == (
        "def softmax_backward(dy, cache):\n"
        "    (y,) = cache\n"
        "    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))"
    )
    assert "(y,) = cache\n    return y * (dy - (y * dy)" in unescape(html)
    for shown in passes.values():
        lines = code_of(shown.call.file, int(shown.place.split(":")[1])).splitlines()
        text = (ROOT / shown.call.file).read_text("utf-8").splitlines()
        assert len(lines) > 1 and {*lines} <= {*text} and '"""' not in "".join(lines)


def test_both_passes_of_an_op_stand_side_by_side(html, walk):
    assert html.count('<div class="passes">') == sum(x.backward is not None for x in walk.stages)
    titles = re.findall(r"<h2 .*?>(.*?)</h2>", html)
    n = len(walk.stages)
    assert titles[0] == "The sentence" and titles[1].startswith("1. Embedding")
    assert titles[-1] == f"{n + 2}. The loss after the step"


def test_a_large_vocabulary_is_cut_and_text_stays_text(tmp_path):
    chars = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    prompt = '<b>"&\\' + chars[:60]
    walk = walk_of(record_step(prompt, CharTokenizer.from_text(chars + prompt), 64), "<i>")
    assert write_walk(tmp_path / "walk.html", walk) < 2_000_000
    text = (tmp_path / "walk.html").read_text("utf-8")
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;" in text
    assert f"{3006 - 72} more columns" in text


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "walk.html"
    check_place("--page", path, "walk.html", force=False)
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already; name another file, or add --force"):
        check_place("--page", path, "walk.html", force=False)
    check_place("--page", path, "walk.html", force=True)
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_place("--page", tmp_path, "walk.html", force=True)
    with pytest.raises(UserError, match="there is no folder .*none; make it first"):
        check_place("--page", tmp_path / "none" / "walk.html", "walk.html", force=False)
