"""The page of a run: what is on it, without a browser; test_page_browser.py opens some."""

import base64
import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.__main__ import main
from minigpt.data import excerpts
from minigpt.errors import UserError
from minigpt.files import BEST, METRICS, PAGE
from minigpt.model.gpt import GPTConfig
from minigpt.report import heads, page, passages, run_data, run_page
from minigpt.report.anatomy import anatomy_section, by_group, count
from minigpt.report.curves import curve, curve_section, points
from minigpt.report.heads import attention_section
from minigpt.report.passages import passages_section
from minigpt.report.samples import samples_section
from minigpt.report.token_losses import rank_passages
from minigpt.report.tokens import tokens_section
from tests.tools import training

PAIRS = "".join(f"number {i}\t{i}\n" for i in range(60))


@pytest.fixture
def library(monkeypatch):
    """A plotting library that is there, and small; no part of a page that takes time."""
    monkeypatch.setattr(run_page, "PARTS", (curve_section, attention_section, anatomy_section))
    monkeypatch.setattr(page, "library", lambda: "/* vega */")
    monkeypatch.setattr(run_page, "check_library", lambda: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run of a GPT."""
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    assert training.begin(folder) == 0
    return folder


def data_of(path, section):
    """Return the JSON of a section of a page."""
    text = path.read_text("utf-8")
    part = text[text.index(f'<section id="{section}"') :]
    part = part[: part.index("</section>")]
    return json.loads(re.findall(r'<script type="application/json">(.*?)</script>', part)[-1])


def test_a_page_has_what_the_run_has(run, library, capsys):
    assert main(["report", "--out-dir", str(run)]) is None
    text = (run / PAGE).read_text("utf-8")
    assert capsys.readouterr().out.startswith(f"page: {run / PAGE}, ")
    for section in ("curves", "attention", "model"):
        assert f'<section id="{section}"' in text
    assert "A GPT of " in text and "validation loss" in text
    assert main(["report", "--out-dir", str(run)]) is None  # replaces its own page


def test_weights_on_a_page_are_those_of_the_model(run, library):
    prompt = "the squa"
    run_page.write_run_page(run, prompt=prompt)
    (shown,) = data_of(run / PAGE, "attention")["maps"]
    opened = run_page.open_run(run)
    model = opened.checkpoint.params, opened.checkpoint.config, opened.checkpoint.tokenizer
    weights, rows, _ = opened.task.maps(*model, prompt)
    raw = np.frombuffer(base64.b64decode(shown["weights"]), np.uint8)
    n, config = len(rows), opened.checkpoint.config
    packed = raw.reshape(config.n_layer, config.n_head, n * (n + 1) // 2)
    lower = np.stack(weights)[..., np.tri(n, dtype=bool)]
    np.testing.assert_allclose(packed / 255, lower, atol=0.5 / 255 + 1e-7)
    assert shown["rows"] == [label.replace(" ", "␣") for label in rows]


def test_maps_that_would_make_a_page_too_large_are_cut():
    tokens = [str(i) for i in range(500)]
    for layers, heads_, n in ((12, 12, 300), (2, 4, 500), (48, 25, 100)):
        weights = [np.full((heads_, n, n), 1 / n)] * layers
        packed = heads.pack(weights, tokens[:n], tokens[:n], 1, causal=True)
        size = len(base64.b64decode(packed["weights"]))
        kept = len(packed["rows"])
        assert size == layers * heads_ * kept * (kept + 1) // 2 <= heads.ROOM
        assert kept == len(packed["columns"]) == packed["most"] <= heads.MOST
    cut = heads.pack([np.eye(70)[None]], tokens[:70], tokens[:70], 1, causal=False)
    assert cut["cut"]  # a row of the rest has less than 1 in all
    kept = np.frombuffer(base64.b64decode(cut["weights"]), np.uint8).reshape(64, 64)
    np.testing.assert_array_equal(kept, 255 * np.eye(64))


def test_an_encoder_decoder_shows_three_kinds_and_both_stacks(tmp_path, library):
    (tmp_path / "text.txt").write_text(PAIRS, encoding="utf-8")
    flags = "--task=seq2seq", "--block-size=16", "--sampler=uniform"
    assert training.begin(tmp_path / "run", *flags) == 0
    run_page.write_run_page(tmp_path / "run")
    maps = data_of(tmp_path / "run" / PAGE, "attention")["maps"]
    assert [each["kind"] for each in maps] == ["cross", "encoder", "decoder"]
    assert [each["causal"] for each in maps] == [False, False, True]
    text = (tmp_path / "run" / PAGE).read_text("utf-8")
    assert "<h3>Encoder</h3>" in text and "<h3>Decoder</h3>" in text and "cross attention" in text


def test_the_parts_of_a_model_are_all_of_it():
    tree = GPTConfig(n_layer=3).shapes()
    assert sum(by_group([tree]).values()) == count(tree)


def test_curves_have_each_value_of_the_metrics():
    lines = [{"step": 1, "train_loss": 3.0}, {"step": 2, "train_loss": None, "val_loss": 2.5}]
    values = points(lines, {"train_loss": "training", "val_loss": "validation"})
    assert values == [
        {"step": 1, "value": 3.0, "series": "training"},
        {"step": 2, "value": 2.5, "series": "validation"},
    ]
    spec = curve(values, "loss")
    assert [param["value"] for param in spec["params"]] == [1, 2]


def test_attention_is_shown_for_a_text_that_is_worth_a_look(run):
    shown = run_page.open_run(run)
    val = shown.checkpoint.tokenizer.decode(shown.data.val[:64].tolist())
    block_size = shown.checkpoint.config.block_size
    for sample, found in (("the square of the first", "the square of the first"), ("42", val)):
        lines = [{"step": 1, "sample": sample}]
        assert heads.find_prompt(replace(shown, lines=lines)) == found.strip()[:block_size]


def test_a_text_of_broken_characters_is_passed_over(run):
    tokenizer = SimpleNamespace(
        encode=lambda text: [*text.encode()],
        decode=lambda ids: bytes(ids).decode("utf-8", "replace"),
    )
    shown = run_page.open_run(run)
    shown = replace(shown, checkpoint=shown.checkpoint._replace(tokenizer=tokenizer))
    lines, val = [{"step": 1, "sample": "漢\ufffd字 漢字 漢字 漢字 漢字"}], "éx" * 30
    data = SimpleNamespace(val=np.array(tokenizer.encode(val)))
    found = heads.find_prompt(replace(shown, lines=lines, data=data))
    assert found and val.startswith(found)


def test_what_is_no_page_of_ours_is_not_replaced(run, tmp_path, library):
    other = tmp_path / "mine.html"
    other.write_text("<p>mine</p>")
    with pytest.raises(UserError, match="is there already; name another file, or add --force"):
        main(["report", "--out-dir", str(run), "--to", str(other)])
    assert other.read_text() == "<p>mine</p>"
    assert main(["report", "--out-dir", str(run), "--to", str(other), "--force"]) is None
    assert '<section id="curves"' in other.read_text("utf-8")
    with pytest.raises(UserError, match="--force is for --to FILE"):
        main(["report", "--out-dir", str(run), "--force"])
    (run / PAGE).write_text("<p>mine</p>")
    with pytest.raises(UserError, match="is there and no page of minigpt; name another file by"):
        main(["report", "--out-dir", str(run)])
    (run / PAGE).unlink()
    with pytest.raises(UserError, match="there is no folder"):
        main(["report", "--out-dir", str(run), "--to", str(tmp_path / "none" / "a.html")])
    with pytest.raises(UserError, match="is a folder; name a file, such as"):
        main(["report", "--out-dir", str(run), "--to", str(tmp_path)])
    with pytest.raises(UserError, match="there is no such file or folder; train a model"):
        main(["report", "--out-dir", str(tmp_path / "none")])
    with pytest.raises(UserError, match="--prompt"):
        main(["report", "--out-dir", str(run), "--prompt", "\u4e00"])


def test_damaged_metrics_are_named_and_the_rest_is_shown(run, tmp_path, library, capsys):
    lines = (run / METRICS).read_bytes().splitlines(keepends=True)
    try:
        (run / METRICS).write_bytes(b"".join([*lines[:2], b"{half a line\n", *lines[2:]]))
        assert main(["report", "--out-dir", str(run), "--to", str(tmp_path / "page.html")]) is None
    finally:
        (run / METRICS).write_bytes(b"".join(lines))
    named = f"{METRICS}: 1 line left out as damaged: line 3"
    assert f"note: {named}\n" in capsys.readouterr().err
    text = (tmp_path / "page.html").read_text("utf-8")
    assert f'<p class="note">{named}</p>' in text and '<figure class="chart"' in text


def test_without_metrics_the_model_is_shown(run, tmp_path, library):
    (run / METRICS).rename(tmp_path / METRICS)
    try:
        run_page.write_run_page(run, tmp_path / "page.html")
    finally:
        (tmp_path / METRICS).rename(run / METRICS)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert '<section id="model"' in text and "there are no curves" in text


def test_a_sample_made_for_the_page_is_no_line_of_the_run(tmp_path, library, monkeypatch):
    # So high a learning rate in the end that the best checkpoint is an early one.
    flags = "--learning-rate=30", "--min-lr=30", "--sample-tokens=0"
    assert training.begin(tmp_path / "run", *flags) == 0
    run = run_page.open_run(tmp_path / "run")
    assert run.checkpoint.state["best_step"] < 12 and run.made is not None
    assert not any(line.get("sample") for line in run.lines)
    assert "trained for 12 steps" in run_page.sentence(run)
    assert run_page.figures(run)["steps"] == "12 of 12"
    html = samples_section(run.sampled).html
    assert "of the best checkpoint, made for this page" in html
    assert "step" not in html


def test_what_is_no_run_is_said_before_the_library_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_page, "check_library", lambda: 1 / 0)
    (tmp_path / "c.txt").write_text("text")
    for name in ("c.txt", "", "none"):
        command = ["report", "--out-dir", str(tmp_path / name)]
        assert str(tmp_path / name) in training.refusal(capsys, main, command)


def test_a_checkpoint_stands_for_its_run(run, library, capsys):
    (run / PAGE).unlink(missing_ok=True)
    assert main(["report", "--out-dir", str(run / BEST)]) is None
    assert capsys.readouterr().out.startswith(f"page: {run / PAGE}, ")
    assert '<section id="curves"' in (run / PAGE).read_text("utf-8")


def test_data_that_take_long_to_read_are_left_out(run, monkeypatch):
    monkeypatch.setattr(run_data, "LARGEST", 1000)
    shown = run_page.open_run(run)
    assert shown.data is None and shown.passes is None
    assert shown.why.endswith("the one that training writes has them")


def test_a_page_of_a_long_text_is_of_its_beginnings_and_says_so(run, monkeypatch):
    monkeypatch.setattr(excerpts, "CHARACTERS", 150)
    shown = run_page.open_run(run)
    assert len(shown.data.train) == len(shown.data.val) == 150
    each = "the first 150 of {} characters of the {} part"
    part = f"{each.format('1,800', 'training')} and {each.format(200, 'validation')}"
    assert part == shown.data.part
    monkeypatch.setattr(passages, "rank_passages", partial(rank_passages, scored=20))
    html = passages_section(shown.checkpoint, shown.data).html
    assert f"Read for this page: {part}." in html
    assert "validation tokens of the part that was read, at even distances" in html
    html = tokens_section(shown.checkpoint, shown.data).html
    assert f"Counted in a part of the data: {part}." in html
    assert "<dt>tokens in that part</dt><dd>300</dd>" in html
