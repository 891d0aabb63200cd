"""Pages in a real browser: Chromium, driven by playwright. Both are optional: see `browser`."""

import shutil
import time

import pytest

from minigpt.__main__ import main
from minigpt.files import PAGE
from minigpt.report.page import Section, matrix, write_page
from minigpt.report.run_page import write_run_page
from tests.tools import training

SIZE, TIME_S = 2_000_000, 5.0
PAIRS = "".join(f"number {i}\t{i}\n" for i in range(60))
CHOSEN = "document.querySelector('#attention .heads [aria-pressed=true]').id"
READY = "page.ready.then(() => document.querySelectorAll('figure.chart svg').length)"
LABELS = "[...document.querySelectorAll('figure.chart')[0].querySelectorAll('svg text')]"
LABELS += ".map((label) => label.textContent).join(' ')"


@pytest.fixture(scope="module")
def browser():
    """Chromium, for as long as the tests of this file run."""
    pytest.importorskip("vl_convert", reason="no vl-convert: pip install 'minigpt[report]'")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'minigpt[browser]'"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


class Reader:
    """Somebody who looks at a page, and what the browser says and asks for meanwhile."""

    def __init__(self, browser, path, **look):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **look})
        self.page, self.said, self.requests = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.route("**/*", self.route)
        self.page.goto(path.as_uri())

    def route(self, route):
        """Let the file itself through, and nothing else."""
        own = route.request.url.startswith("file:")
        if not own:
            self.requests.append(route.request.url)
        route.continue_() if own else route.abort()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()
        assert (self.said, self.requests) == ([], [])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: folder} of a run of a GPT, of an encoder-decoder and of a fine-tuned GPT."""
    folder = tmp_path_factory.mktemp("runs")
    gpt, pairs, tuned = (folder / name for name in ("quick", "of pairs/dates", "tuned"))
    assert training.begin(gpt, "--n-layer=2", "--sample-tokens=20", "--block-size=32") == 0
    pairs.parent.mkdir()
    (pairs.parent / "text.txt").write_text(PAIRS, encoding="utf-8")
    flags = ["--task=seq2seq", "--sampler=uniform", "--n-layer=2", "--block-size=16"]
    assert training.begin(pairs, *flags, "--max-iters=8") == 0
    # A folder of transformers: a GPT-2 as others publish them.
    base, foreign = folder / "base", folder / "gpt2"
    assert training.begin(base, "--bias", "--n-layer=3", "--max-iters=4") == 0
    assert main(["export", "--out-dir", str(base), "--to", str(foreign)]) in (0, None)
    flags = [f"--init-from={foreign}", f"--data={folder / 'text.txt'}", f"--out-dir={tuned}"]
    flags += ["--preset=finetune", "--max-iters=4", "--eval-interval=2", "--batch-size=2"]
    assert main(["train", *flags, "--warmup-iters=1"]) == 0
    return {"quick": gpt, "dates": pairs, "tuned": tuned}


@pytest.mark.parametrize("name", ["quick", "dates", "tuned"])
def test_a_page_shows_curves_and_attention_and_asks_for_nothing(browser, pages, name):
    path = pages[name] / PAGE
    assert path.stat().st_size < SIZE  # training has written it
    with Reader(browser, path) as reader:
        page = reader.page
        assert page.evaluate(READY) >= 2
        assert "training" in page.evaluate(LABELS)
        assert page.locator("#model .box").count() > 5
        assert page.evaluate(CHOSEN) == "head-0-0"
        page.click("#head-1-1")
        assert page.inner_text("#head-title") == "Layer 1, head 1"
        page.keyboard.press("ArrowUp")
        assert page.evaluate(CHOSEN) == "head-0-1" == page.evaluate("document.activeElement.id")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate(CHOSEN) == "head-0-0"
        assert "Layer 0, head 0" in page.inner_text("#said")


def test_a_query_colours_its_keys_by_the_weights_of_the_head(browser, pages):
    write_run_page(pages["quick"], prompt="the square of 7")
    data = "page.data(document.getElementById('attention')).maps[0]"
    with Reader(browser, pages["quick"] / PAGE) as reader:
        page = reader.page
        shown = page.evaluate(data)
        tokens = page.locator("#attention button.token")
        assert tokens.all_inner_texts() == shown["rows"]
        tokens.nth(1).focus()
        widths = tokens.evaluate_all("(all) => all.map((x) => x.style.getPropertyValue('--w'))")
        size = len(shown["rows"])
        raw = page.evaluate(f"[...atob({data}.weights)].map((c) => c.charCodeAt(0))")
        expected = [(raw[1 + k] / 255) ** 0.5 for k in range(2)] + [0] * (size - 2)
        assert [float(w) for w in widths] == pytest.approx(expected, abs=1e-3)
        page.keyboard.press("ArrowRight")
        assert tokens.nth(2).get_attribute("aria-pressed") == "true"
        assert page.inner_text("#attention .value").startswith(f"“{shown['rows'][2]}” (2) looks")


def test_cross_attention_is_an_alignment(browser, pages):
    with Reader(browser, pages["dates"] / PAGE) as reader:
        page = reader.page
        assert page.locator("#attention line.chosen").count() > 0
        page.click("#kind-1")
        assert page.get_attribute("#kind-1", "aria-pressed") == "true"
        assert page.locator("#attention line").count() == 0  # the text looks at itself
        page.click("#kind-2")
        assert "decoder" in page.inner_text("#attention").lower()


def test_a_chart_zooms_by_button_wheel_and_drag_and_a_reload_keeps_it(browser, pages):
    with Reader(browser, pages["quick"] / PAGE) as reader:
        page = reader.page
        page.evaluate(READY)
        signals = "['from', 'to'].map((name) => page.views[0].view.signal(name))"
        assert page.evaluate(signals) == [2, 12]
        figure = page.locator("figure.chart").first
        figure.get_by_label("Zoom in").click()
        assert page.evaluate(signals) == [4.5, 9.5]
        figure.get_by_label("Later", exact=True).click()
        assert page.evaluate(signals) == [5.75, 10.75]
        page.reload()
        page.evaluate(READY)
        assert page.evaluate(signals) == [5.75, 10.75]
        box = figure.locator("svg").bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 50, middle[1], steps=2)
        page.mouse.up()
        start, end = page.evaluate(signals)
        assert start < 5.75 and end - start == pytest.approx(5.0)
        page.keyboard.down("Control")
        page.mouse.wheel(0, 2000)
        page.keyboard.up("Control")
        page.wait_for_function(f"JSON.stringify({signals}) === '[2,12]'")
        assert page.locator("#vg-tooltip-element.visible").count() == 1
        assert "training" in page.inner_text("#vg-tooltip-element")


@pytest.mark.parametrize("look", ["phone", "dark"])
def test_a_page_fits_a_phone_and_the_dark(browser, pages, look):
    phone = {"viewport": {"width": 375, "height": 700}, "has_touch": True}
    looks = {"phone": phone, "dark": {"color_scheme": "dark"}}
    for folder in pages.values():
        with Reader(browser, folder / PAGE, **looks[look]) as reader:
            page = reader.page
            page.evaluate(READY)
            width = page.viewport_size["width"]
            assert page.evaluate("document.documentElement.scrollWidth") == width
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            light = sum(map(int, ground[4:-1].split(","))) > 384
            assert light == (look == "phone")


def test_a_page_of_a_run_that_goes_on_reads_itself_again(browser, tmp_path):
    def write(value, refresh=1):
        high = '<div style="height: 2000px"></div>'
        section = Section("m", "Matrix", high + matrix([[value]], "weights"))
        write_page(tmp_path / "page.html", "A run", [section], refresh=refresh)

    write(1.0)
    with Reader(browser, tmp_path / "page.html") as reader:
        page = reader.page
        page.evaluate("scrollTo({top: 700, behavior: 'instant'})")
        write(2.0)
        page.wait_for_function("document.querySelector('td[style]')?.textContent === '2.00'")
        page.wait_for_function("scrollY === 700")
        page.click("#pause")
        assert "stands still" in page.inner_text(".renewing")
        page.click("#pause")
        write(3.0, refresh=None)
        page.wait_for_function("document.querySelector('td[style]')?.textContent === '3.00'")
        assert page.locator(".renewing").count() == 0


def test_a_page_is_written_within_its_time(browser, pages):
    start = time.process_time()  # of all threads: what other programs take does not count
    assert main(["report", "--out-dir", str(pages["quick"])]) is None
    assert time.process_time() - start < TIME_S


def test_a_number_of_a_step_says_what_it_is_made_of(browser, tmp_path):
    path, text = tmp_path / "walk.html", tmp_path / "text.txt"
    text.write_text("Before 3")
    command = ["data", "--step", f"--data={text}", "--prompt=Bee3", f"--page={path}"]
    assert main(command) == 0
    with Reader(browser, path) as reader:
        page = reader.page
        row = page.locator('[data-picture="scores.s"] tbody tr').nth(2)
        row.locator("td").nth(0).hover()
        page.wait_for_function("document.querySelectorAll('.source').length == 8")
        q, k = page.locator('[data-picture="qkv.q"]'), page.locator('[data-picture="qkv.k"]')
        numbers = [
            " ".join(box.locator("tbody tr").nth(i).locator("td.source").all_inner_texts())
            for box, i in ((q, 2), (k, 0))
        ]
        said = f"made of q, row 2 e: {numbers[0]}; of k, row 0 B: {numbers[1]}"
        assert page.inner_text(".made-of").endswith(said)
        page.mouse.move(0, 0)  # where no number comes under it as the page scrolls
        page.focus('[data-picture="embedding.dwte"] .scroll')
        for key in ("ArrowDown", "ArrowDown", "ArrowRight"):  # e, the second of two tokens
            page.keyboard.press(key)
        page.wait_for_function("document.querySelectorAll('.source').length == 2")
        assert "made of dwpe, row 1, 2, column 1: " in page.inner_text("#said")
        page.keyboard.press("Escape")
        assert page.locator(".source, .chosen").count() == 0
        cells = page.locator("[data-picture] tbody td")
        assert cells.evaluate_all("(all) => all.map((x) => x.click()).length") > 1000
        page.set_viewport_size({"width": 375, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == 375
