"""The page of a run in training: when it is written, and that no run fails because of it."""

import importlib.util

import pytest

import minigpt
from minigpt.__main__ import main
from minigpt.errors import UserError
from minigpt.files import LAST, PAGE
from minigpt.model.checkpoint import load
from minigpt.report import page, run_page
from minigpt.report.page import INSTALL
from minigpt.train import page as train_page
from minigpt.train.run import Run
from tests.tools import training
from tests.tools.ending import at_call

pytestmark = pytest.mark.usefixtures("no_picture")
REFRESHED = f'data-refresh="{train_page.REFRESH_S}"'


@pytest.fixture
def written(monkeypatch):
    """After how many seconds each page that is written is read again; nothing slow is on it."""
    refreshed, write = [], run_page.write_page

    def record(path, title, sections, lead, refresh):
        refreshed.append(refresh)
        return write(path, title, sections, lead, refresh)

    monkeypatch.setattr(run_page, "write_page", record)
    monkeypatch.setattr(run_page, "PARTS", (run_page.curve_section,))
    monkeypatch.setattr(page, "library", lambda: "/* vega */")
    find = importlib.util.find_spec
    known = {"vl_convert": importlib.util.spec_from_loader("vl_convert", None)}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known.get(name) or find(name))
    return refreshed


def test_a_page_is_renewed_at_every_nth_evaluation_until_the_run_ends(tmp_path, written, capsys):
    assert training.begin(tmp_path / "run", "--report-every=2", "--eval-interval=2") == 0
    # Evaluations at 2, 4, ..., 12: the pages of 4, 8 and 12, and that of the end.
    assert written == [train_page.REFRESH_S] * 3 + [None]
    assert REFRESHED not in (tmp_path / "run" / PAGE).read_text("utf-8")
    assert f"page: {tmp_path / 'run' / PAGE}" in capsys.readouterr().out
    written.clear()
    assert training.begin(tmp_path / "other") == 0
    assert written == [None]


def test_pages_change_no_bit_of_a_run(tmp_path, written):
    assert training.begin(tmp_path / "with", "--report-every=1") == 0
    written.clear()
    assert training.begin(tmp_path / "without") == 0
    assert training.metrics(tmp_path / "with") == training.metrics(tmp_path / "without")
    one, other = (load(tmp_path / name / LAST).params.flat for name in ("with", "without"))
    assert one.tobytes() == other.tobytes()


def test_the_page_of_a_run_that_is_stopped_is_renewed_no_longer(tmp_path, written, monkeypatch):
    def fail():
        raise ZeroDivisionError

    at_call(monkeypatch, Run, "advance", [3], fail)  # after the first evaluation
    with pytest.raises(ZeroDivisionError):
        training.begin(tmp_path / "run", "--report-every=1", "--eval-interval=2")
    assert written == [train_page.REFRESH_S, None]


def test_a_run_never_fails_because_of_its_page(tmp_path, written, monkeypatch, capsys):
    def fail(_):
        raise ZeroDivisionError("of a part")

    monkeypatch.setattr(run_page, "PARTS", (fail,))
    assert training.begin(tmp_path / "run", "--report-every=1") == 0
    assert "note: no page: of a part" in capsys.readouterr().err
    assert not (tmp_path / "run" / PAGE).exists()


def test_without_the_extra_a_run_is_silent_unless_it_was_asked_for_pages(
    tmp_path, monkeypatch, capsys
):
    find = importlib.util.find_spec
    absent = {"vl_convert": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: absent[name] if name in absent else find(name)
    )
    assert training.begin(tmp_path / "run") == 0
    assert "page" not in "".join(capsys.readouterr())
    assert not (tmp_path / "run" / PAGE).exists()
    for command in (
        lambda: training.begin(tmp_path / "other", "--report-every=1"),
        lambda: main(["report", "--out-dir", str(tmp_path / "run")]),
    ):
        assert training.refusal(capsys, command).endswith(f"need vl-convert-python: {INSTALL}")
    assert not (tmp_path / "other").exists()


def test_fit_ends_the_renewal_of_its_page(tmp_path, written):
    options = {"n_layer": 1, "n_embd": 8, "n_head": 2, "block_size": 8, "max_iters": 4}
    options |= {"eval_interval": 2, "report_every": 1, "warmup_iters": 0, "progress": False}
    minigpt.fit(text=training.TEXT, out_dir=tmp_path / "run", **options)
    assert written == [train_page.REFRESH_S] * 2 + [None]


def test_a_new_run_removes_the_page_of_the_old_one(tmp_path, written):
    assert training.begin(tmp_path / "run") == 0
    with pytest.raises(UserError, match="holds another run"):
        training.begin(tmp_path / "run")
    (tmp_path / "run" / PAGE).write_text("<p>of the old run</p>", encoding="utf-8")
    assert training.begin(tmp_path / "run", "--overwrite") == 0
    assert "of the old run" not in (tmp_path / "run" / PAGE).read_text("utf-8")
