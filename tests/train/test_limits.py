"""Where a run ends: by steps, by passes through its data, by the clock, or by what comes first."""

import re
import sys
import types

import numpy as np
import pytest

from minigpt.errors import UserError
from minigpt.files import LAST
from minigpt.model import checkpoint
from minigpt.optim.adamw import AdamW
from minigpt.optim.schedule import describe, learning_rate, weight_decay
from minigpt.sample.tasks import TASKS
from minigpt.train import __main__ as train
from minigpt.train import resume as resuming
from minigpt.train.config import TrainConfig
from minigpt.train.cost import run_time
from minigpt.train.limits import Limits
from minigpt.train.options import options, parse
from minigpt.train.presets import configs_of
from tests.tools.training import TEXT, begin, metrics, refusal, resume, same
from tests.train.test_clock import BY_CLOCK, rates, slow
from tests.train.test_resume import interrupt

pytestmark = pytest.mark.usefixtures("no_picture")

WINDOWS = 225  # of 8 tokens in TEXT's training part: 75 steps of 3 rows are a pass
CAPPED = "--max-passes=0.6", "--weight-decay=auto", *BY_CLOCK  # 45 steps


def limits(data_rows=None, ahead=0, **given):
    """The Limits of options."""
    return Limits(TrainConfig(**given), data_rows, ahead)


def test_a_run_is_as_far_as_what_comes_first():
    by_steps = limits(max_iters=10)
    assert by_steps.by_steps and by_steps.schedule(5) is None
    assert [by_steps.progress(step, 1e9) for step in (0, 5, 10, 12)] == [0.0, 0.5, 1.0, 1.0]
    both = {"max_passes": 4.0, "max_seconds": 110.0, "batch_size": 5}
    this = limits(50, **both)
    assert this.steps == 40 and not this.by_steps
    for step, seconds, progress in (
        (0, 0, 0),
        (10, 10, 0.25),
        (10, 60, 0.6),
        (40, 1, 1),
        (1, 99, 0.99),
    ):
        assert this.progress(step, seconds, 10.0) == this.schedule(step, seconds, 10.0) == progress
    assert limits(50, **both | {"max_seconds": None}).progress(10, 1e9) == 0.25
    assert limits(50, **both | {"max_passes": None}).progress(10, 55.0) == 0.5
    assert limits(None, **both).progress(1000, 55.0) == 0.5  # nobody knows the data


@pytest.mark.parametrize(
    "passes, data_rows, rows, steps",
    [
        (1.1, 10, 1, 11),
        (0.1, 1000, 10, 10),
        (3.0, 7, 3, 7),
        (2.0, 8, 3, 6),
        (0.001, 10, 3, 1),
        (16.0, 3922, 16, 3922),
    ],
)
def test_passes_are_rounded_up_to_whole_steps(passes, data_rows, rows, steps):
    this = limits(data_rows, max_passes=passes, batch_size=rows)
    assert this.steps == steps and this.used_up(steps) and not this.used_up(steps - 1)
    assert this.progress(steps) == 1.0 > this.progress(steps - 1)
    halves = limits(data_rows, max_passes=passes, batch_size=1, gradient_accumulation_steps=rows)
    assert halves.steps == steps


def test_rows_of_another_batch_size_count():
    """After 10 steps of 8 rows, steps of 4: 40 rows were taken ahead; after steps of 16, -80."""
    assert limits(100, 40, max_passes=2.0, batch_size=4).steps == 40
    assert limits(100, -80, max_passes=2.0, batch_size=16).steps == 18  # 17.5
    this = limits(100, 40, max_passes=2.0, batch_size=4)
    assert this.progress(10) == 0.4 and this.rows(10) == 80


