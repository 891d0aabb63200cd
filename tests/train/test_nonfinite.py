"""Losses and gradients that are not finite: the step is skipped, and after a few the run ends."""

import json
import math

import numpy as np
import pytest

from minigpt import cli
from minigpt.errors import UserError
from minigpt.files import LAST, METRICS
from minigpt.model import checkpoint
from minigpt.optim.clipping import STEPS
from minigpt.optim.gradients import sum_of_squares
from minigpt.train.nonfinite import LIMIT, Skips, first_in_evaluation, first_in_step
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.faults.numbers import not_json
from tests.tools.stepping import IDS, dates, trainer
from tests.tools.training import begin, metrics, refusal, resume

pytestmark = pytest.mark.usefixtures("no_picture")
NAN, INF = math.nan, math.inf


@pytest.fixture
def spoilt(monkeypatch):
    """Let losses and gradients of steps, 0 being the first, be what is put here: {step: (..)}."""
    steps, now = {}, [None]
    step, gradients = Trainer.step, Trainer.gradients

    def note(self, split, i, *args):
        now[0] = steps.get(i)
        return step(self, split, i, *args)

    def spoil_loss(self, *args, **kwargs):
        loss = gradients(self, *args, **kwargs)
        return now[0][0] if now[0] else loss

    def spoil_norm(g):
        return sum_of_squares(g) * (now[0][1] if now[0] else 1.0)

    monkeypatch.setattr(Trainer, "step", note)
    monkeypatch.setattr(Trainer, "gradients", spoil_loss)
    monkeypatch.setattr("minigpt.optim.adamw.sum_of_squares", spoil_norm)
    return steps


@pytest.mark.parametrize("bad", [(NAN, NAN), (INF, 1.0), (3.0, INF)])
def test_a_step_that_is_not_finite_is_skipped_and_told(tmp_path, capsys, spoilt, bad):
    spoilt.update({2: bad, 3: bad, 6: bad})
    assert begin(tmp_path / "run", "--log-interval=1") == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in told] == [f"step {i} is skipped" for i in (3, 4, 7)]
    what = f"the loss is {bad[0]}" if bad[0] != 3.0 else "the norm of the gradient is inf"
    assert [line for line in told if not line.endswith(what)] == []
    lines = metrics(tmp_path / "run")
    expected = None if bad[0] != 3.0 else 3.0
    assert [line["train_loss"] for line in lines if line["step"] in (3, 4, 7)] == [expected] * 3
    assert [line["step"] for line in lines if line["grad_norm"] is None] == [3, 4, 7]
    assert checkpoint.load(tmp_path / "run" / LAST).state["optimizer"][STEPS] == 9


def test_a_bad_loss_is_left_out_of_the_mean_and_of_all_files(tmp_path, spoilt):
    assert begin(tmp_path / "good", "--log-interval=1", "--max-iters=4") == 0
    spoilt[3] = (NAN, NAN)
    assert begin(tmp_path / "run", "--log-interval=4", "--max-iters=4") == 0
    good = [line["train_loss"] for line in metrics(tmp_path / "good")]
    assert metrics(tmp_path / "run")[-1]["train_loss"] == pytest.approx(np.mean(good[:3]))
    assert not_json(tmp_path / "run") is None


def test_a_few_in_a_row_end_the_run_with_the_last_checkpoint(tmp_path, capsys, spoilt):
    spoilt.update(dict.fromkeys(range(5, 12), (NAN, NAN)))
    error = refusal_after(capsys, LIMIT - 1, begin, tmp_path / "run")
    assert error == (
        "error: training has diverged: at step 10 the loss is nan, and 5 steps in a row were "
        "skipped; first non-finite tensor: the loss; resume from "
        f"{tmp_path / 'run' / LAST} (step 8) by --resume with a lower --learning-rate"
    )
    state = checkpoint.load(tmp_path / "run" / LAST).state
    assert (state["step"], state["optimizer"][STEPS], state["skips_in_a_row"]) == (8, 5, 3)
    error = refusal_after(capsys, 1, resume, tmp_path / "run")  # as if it had not been stopped
    assert "at step 10 the loss is nan, and 5 steps in a row" in error
    spoilt.clear()
    assert resume(tmp_path / "run", "--learning-rate=0.001") == 0


