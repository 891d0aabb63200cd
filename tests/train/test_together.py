"""Options that only make sense together: learning rates, warm-up, steps, sizes of a batch."""

import contextlib
import io
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from minigpt.data.batches import SAMPLERS
from minigpt.errors import UserError
from minigpt.files import BEST, LAST
from minigpt.model import checkpoint
from minigpt.optim.schedule import SHAPES, describe
from minigpt.sample import tasks
from minigpt.train import __main__ as train
from minigpt.train.config import OPTIMIZERS, TrainConfig
from minigpt.train.presets import PRESETS, configs_of
from tests.tools.training import TEXT, begin, metrics, refusal, resume

pytestmark = pytest.mark.usefixtures("no_picture")


def rates(folder):
    """The learning rates in the metrics."""
    return [line["learning_rate"] for line in metrics(folder)]


@pytest.mark.report("1")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_lower_learning_rate_lowers_its_floor(tmp_path, shape):
    flags = ("--learning-rate=1e-5", f"--lr-schedule={shape}", "--log-interval=1")
    assert begin(tmp_path / "run", *flags) == 0
    found = rates(tmp_path / "run")
    assert max(found) == found[2] == 1e-5 and found[2:] == sorted(found[2:], reverse=True)
    assert found[-1] < 0.4 * max(found)
    assert resume(tmp_path / "run", "--max-iters=24", "--learning-rate=1e-6") == 0
    assert max(rates(tmp_path / "run")[12:]) <= 1e-6


@pytest.mark.report("1")
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_a_lower_learning_rate(preset):
    config = configs_of(preset)[1]
    lower = configs_of(preset, learning_rate=config.learning_rate / 8)[1]
    assert lower.min_lr == config.min_lr / 8
    assert configs_of(preset, learning_rate=1.0)[1].min_lr == config.min_lr
    assert configs_of(preset, learning_rate=1e-4, min_lr=1e-4)[1].min_lr == 1e-4