def test_limits_in_words():
    assert limits(max_iters=1400).length() == "1,400 steps"
    assert limits(max_seconds=60.0).length() == "60 seconds"
    three = limits(2048, max_passes=3.0)
    assert three.length() == "3 passes through the training data (192 steps)"
    assert limits(32, max_passes=1.0).length() == "1 pass through the training data (1 step)"
    both = limits(2048, max_passes=3.0, max_seconds=1800.0)
    assert both.length() == "at most 1800 seconds and " + three.length()
    assert limits(max_passes=3.0).length() == "3 passes through the training data"
    assert three.place(64, 9.0) == "step 64 of 192"
    assert both.place(64, 9.4) == "step 64 of 192, 9 of 1800 s"
    assert both.reason(192, 412.2) == (
        "ended after 3 passes through the training data: 192 steps, 412 of 1800 s"
    )
    assert both.reason(64, 1795.0) == "ended after 1795 of 1800 s: 64 steps, 1 of 3 passes"
    assert three.reason(192, 4.0) == "ended after 3 passes through the training data: 192 steps"
    alone = limits(2048, max_seconds=60.0)
    assert alone.reason(96, 59.0) == "ended after 59 of 60 s: 96 steps, 1.5 passes"
    steps = limits(2048, max_iters=64)
    assert steps.reason(64, 4.0) == "ended after 64 steps: 1 pass through the training data"


@pytest.mark.parametrize(
    "asked, words",
    [
        (1500.0, "1,500 passes"),
        (1234567.5, "1,234,567.5 passes"),
        (0.1234567, "0.1234567 passes"),
        (0.00001, "0.00001 passes"),
        (0.999999, "0.999999 passes"),
        (1.0, "1 pass"),
        (20.0, "20 passes"),
    ],
)
def test_passes_are_told_as_they_were_asked_for(asked, words):
    whole = f"{words} through the training data"
    this = limits(32, max_passes=asked, max_seconds=60.0)
    assert limits(max_passes=asked).length() == whole
    assert this.reason(this.steps, 9.0).startswith(f"ended after {whole}: ")
    assert this.reason(0, 60.0).endswith(f" 0 steps, 0 of {words}")


@pytest.mark.parametrize(
    "data_rows, steps, words",
    [
        (20, 1400, "2,240 passes"),
        (32_013, 1_000_000, "1,000 passes"),
        (3_201_300, 100_000, "1 pass"),
        (3_199_997, 99_999, "1 pass"),
        (10_000_000, 3, "0.0000096 passes"),
    ],
)
def test_passes_made_are_told_without_an_exponent(data_rows, steps, words):
    by_steps = limits(data_rows, max_iters=steps)
    assert by_steps.reason(steps, 0.0).endswith(f"steps: {words} through the training data")
    assert limits(data_rows, max_seconds=60.0).reason(steps, 60.0).endswith(f" steps, {words}")


def test_what_is_left_is_the_lesser_of_steps_and_time():
    both = limits(2048, max_passes=3.0, max_seconds=100.0)
    assert both.seconds_left(92, 40.0, 0.5) == 50.0 and both.seconds_left(92, 40.0, 1.0) == 60.0
    assert both.seconds_left(93, 101.0, 1.0) == 0.0
    assert limits(max_iters=10).seconds_left(4, 1e9, 2.0) == 12.0
    assert limits(max_seconds=10.0).seconds_left(4, 3.0, 2.0) == 7.0
    assert run_time(both, 0.5) == ", 1.6 minutes of training"
    assert run_time(both, 1.0) == ", some 100 steps in all"
    assert run_time(limits(max_passes=3.0), 1.0) == ""


def test_a_run_by_passes_ends_after_them_and_says_so(tmp_path, capsys):
    assert begin(tmp_path / "run", "--max-passes=0.2", "--log-interval=1", "--min-lr=0") == 0
    out = capsys.readouterr().out
    assert "training: for 0.2 passes through the training data (15 steps), batches of 3 x" in out
    assert "learning rate: 0.01 after 2 steps of warm-up, down to 0 by a cosine\n" in out
    assert "\nended after 0.2 passes through the training data: 15 steps\nvalidation loss" in out
    lines = metrics(tmp_path / "run")
    assert len(lines) == lines[-1]["step"] == 15 and "val_loss" in lines[-1]
    config = checkpoint.load(tmp_path / "run" / LAST).state["train"]
    expected = [learning_rate(i, types.SimpleNamespace(**config), i / 15) for i in range(15)]
    np.testing.assert_allclose(rates(tmp_path / "run"), expected, rtol=1e-12)
    assert expected[-1] < 0.02 * max(expected)


