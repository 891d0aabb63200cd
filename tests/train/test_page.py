"""The page of a run in training: when it is written, and that no run fails because of it."""

import importlib.util
import itertools
import json
import math
import os
import signal
import time

import numpy as np
import pytest

import minigpt
from minigpt.__main__ import main
from minigpt.errors import UserError
from minigpt.files import LAST, METRICS, PAGE
from minigpt.model.checkpoint import load
from minigpt.report import page, run_page
from minigpt.report.vega import INSTALL
from minigpt.train import loop as train_loop
from minigpt.train import page as train_page
from minigpt.train.run import OVERHEAD_S, Run
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
    monkeypatch.setattr(train_page, "FRACTION", math.inf)
    find = importlib.util.find_spec
    known = {"vl_convert": importlib.util.spec_from_loader("vl_convert", None)}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known.get(name) or find(name))
    return refreshed


def test_a_page_is_renewed_at_every_nth_evaluation_until_the_run_ends(tmp_path, written, capsys):
    assert training.begin(tmp_path / "run", "--report-every=2", "--eval-interval=2") == 0
    # Evaluations at 2, 4, ..., 12: the pages of 4 and 8, and that of the end.
    assert written == [train_page.REFRESH_S] * 2 + [None]
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
    assert written == [train_page.REFRESH_S, None]


def test_a_new_run_removes_the_page_of_the_old_one(tmp_path, written):
    assert training.begin(tmp_path / "run") == 0
    with pytest.raises(UserError, match="holds another run"):
        training.begin(tmp_path / "run")
    (tmp_path / "run" / PAGE).write_text("<p>of the old run</p>", encoding="utf-8")
    assert training.begin(tmp_path / "run", "--overwrite") == 0
    assert "of the old run" not in (tmp_path / "run" / PAGE).read_text("utf-8")


@pytest.fixture
def slow(monkeypatch):
    """A page that takes 0.5 s, in place of one; after how many seconds each is read again."""
    refreshed = []

    def write(folder, refresh=None, data=None):
        refreshed.append(refresh)
        time.sleep(0.5)
        return folder / PAGE, 0, []

    monkeypatch.setattr(run_page, "write_run_page", write)
    monkeypatch.setattr(train_page, "check_library", lambda: None)
    monkeypatch.setattr(train_loop, "check_library", lambda: None)
    return refreshed


def test_pages_take_a_small_part_of_a_run_and_do_not_count_as_training(tmp_path, slow):
    assert training.begin(tmp_path / "run", "--report-every=1", "--eval-interval=1") == 0
    assert slow == [train_page.REFRESH_S, None]  # 5 % of 12 steps have no room for another
    lines = (tmp_path / "run" / METRICS).read_text("utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert max(b - a for a, b in itertools.pairwise(seconds)) < 0.5


def test_with_a_budget_time_is_kept_for_the_page_at_the_end(tmp_path, slow, monkeypatch, capsys):
    monkeypatch.setattr(train_page, "PAGE_S", 1.0)
    monkeypatch.setattr(train_page, "END_FRACTION", 0.5)
    assert training.begin(tmp_path / "run", "--max-seconds=3") == 0
    assert slow == [None]
    assert load(tmp_path / "run" / LAST).state["seconds"] < 1.3 < 3 - OVERHEAD_S
    slow.clear()
    capsys.readouterr()
    monkeypatch.setattr(train_page, "PAGE_S", 5.0)
    assert training.begin(tmp_path / "other", "--max-seconds=1.6", "--report-every=1") == 0
    command = f"python -m minigpt.report --out-dir {tmp_path / 'other'}"
    said = capsys.readouterr().err
    assert f"note: no page: --max-seconds leaves no time for it; write it by {command}\n" in said
    assert slow == []


def test_a_page_amid_a_budget_counts_and_its_time_is_kept_for_the_next(tmp_path, slow, monkeypatch):
    monkeypatch.setattr(train_page, "PAGE_S", 0.01)
    reserves, renew = [], train_page.Pages.renew

    def watch(pages, run):
        before = run.state.seconds
        renew(pages, run)
        reserves.append((pages.reserve_s, run.state.seconds - before))

    monkeypatch.setattr(train_page.Pages, "renew", watch)
    flags = "--max-seconds=3", "--report-every=1", "--eval-interval=5"
    assert training.begin(tmp_path / "run", *flags) == 0
    assert slow[0] == train_page.REFRESH_S and slow[-1] is None
    kept, counted = next(pair for pair in reserves if pair[1] >= 0.5)
    assert 0.5 <= kept <= counted


def test_a_stopped_run_says_how_to_resume_before_its_page(tmp_path, slow, monkeypatch, capsys):
    said = []

    def stop():
        os.kill(os.getpid(), signal.SIGINT)

    def write(folder, refresh=None, data=None):
        if refresh is None:
            said.append(capsys.readouterr().out)
            raise KeyboardInterrupt  # from one who does not wait for the page
        return folder / PAGE, 0, []

    monkeypatch.setattr(run_page, "write_run_page", write)
    at_call(monkeypatch, Run, "advance", [6], stop)
    flags = "--report-every=1", "--eval-interval=2"
    assert training.begin(tmp_path / "run", *flags) == 128 + signal.SIGINT
    assert "saved; resume with\n" in said[0]


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_a_lack_of_memory_for_a_page_ends_no_run(tmp_path, written, monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr(run_page, "PARTS", (fail,))
    assert training.begin(tmp_path / "run") == 0
    assert "note: no page: " in capsys.readouterr().err


def test_a_page_of_a_run_in_training_reads_no_data_again(tmp_path, written, monkeypatch):
    def fail(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(run_page, "open_run_data", fail)
    shown = []
    monkeypatch.setattr(run_page, "PARTS", (lambda run: shown.append(run) or None,))
    assert training.begin(tmp_path / "run") == 0
    assert len(shown[0].data.train) + len(shown[0].data.val) == len(training.TEXT)


@pytest.mark.cupy
def test_the_data_of_a_run_on_a_gpu_come_to_the_host_for_its_page(
    cupy, tmp_path, written, monkeypatch
):
    shown = []
    monkeypatch.setattr(run_page, "PARTS", (lambda run: shown.append(run) or None,))
    assert training.begin(tmp_path / "run", "--backend=cupy", "--report-every=1") == 0
    assert all(isinstance(run.data.val, np.ndarray) for run in shown) and len(shown) > 1