@pytest.mark.report("1", "19")
@pytest.mark.parametrize(
    "flags, told",
    [
        (["--learning-rate=1e-5", "--min-lr=1e-4"], "min_lr is 0.0001, above learning_rate, which"),
        (["--min-lr=1"], "give a min_lr of at most 0.01"),
        (["--warmup-iters=13"], "warmup_iters is 13, but max_iters is 12: the learning rate would"),
        (["--warmup-iters=8", "--lr-decay-iters=4"], "but lr_decay_iters is 4: the learning rate"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(tmp_path, capsys, flags, told):
    assert told in refusal(capsys, begin, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
    assert begin(tmp_path / "run") == 0
    assert told in refusal(capsys, resume, tmp_path / "run", *flags)


@pytest.mark.report("19")
def test_a_warm_up_that_does_not_fit_becomes_a_tenth_of_the_run(tmp_path, capsys):
    for preset in PRESETS:
        config = configs_of(preset, max_iters=20)[1]
        assert config.warmup_iters == (2 if PRESETS[preset].get("warmup_iters", 20) else 0)
    assert configs_of("quick", max_iters=40)[1].warmup_iters == 20
    assert configs_of("quick", max_iters=20, warmup_iters=20)[1].warmup_iters == 20
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    small = ("--n-layer=1", "--n-embd=8", "--block-size=8", "--log-interval=1")
    train.main([f"--data={text}", f"--out-dir={tmp_path / 'run'}", "--max-iters=10", *small])
    assert max(rates(tmp_path / "run")) == 0.01
    said = "learning rate: 0.01 after 1 step of warm-up, down to 0 in a line, over the last 50%\n"
    assert said in capsys.readouterr().out


def test_the_schedule_in_words():
    def words(**options):
        return describe(TrainConfig(max_iters=1000, learning_rate=1e-3, **options))

    assert words(warmup_iters=0, min_lr=1e-3) == "0.001, constant"
    assert words(warmup_iters=100, lr_decay_fraction=0.0).endswith("100 steps of warm-up, constant")
    assert words(warmup_iters=0, lr_schedule="cosine", min_lr=1e-4, lr_decay_iters=2000) == (
        "0.001, down to 0.0001 by a cosine, at step 2,000"
    )


@pytest.mark.report("19")
def test_a_learning_rate_that_rises_because_a_run_is_longer_is_said(tmp_path, capsys):
    assert begin(tmp_path / "run", "--min-lr=0") == 0
    capsys.readouterr()
    assert resume(tmp_path / "run", "--max-iters=40") == 0
    assert "note: the learning rate goes up again, from " in capsys.readouterr().err
    assert resume(tmp_path / "run", "--max-iters=41") == 0


def windows(folder, monkeypatch, *flags):
    """Where the batches of a resumed run begin, by the windows' first four tokens."""
    batches, right = [], tasks.batches.random_batch

    def watched(*args):
        found = right(*args)
        batches.append(found[0])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(tasks.batches, "random_batch", watched)
        assert resume(folder, *flags) == 0
    return [tuple(row) for x in batches for row in x.tolist()]


@pytest.mark.report("9")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_data_go_on_where_they_were_when_a_batch_changes_its_size(tmp_path, monkeypatch, sampler):
    letters = np.random.default_rng(0).integers(97, 123, 2000)  # no window comes twice
    (tmp_path / "text.txt").write_bytes(bytes(letters.tolist()))
    flags = (f"--sampler={sampler}", "--gradient-accumulation-steps=4")
    assert begin(tmp_path / "run", *flags) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    usual = windows(tmp_path / "same", monkeypatch, "--max-iters=16")
    assert len(usual) == 4 * 4 * 3
    changed = windows(
        tmp_path / "run", monkeypatch, "--max-iters=16", "--gradient-accumulation-steps=1"
    )
    assert changed == usual[: 4 * 3]
    smaller = windows(tmp_path / "run", monkeypatch, "--max-iters=22", "--batch-size=1")
    if sampler == "weyl":  # a window after the other, whatever the sizes
        assert changed + smaller == usual[: 4 * 3 + 6]
    again = windows(tmp_path / "run", monkeypatch, "--max-iters=26", "--batch-size=3")
    assert not {*again} & {*changed}
    assert checkpoint.load(tmp_path / "run" / LAST).state["ahead"] == [12 * 3, 12 * 9 - 6 * 2]


@pytest.mark.report("29")
def test_a_record_without_its_file_is_no_record(tmp_path, capsys):
    assert begin(tmp_path / "run") == 0
    (tmp_path / "run" / BEST).unlink()
    capsys.readouterr()
    assert resume(tmp_path / "run", "--max-iters=16", "--learning-rate=0", "--min-lr=0") == 0
    out, err = capsys.readouterr()
    assert f"note: {tmp_path / 'run' / BEST} is missing: the next evaluation begins" in err
    assert "(best, step 16)" in out
    assert checkpoint.load(tmp_path / "run" / BEST).state["step"] == 16


@pytest.mark.report("29")
def test_the_best_of_another_text_is_not_sampled(tmp_path, capsys):
    assert begin(tmp_path / "run") == 0
    assert checkpoint.find_checkpoint(tmp_path / "run") == tmp_path / "run" / BEST
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    last = checkpoint.load(tmp_path / "run" / LAST)
    last.state["data_sha256"] = "0" * 64  # as a run has it that was stopped before it evaluated
    checkpoint.save(
        tmp_path / "run" / LAST,
        last.params,
        last.config,
        tokenizer=last.tokenizer,
        state=last.state,
    )
    assert checkpoint.find_checkpoint(tmp_path / "run") == tmp_path / "run" / LAST
    (tmp_path / "run" / BEST).write_bytes(b"damaged")
    assert checkpoint.find_checkpoint(tmp_path / "run") == tmp_path / "run" / BEST  # which says so


# Options of a schedule, small enough for a run of a moment.
OPTIONS = {
    "preset": st.sampled_from([*PRESETS]),
    "max_iters": st.integers(1, 12),
    "warmup_iters": st.integers(0, 14),
    "lr_decay_iters": st.integers(0, 14),
    "learning_rate": st.sampled_from([0.0, 1e-6, 1e-4, 0.01]),
    "min_lr": st.sampled_from([0.0, 1e-5, 1e-4]),
    "lr_schedule": st.sampled_from(SHAPES),
    "lr_decay_fraction": st.sampled_from([0.0, 0.3, 1.0]),
    "optimizer": st.sampled_from([*OPTIMIZERS]),
    "sampler": st.sampled_from([*SAMPLERS]),
    "batch_size": st.integers(1, 5),
    "gradient_accumulation_steps": st.integers(1, 3),
    "threads": st.integers(1, 3),
    "eval_interval": st.integers(1, 15),
    "eval_tokens": st.integers(0, 300),
    "weight_decay": st.sampled_from([0.0, 0.1, 2.0, "auto"]),
    "grad_clip": st.sampled_from([0.0, 1.0]),
    "bigram": st.booleans(),
    "rotary": st.booleans(),
    "bias": st.booleans(),
    "tie_head": st.booleans(),
    "head_bias": st.booleans(),
    "dropout": st.sampled_from([0.0, 0.5]),
    "n_head": st.sampled_from([1, 2, 3]),
}
SMALL = {"n_layer": 1, "n_embd": 8, "block_size": 8, "n_head": 2, "log_interval": 1}
DEFAULTS = {"gradient_accumulation_steps": 1, "batch_size": 2, "max_iters": 6, "task": "text"}


def check_run(folder, options):
    """Train as the options say: it is refused in one line, or what it does is what was asked.

    Returns
    -------
    trained : bool
    """
    text = folder / "text.txt"
    text.write_text(TEXT)
    given = {**DEFAULTS, **SMALL, **options}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            run = [f"--data={text}", f"--out-dir={folder / 'run'}", "--overwrite", *flags]
            assert train.main(run) == 0
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return False
    check_rates(configs_of(**given)[1], options, folder / "run", said.getvalue())
    return True


def check_rates(config, options, folder, said):
    """Check the learning rates of a run against its TrainConfig and what it said on the way."""
    lines = [line for line in metrics(folder) if "learning_rate" in line]
    found = [line["learning_rate"] for line in lines]
    assert any("val_loss" in line for line in lines)
    assert len(found) == config.max_iters or (config.max_seconds and found)
    assert max(found) <= config.learning_rate and config.min_lr <= config.learning_rate
    assert config.learning_rate == options.get("learning_rate", config.learning_rate)
    warmup = int(np.argmax(found)) if config.max_seconds else config.warmup_iters
    after = found[warmup:]
    assert after == sorted(after, reverse=True)  # once down, it stays down
    down = config.learning_rate - config.min_lr
    missing = found[-1] - config.min_lr > 0.6 * down and config.lr_decay_fraction and len(after) > 6
    if config.max_seconds:
        assert not missing or "the time was enough for" in said
    elif "lr_decay_iters" not in options:
        assert not missing


@pytest.mark.report("1", "19")
@given(st.fixed_dictionaries({}, optional=OPTIONS))
def test_no_options_together_end_in_silent_nonsense(tmp_path_factory, options):
    folder = tmp_path_factory.getbasetemp() / "together"
    folder.mkdir(exist_ok=True)
    check_run(folder, options)


def try_options(seconds):
    """Try options together, now with wall-clock budgets, too, for so many seconds.

    Returns
    -------
    trained, refused : int
    """
    choices = {**OPTIONS, "max_seconds": st.sampled_from([1.0, 1.6])}
    end, number, counts = time.monotonic() + seconds, 0, {True: 0, False: 0}
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            number += 1

            @seed(number)
            @settings(max_examples=20, deadline=None, database=None)
            @given(st.fixed_dictionaries({}, optional=choices))
            def attempt(options):
                if time.monotonic() < end:
                    counts[check_run(Path(folder), options)] += 1

            attempt()
    return counts[True], counts[False]


@pytest.mark.report("29")
def test_losses_of_another_part_of_the_split_do_not_compare(tmp_path, capsys):
    assert begin(tmp_path / "run", "--eval-tokens=0") == 0
    capsys.readouterr()
    assert resume(tmp_path / "run", "--max-iters=16", "--eval-tokens=100") == 0
    assert "another evaluation: the next evaluation begins a new record" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "run" / LAST).state
    assert (state["eval_targets"], state["best_step"]) == (100, 16)
    assert resume(tmp_path / "run", "--max-iters=20") == 0
    assert "a new record" not in capsys.readouterr().err