def refusal_after(capsys, n, *call):
    """The last line that a program says before it exits with code 2; n lines are before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: call[0](*call[1:]))
    *before, last = capsys.readouterr().err.splitlines()
    assert leaving.value.code == 2 and len(before) == n
    return last


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path, capsys, spoilt):
    spoilt.update(dict.fromkeys(range(12), (NAN, NAN)))
    error = refusal_after(capsys, LIMIT - 1, begin, tmp_path / "run", "--eval-interval=100")
    assert error.endswith("; train again with a lower --learning-rate")
    assert not (tmp_path / "run" / LAST).exists()


def test_a_resumed_run_with_a_bad_step_is_the_uninterrupted_one(tmp_path, spoilt):
    spoilt.update({2: (NAN, NAN), 5: (NAN, NAN)})
    flags = ("--lr-decay-iters=12", "--log-interval=4")
    assert begin(tmp_path / "whole", *flags) == 0
    assert begin(tmp_path / "parts", *flags, "--max-iters=3") == 0
    assert resume(tmp_path / "parts", "--max-iters=12") == 0
    lines = [line for line in metrics(tmp_path / "parts") if line["step"] != 3]
    assert lines == metrics(tmp_path / "whole")
    one, other = (checkpoint.load(tmp_path / run / LAST) for run in ("whole", "parts"))
    np.testing.assert_array_equal(one.params.flat, other.params.flat)


def test_what_counts_as_in_a_row():
    skips = Skips()
    for taken, skipped, bad in [(3, 0, 0), (3, 2, 2), (3, 2, 2), (4, 9, 0), (4, 13, 4), (5, 13, 0)]:
        assert skips.count((taken, skipped, 1.0), 9, 1.0, 1.0) is None
        assert skips.in_a_row == bad
    assert "steps in a row were skipped" in skips.count((5, 13 + LIMIT, 1.0), 9, 1.0, 1.0)


def test_in_float16_only_what_no_smaller_loss_scale_would_save_counts():
    skips = Skips()
    skips.begin((0, 0, 8.0))
    for skipped, scale, bad in [(1, 4.0, 0), (3, 1.0, 0), (5, 1.0, 2)]:
        assert skips.count((0, skipped, scale), 9, 1.0, INF) is None
        assert skips.in_a_row == bad and bool(skips.fault) == (bad > 0)
    skips.begin((0, 5, 4.0))
    skips.in_a_row = 0
    skips.count((0, 10, 1.0), 9, 1.0, INF)  # two halvings, then three
    assert skips.in_a_row == 3


@pytest.mark.cupy
@pytest.mark.parametrize(
    "weights, first",
    [
        ({"wte": NAN}, "the weights wte"),
        ({"ln_f.w": INF}, "the weights ln_f.w"),
        ({"wte": 3e38, "wpe": 3e38}, "the output of wte"),
        ({"h.1.mlp.c_fc.w": 3e38}, "the output of h.1"),
        ({"ln_f.w": 3e38}, "the output of ln_f"),
        ({"ln_f.w": 1e37}, "the output of the head"),
    ],
)
def test_the_first_layer_that_went_bad(xp, weights, first):
    with Workers(1) as workers, np.errstate(all="ignore"):
        this, split = trainer(xp, workers), xp.asarray(IDS)
        leaves = dict(this.params.leaves())
        leaves["wte"] *= 1000.0
        for name, number in weights.items():
            leaves[name][...] = number
        this.step(split, 3)
        assert first_in_step(this, split, 3) == first
        assert first_in_evaluation(this, split) == first


@pytest.mark.cupy
def test_the_first_gradient_that_went_bad(xp):
    with Workers(1) as workers, np.errstate(all="ignore"):
        this, split = trainer(xp, workers), xp.asarray(IDS)
        this.step(split, 3)
        grads = dict(this.grads.leaves())
        assert first_in_step(this, split, 3) == "the loss"
        grads["h.0.attn.c_proj.w"][...] = 1e30
        assert first_in_step(this, split, 3).endswith("is that of h.0.attn.c_proj.w")
        for name in ("wte", "h.0.ln_1.w", "h.0.mlp.c_fc.w", "h.1.attn.c_attn.w"):
            grads[name][...] = NAN
            assert first_in_step(this, split, 3) == f"the gradient of {name}"


@pytest.mark.parametrize(
    "name, first",
    [
        pytest.param("encoder.h.0.mlp.c_fc.w", "encoder.h.0", marks=pytest.mark.slow),
        ("encoder.ln_f.w", "encoder.ln_f"),
        pytest.param("h.0.cross.c_q.w", "h.0", marks=pytest.mark.slow),
    ],
)
def test_the_first_layer_of_an_encoder_decoder(name, first):
    config, pairs = dates()
    with Workers(1) as workers, np.errstate(all="ignore"):
        this = trainer(np, workers, config)
        before = this.params.flat.copy()
        dict(this.params.leaves())[name][...] = 3e38
        this.step(pairs, 0)
        assert first_in_step(this, pairs, 0) == f"the output of {first}"
        this.params.flat[...] = before
        this.step(pairs, 0)
        for gradient in ("encoder.wpe", "encoder.h.0.ln_2.w", "wpe", "ln_f.w"):
            dict(this.grads.leaves())[gradient][...] = NAN
            assert first_in_step(this, pairs, 0) == f"the gradient of {gradient}"


@pytest.mark.parametrize("which", ["params", "m", "v"])
@pytest.mark.parametrize("number", [NAN, INF])
def test_no_number_that_is_not_finite_is_saved(folder, which, number):
    before, loaded = (folder / LAST).read_bytes(), checkpoint.load(folder / LAST)
    moments = type("", (), loaded.optimizer_arrays)
    array = {"params": loaded.params, **loaded.optimizer_arrays}[which]
    array.flat[7] = number
    with pytest.raises(UserError, match="not saved, since .* holds numbers that are not finite"):
        checkpoint.save(
            folder / LAST,
            loaded.params,
            loaded.config,
            tokenizer=loaded.tokenizer,
            state=loaded.state,
            optimizer=moments,
        )
    assert (folder / LAST).read_bytes() == before


def test_training_that_diverges_keeps_the_last_checkpoint(folder, tmp_path, capsys):
    before = (folder / LAST).read_bytes()
    flags = ("--learning-rate=1e18", "--min-lr=1e18", "--max-iters=40", "--eval-interval=100")
    error = refusal_after(capsys, LIMIT, resume, folder, *flags)  # a note says that the rate rises
    assert "diverged: at step 10 the loss is nan, and 5 steps in a row were skipped" in error
    assert "; first non-finite tensor: the output of h.0; resume from " in error
    assert (folder / LAST).read_bytes() == before
    error = refusal_after(capsys, LIMIT - 1, begin, tmp_path / "other", *flags)
    assert error.endswith("; train again with a lower --learning-rate")


def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda self, *_: NAN)
    error = refusal(capsys, begin, tmp_path / "run")
    assert "the validation loss after step 4 is nan; first non-finite tensor: " in error


def test_metrics_are_json_that_everybody_reads(tmp_path, spoilt):
    spoilt.update({0: (NAN, NAN), 1: (INF, 1.0)})
    assert begin(tmp_path / "run", "--log-interval=1") == 0

    def refuse(constant):
        raise ValueError(constant)

    for line in (tmp_path / "run" / METRICS).read_text().splitlines():
        json.loads(line, parse_constant=refuse)
