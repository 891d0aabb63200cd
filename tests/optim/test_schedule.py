import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.optim.schedule import (
    MOST,
    SHAPES,
    budget_used,
    decay,
    learning_rate,
    weight_decay,
)


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3
    min_lr: float = 1e-4
    warmup_iters: int = 10
    lr_decay_iters: int = 50
    lr_schedule: str = "cosine"
    lr_decay_fraction: float = 0.4


COSINE, WSD = Config(), Config(lr_schedule="wsd")


def rates(config, n):
    return [learning_rate(step, config) for step in range(n)]


def test_a_cosine_is_that_of_nanogpt():
    found = rates(COSINE, 60)
    np.testing.assert_allclose(found[:10], [1e-3 * (i + 1) / 11 for i in range(10)], rtol=1e-15)
    assert found[10] == 1e-3 and found[50:] == [1e-4] * 10
    np.testing.assert_allclose(found[30], (1e-3 + 1e-4) / 2, rtol=1e-12)
    for i in range(10, 51):
        expected = 1e-4 + 9e-4 * math.cos(math.pi * (i - 10) / 80) ** 2
        np.testing.assert_allclose(found[i], expected, rtol=1e-12)


def test_a_plateau_ends_in_a_line_over_the_last_share():
    found = rates(WSD, 60)
    assert found[:10] == rates(COSINE, 10)
    assert found[10:35] == [1e-3] * 25 and found[50:] == [1e-4] * 10  # 0.4 of 40 steps is 16
    np.testing.assert_allclose(np.diff(found[34:51]), -9e-4 / 16, rtol=1e-9)


def test_a_share_of_one_is_a_line_and_of_zero_a_plateau():
    line = rates(replace(WSD, lr_decay_fraction=1.0), 60)
    np.testing.assert_allclose(np.diff(line[10:51]), -9e-4 / 40, rtol=1e-9)
    flat = rates(replace(WSD, lr_decay_fraction=0.0), 60)
    assert flat[10:50] == [1e-3] * 40 and flat[50:] == [1e-4] * 10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup, last", [(0, 0), (0, 1), (5, 5), (5, 3)])
def test_a_schedule_without_room_for_its_fall(shape, warmup, last):
    config = Config(1.0, 0.1, warmup, last, shape)
    found = rates(config, 9)
    assert all(0.1 <= rate <= 1 for rate in found) and found[-1] == 0.1
    by_clock = [learning_rate(step, config, 1.0) for step in range(9)]
    assert by_clock == [0.1] * 9


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_step_still_moves(shape):
    config = replace(COSINE, lr_schedule=shape, min_lr=0.0)
    assert 0 < learning_rate(49, config) < 0.07 * config.learning_rate


@pytest.mark.parametrize("shape", SHAPES)
def test_by_the_clock_is_by_steps_where_steps_take_equally_long(shape):
    config = replace(COSINE, lr_schedule=shape, warmup_iters=0)
    by_clock = [learning_rate(i, config, budget_used(0.3 * i, 17, 2)) for i in range(60)]
    np.testing.assert_allclose(by_clock, rates(config, 60), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_by_the_clock_the_first_steps_warm_up_and_the_end_is_in_time(shape):
    config = replace(COSINE, lr_schedule=shape)
    first = [learning_rate(step, config, 0.0) for step in range(12)]
    assert first == [*rates(config, 10), 1e-3, 1e-3]
    late = [learning_rate(step, config, 0.999) for step in range(12)]
    assert max(late) < 1.03e-4 and min(late) > 1e-4
    soon = [learning_rate(0, config, fraction) for fraction in (0.0, 0.05, 0.1)]
    np.testing.assert_allclose(soon, [1e-3 / 11, 5e-4, 1e-3], rtol=0.03)


@given(st.sampled_from(SHAPES), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_decay_falls_from_one_to_zero(shape, one, other, share):
    early, late = sorted((one, other))
    assert 1 >= decay(early, shape, share) >= decay(late, shape, share) >= 0
    assert decay(0.0, shape, share) == 1 and decay(1.0, shape, share) == 0


def test_the_budget_leaves_time_for_what_comes_after_the_last_step():
    assert budget_used(0, 60, 10) == 0
    assert budget_used(25, 60, 10) == 0.5
    assert [budget_used(seconds, 60, 10) for seconds in (50, 51, 1e9)] == [1, 1, 1]
    assert [budget_used(0, 60, reserve) for reserve in (60, 61, math.inf)] == [1, 1, 1]


def test_a_resumed_run_goes_on_where_its_seconds_were():
    durations = np.random.default_rng(1).uniform(0.1, 0.4, 200)
    seconds = np.cumsum(durations)
    whole = [learning_rate(i, WSD, budget_used(t, 60, 5)) for i, t in enumerate(seconds)]
    saved = float(seconds[99])
    again = saved + np.cumsum(durations[100:])
    rest = [learning_rate(100 + i, WSD, budget_used(t, 60, 5)) for i, t in enumerate(again)]
    np.testing.assert_allclose(rest, whole[100:], rtol=1e-9)


def test_weight_decay_grows_with_the_passes_and_forgets_by_passes_not_steps():
    decay = weight_decay(8.0, 1 / 245, 6e-3)
    assert decay == pytest.approx(0.25 * 8**0.5 / 245 / 6e-3)
    assert weight_decay(0.0, 1 / 245, 6e-3) == 0
    assert weight_decay(32.0, 1 / 245, 6e-3) == weight_decay(24.0, 1 / 245, 6e-3)
    assert weight_decay(2.0, 1 / 245, 6e-3) == pytest.approx(decay / 2)
    assert weight_decay(8.0, 2 / 245, 6e-3) == pytest.approx(2 * decay)  # larger steps, fewer
    assert weight_decay(8.0, 1 / 245, 3e-3) == pytest.approx(2 * decay)
    assert weight_decay(99.0, 1 / 245, 6e-3) == pytest.approx(3**0.5 * decay)


def test_weight_decay_leaves_a_model_of_a_tiny_text_alive():
    assert weight_decay(5000.0, 3.0, 6e-3) == MOST / 6e-3
    assert weight_decay(8.0, 1 / 245, 0.0) == 0