def test_a_warm_up_longer_than_a_tenth_of_the_passes_is_over_then():
    config = TrainConfig(max_passes=1.0, warmup_iters=20)
    assert describe(config, True, 66).startswith("0.01 after 7 steps of warm-up, down to 0 in a")
    assert describe(config, True, 1400).startswith("0.01 after 20 steps of warm-up")
    assert learning_rate(7, config, 7 / 66) == 0.01


@pytest.mark.cupy
def test_interrupted_and_resumed_it_ends_at_the_same_step(tmp_path, monkeypatch, backend):
    flags = "--max-passes=0.2", "--weight-decay=auto", "--dropout=0.2", backend
    assert begin(tmp_path / "whole", *flags) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        assert begin(tmp_path / "parts", *flags) == 130
    assert resume(tmp_path / "parts") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    same(tmp_path / "parts", tmp_path / "whole", LAST)


def test_what_a_stopped_run_says_and_its_data_are_kept(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        assert begin(tmp_path / "run", "--max-passes=0.2", "--max-seconds=90") == 130
    end = (
        "of a run of at most 90 seconds and 0.2 passes through the training data (15 steps), saved"
    )
    assert f"stopped at step 3 {end}" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run" / LAST).state["data_rows"] == WINDOWS
    assert train.main(["--resume", f"--out-dir={tmp_path / 'run'}", "--dry-run"]) is None
    assert "(15 steps), 360 tokens," in capsys.readouterr().out


def test_a_fast_machine_ends_after_the_passes(tmp_path, monkeypatch, clock, capsys):
    slow(monkeypatch, clock, "step", lambda i: 0.01)
    assert begin(tmp_path / "run", *CAPPED, "--max-seconds=1000") == 0
    lines, found = metrics(tmp_path / "run"), rates(tmp_path / "run")
    assert len(found) == 45 and "val_loss" in lines[-1]
    assert found[-1] < 0.06 * max(found) and max(found) == 0.01  # all of its decay
    expected = weight_decay(0.6, 3 / WINDOWS, 0.01)
    np.testing.assert_allclose([x["weight_decay"] for x in lines[1:]], expected, rtol=1e-9)
    out, err = capsys.readouterr()
    assert re.search(r"ended after 0.6 passes .*: 45 steps, \d of 1000 s\n", out)
    assert begin(tmp_path / "few", "--max-passes=0.05", "--max-seconds=1000", *BY_CLOCK) == 0
    few = capsys.readouterr().err
    assert "the time was enough" not in err + few and "steps only" not in err
    assert (
        "note: 0.05 passes through the training data made 4 steps only; give a larger --max-passes "
        "or a smaller --batch-size\n"
    ) in few
    # A machine twice as fast: the same run, in half the time.
    clock.now = 0.0
    slow(monkeypatch, clock, "step", lambda i: -0.005)
    assert begin(tmp_path / "twice", *CAPPED, "--max-seconds=1000") == 0
    assert metrics(tmp_path / "twice")[5:] == lines[5:]


def test_a_slow_machine_ends_by_the_clock(tmp_path, monkeypatch, clock, capsys):
    slow(monkeypatch, clock, "step", lambda i: 1.0)
    assert begin(tmp_path / "run", *CAPPED, "--max-seconds=30") == 0
    clock.now = 0.0
    assert begin(tmp_path / "alone", *CAPPED[1:], "--max-seconds=30") == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")
    steps = len(rates(tmp_path / "run"))
    assert 20 < steps < 30
    out = capsys.readouterr().out
    assert re.search(rf"ended after \d+ of 30 s: {steps} steps, 0.3\d+ of 0.6 passes\n", out)


def test_a_machine_that_changes_its_speed_changes_what_the_schedule_goes_by(
    tmp_path, monkeypatch, clock
):
    """Of 24 s and 45 steps: at first 0.1 s a step, from step 20 on 2 s."""
    slow(monkeypatch, clock, "step", lambda i: 0.1 if i < 20 else 2.0)
    assert begin(tmp_path / "run", *CAPPED, "--max-seconds=24") == 0
    found = np.array(rates(tmp_path / "run"))
    assert 26 < len(found) < 32
    down = found[np.argmax(found) :]
    assert np.all(np.diff(down) <= 0) and found[-1] < 0.35 * found.max()


def test_a_pass_through_pairs_is_all_of_them(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(f"{i}\t{i % 7}\n" for i in range(100)))
    flags = "--task=seq2seq", "--sampler=uniform", "--block-size=4", "--max-passes=2"
    assert begin(tmp_path / "run", *flags) == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 60  # of 3 of 90 pairs
    assert "ended after 2 passes through the training data: 60 steps\n" in capsys.readouterr().out


@pytest.mark.parametrize("lora", [(), ("--lora-rank=2",)])
def test_fine_tuning_by_passes(tmp_path, lora):
    assert begin(tmp_path / "base") == 0
    flags = [f"--init-from={tmp_path / 'base'}", f"--data={tmp_path / 'text.txt'}", *lora]
    flags += ["--batch-size=30", "--gradient-accumulation-steps=1", "--max-passes=1"]
    assert train.main([*flags, f"--out-dir={tmp_path / 'run'}"]) == 0
    lines = metrics(tmp_path / "run")
    assert lines[0]["step"] == 0 and lines[-1]["step"] == 8  # 7.5


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            ["--max-iters=9", "--max-passes=2"],
            "error: max_iters is 9, but max_passes is 2, by which",
        ),
        (
            ["--lr-decay-iters=9", "--max-passes=2"],
            "error: lr_decay_iters is 9, but max_passes is 2",
        ),
        (["--max-passes=0"], "--max-passes is 0.0; it must be above 0"),
        (["--max-passes=nan"], "--max-passes is nan; it must be a number"),
        (["--epochs=3"], "use --max-passes N"),
    ],
)
def test_what_contradicts_passes_is_one_line(tmp_path, capsys, flags, told):
    assert told in refusal(capsys, train.main, [*flags, f"--out-dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_what_is_given_wins_over_the_limits_of_a_preset():
    quality = configs_of("quality")[1]
    assert (quality.max_passes, quality.max_seconds) == (16.0, 1800.0)
    more = configs_of("quality", max_seconds=60.0)[1]
    assert (more.max_passes, more.max_seconds) == (16.0, 60.0)
    fewer = configs_of("quality", max_passes=2)[1]
    assert (fewer.max_passes, fewer.max_seconds) == (2.0, 1800.0)
    assert configs_of("quick", max_passes=2)[1].max_seconds is None
    with pytest.raises(UserError, match="^max_iters is 9, but max_passes is 2, by which the run"):
        configs_of("quick", max_passes=2, max_iters=9)
    configs_of("quick", max_passes=0.01, warmup_iters=2000)  # a tenth of it is the warm-up


def test_a_run_that_is_over_by_passes_goes_on_if_it_is_given_more_of_them(
    tmp_path, monkeypatch, clock, capsys
):
    slow(monkeypatch, clock, "step", lambda i: 0.01)
    folder = tmp_path / "run"
    assert begin(folder, *CAPPED, "--max-seconds=100") == 0
    for flags, passes in ([], "0.6"), (["--max-seconds=200"], "0.6"), (["--max-passes=0.5"], "0.5"):
        error = refusal(capsys, resume, folder, *flags)
        assert error == (
            f"error: --resume: the run in {folder} is complete: it has made its {passes} passes "
            "through the training data; give a larger --max-passes to train on"
        )
    assert resume(folder, "--max-passes=0.8") == 0
    assert len(rates(folder)) == 60
    assert resume(folder, "--max-iters=62") == 0  # steps in place of both
    assert len(rates(folder)) == 62
    refusal(capsys, resume, folder, "--max-passes=0.8")
    assert resume(folder, "--max-passes=1") == 0
    assert len(rates(folder)) == 75


def test_a_last_evaluation_is_no_end_where_passes_are_added(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 14, owner=AdamW)
        assert begin(tmp_path / "run", "--max-passes=0.2") == 130
    assert checkpoint.load(tmp_path / "run" / LAST).state["due"]
    assert resume(tmp_path / "run", "--max-passes=0.3") == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 23


def test_a_run_that_is_over_by_the_clock_goes_on_if_it_is_given_more_time(
    tmp_path, monkeypatch, clock, capsys
):
    slow(monkeypatch, clock, "step", lambda i: 1.0)
    folder = tmp_path / "run"
    assert begin(folder, *CAPPED, "--max-seconds=20") == 0
    for flags in ([], ["--max-passes=2"]):
        error = refusal(capsys, resume, folder, *flags)
        assert re.search(r"has used \d+\.\d s of its 20 s; give a larger --max-seconds to", error)
    clock.now += 1000.0
    assert resume(folder, "--max-seconds=200") == 0
    assert len(rates(folder)) == 45


def test_passes_are_those_of_all_batches_where_these_change_their_size(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 10)
        assert begin(tmp_path / "run", "--max-passes=0.2", "--weight-decay=auto") == 130
    assert resume(tmp_path / "run", "--batch-size=1") == 0
    last = metrics(tmp_path / "run")[-1]
    assert last["step"] == 10 + 15 and last["tokens"] == 45 * 8
    assert last["weight_decay"] == pytest.approx(weight_decay(0.2, 1 / WINDOWS, 0.01))


def test_without_a_clock_weight_decay_is_whole_from_the_first_step(tmp_path):
    flags = "--weight-decay=auto", "--log-interval=1", "--batch-size=5"
    assert begin(tmp_path / "run", "--max-passes=0.2", *flags) == 0
    found = [line["weight_decay"] for line in metrics(tmp_path / "run")]
    assert found == [weight_decay(0.2, 5 / WINDOWS, 0.01)] * 9


def test_passes_are_those_through_the_data_that_a_run_goes_on_with(tmp_path, capsys):
    """30 steps of 225 rows, which of others are fewer passes, or more."""
    folder, other = tmp_path / "run", tmp_path / "other.txt"
    assert begin(folder, "--max-passes=0.4", "--min-lr=0") == 0
    saved = (folder / LAST).read_bytes()
    other.write_text(TEXT[:500])  # 0.8 passes of 57 are 16 steps, of 225 they were 60
    error = refusal(capsys, resume, folder, "--max-passes=0.8", f"--data={other}")
    assert error.startswith(
        f"error: --resume: the run in {folder} is complete: it has made its 0.8"
    )
    assert (folder / LAST).read_bytes() == saved
    other.write_text(TEXT * 2)
    assert resume(folder, "--max-passes=0.5", f"--data={other}", "--dry-run") is None
    assert "0.5 passes through the training data\n" in capsys.readouterr().out
    assert resume(folder, f"--data={other}") == 0
    lines = metrics(folder)
    assert lines[-1]["step"] == 60 and lines[-1]["learning_rate"] < 0.001
    assert "the learning rate goes up again, from 2.7e-05 to 0.005" in capsys.readouterr().err


def test_a_run_whose_data_were_not_counted_is_complete_by_its_passes(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert begin(folder, "--max-iters=40") == 0
    state_of = resuming.state_of

    def without(*args):
        state = state_of(*args)
        state.data_rows = None  # as in older checkpoints
        return state

    monkeypatch.setattr(resuming, "state_of", without)
    error = refusal(capsys, resume, folder, "--max-passes=0.5")
    assert "is complete: it has made its 0.5 passes through the training data; give a" in error
    assert resume(folder, "--max-passes=0.6") == 0
    assert metrics(folder)[-1]["step"] == 45


@pytest.mark.parametrize(
    "flags, steps", [(["--max-passes=0.1"], 15), (["--max-iters=7"], 15), ([], 30)]
)
def test_a_last_evaluation_is_the_end_where_the_new_limits_are_used_up(
    tmp_path, monkeypatch, flags, steps
):
    with monkeypatch.context() as patch:
        interrupt(patch, 14, owner=AdamW)
        assert begin(tmp_path / "run", "--max-passes=0.2") == 130
    if not flags:  # other data, of which the passes have hardly begun
        (tmp_path / "other.txt").write_text(TEXT * 2)
        flags = [f"--data={tmp_path / 'other.txt'}"]
    assert resume(tmp_path / "run", *flags) == 0
    last = metrics(tmp_path / "run")[-1]
    assert last["step"] == steps and "val_loss" in last
    assert checkpoint.load(tmp_path / "run" / LAST).state["over"]


def test_a_length_among_the_flags_wins_over_that_of_a_file(tmp_path):
    path = tmp_path / "run.toml"
    config = f"--config={path}"

    def lengths(*flags):
        values = options(*parse([config, *flags]))
        return values["max_iters"], values["max_passes"], values["max_seconds"]

    path.write_text("max_iters = 500\nlr_decay_iters = 400")
    quick = configs_of("quick")[1].max_iters
    assert lengths() == (500, None, None)
    assert lengths("--max-passes=3") == (quick, 3.0, None)
    assert lengths("--max-seconds=3") == (quick, None, 3.0)
    path.write_text("max_passes = 2\nmax_seconds = 60")
    assert lengths("--max-iters=9") == (9, None, None)
    assert lengths("--max-passes=3") == (quick, 3.0, 60.0)
    assert lengths("--max-seconds=3") == (quick, 2.0, 3.0)
    with pytest.raises(UserError, match="^max_iters is 9, but max_passes is 2, by which the run"):
        lengths("--max-iters=9", "--max-passes=2")
    path.write_text("max_passes = 2\nmax_iters = 9")
    for flags in ([], ["--max-iters=3"]):
        with pytest.raises(UserError, match=f"^--config {path}: max_iters is 9, but max_passes is"):
            lengths(*flags)


def test_a_learning_rate_that_rises_with_the_passes_is_said(tmp_path, capsys):
    flags = "--max-passes=0.2", "--min-lr=0"
    assert begin(tmp_path / "run", *flags) == 0
    capsys.readouterr()
    assert resume(tmp_path / "run", "--max-passes=0.4") == 0
    err = capsys.readouterr().err
    assert re.search(r"the learning rate goes up again, .*: its decay now ends at step 30\n", err)


def test_a_line_and_the_bar_tell_both_limits(tmp_path, monkeypatch, capsys, clock):
    now = [0.0]
    monkeypatch.setattr("minigpt.train.progress.time.monotonic", lambda: now[0])
    slow(monkeypatch, clock, "step", lambda i: now.__setitem__(0, now[0] + 1.0) or 0.1)
    assert begin(tmp_path / "run", *CAPPED, "--max-seconds=90") == 0
    pattern = r"^step 10 of 45, \d of 90 s, loss \d\.\d{4}, [\d,]+ tokens/s, 0:35 left$"
    assert re.search(pattern, capsys.readouterr().err, re.MULTILINE)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert begin(tmp_path / "bar", *CAPPED, "--max-seconds=90") == 0
    err = capsys.readouterr().err
    assert re.search(r"100%\|\S+\| step 45 of 45, \d+ of 90 s, \d\d:\d\d, 00:00 left, loss \d", err)


def test_a_report_says_no_number_of_steps_that_nobody_asked_for(tmp_path):
    from minigpt.report.run_page import figures

    run = types.SimpleNamespace(
        checkpoint=types.SimpleNamespace(state={}), lines=[{"step": 15}], train={"max_iters": 1400}
    )
    assert figures(run)["steps"] == "15 of 1,400"
    run.train["max_passes"] = 0.2
    assert figures(run)["steps"] == "15"


def test_the_size_of_tiny_shakespeare_is_known_without_it():
    """1,115,394 characters, nine tenths of which are for training."""
    assert TASKS["text"].builtin_sizes["train"] == int(0.9 * 1_115_394)
    assert TASKS["text"].eval_size(range(1_003_854), configs_of("quality")[0])[0] == 3922
    assert len(TEXT) == 2000
