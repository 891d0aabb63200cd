"""Weight decay by the number of passes through the data that a run will have made."""

import numpy as np
import pytest

from minigpt.errors import UserError
from minigpt.files import LAST
from minigpt.model import checkpoint
from minigpt.optim.schedule import weight_decay
from minigpt.train.config import TrainConfig, check_options
from minigpt.train.presets import configs_of
from tests.tools.training import TEXT, begin, metrics, resume, same
from tests.train.test_resume import interrupt

pytestmark = pytest.mark.usefixtures("no_picture")

WINDOWS = -(-(int(0.9 * len(TEXT)) - 1) // 8)  # of a text's training part, side by side
STEP = 3 / WINDOWS  # passes of a step of 3 windows


def decays(folder):
    """The weight decays in the metrics of a run."""
    return [line["weight_decay"] for line in metrics(folder) if "weight_decay" in line]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_by_steps_has_one_weight_decay_and_the_bits_of_the_run_that_is_told_it(
    tmp_path, optimizer
):
    flags = "--gradient-accumulation-steps=2", f"--optimizer={optimizer}"
    assert begin(tmp_path / "found", "--weight-decay=auto", *flags) == 0
    expected = weight_decay(12 * 2 * STEP, 2 * STEP, 0.01)
    assert set(decays(tmp_path / "found")) == {expected} and expected > 0
    assert begin(tmp_path / "told", f"--weight-decay={expected!r}", *flags) == 0
    assert decays(tmp_path / "told") == []
    found, told = (checkpoint.load(tmp_path / name / LAST) for name in ("found", "told"))
    np.testing.assert_array_equal(found.params.flat, told.params.flat)
    assert begin(tmp_path / "none", "--weight-decay=0", *flags) == 0
    none = checkpoint.load(tmp_path / "none" / LAST)
    assert np.abs(found.params.flat - none.params.flat).max() > 1e-5


def test_a_run_that_is_resumed_decays_as_one_that_was_not_stopped(tmp_path, monkeypatch):
    assert begin(tmp_path / "whole", "--weight-decay=auto") == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        assert begin(tmp_path / "parts", "--weight-decay=auto") == 130
    assert resume(tmp_path / "parts") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    same(tmp_path / "parts", tmp_path / "whole", LAST)
    assert resume(tmp_path / "parts", "--max-iters=24", "--batch-size=6") == 0
    passes = 12 * STEP + 12 * 2 * STEP  # those before were half as large
    assert decays(tmp_path / "parts")[-1] == weight_decay(passes, 2 * STEP, 0.01)
    assert resume(tmp_path / "parts", "--max-iters=30", "--weight-decay=0.3") == 0
    assert decays(tmp_path / "parts")[-1] == weight_decay(passes, 2 * STEP, 0.01)  # none since


def test_passes_through_pairs_are_counted_in_pairs(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{i}\t{i % 7}\n" for i in range(100)))
    flags = "--task=seq2seq", "--sampler=uniform", "--block-size=4"
    assert begin(tmp_path / "run", *flags, "--weight-decay=auto") == 0
    assert set(decays(tmp_path / "run")) == {weight_decay(12 * 3 / 90, 3 / 90, 0.01)}


def test_quality_finds_its_weight_decay_and_one_that_is_given_wins():
    assert configs_of("quality")[1].weight_decay is None
    assert configs_of("quality", weight_decay=0.5)[1].weight_decay == 0.5
    assert configs_of("quick", weight_decay="auto")[1] == TrainConfig(weight_decay=None)
    assert check_options({"weight_decay": "auto"}) == {"weight_decay": None}
    for value in ("automatic", "", [0.1]):
        with pytest.raises(UserError, match="^weight_decay is .*; it must be a number or auto$"):
            check_options({"weight_decay": value})
    with pytest.raises(UserError, match="^learning_rate is 'auto'; it must be a number$"):
        check_options({"learning_rate": "auto"})
