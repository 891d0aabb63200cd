import dataclasses

import numpy as np
import pytest

from minigpt.data.batches import random_batch
from minigpt.model.gpt import loss_backward, loss_forward
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.optim.clipping import GRAD_NORM
from minigpt.optim.schedule import learning_rate
from minigpt.params import leaves
from minigpt.sample.evaluation import EVAL_TOKENS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.options import gpt_config, train_config

CONFIG = gpt_config(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.2)
TRAIN = train_config(batch_size=5, max_iters=20, warmup_iters=2, learning_rate=0.01)
IDS = np.random.default_rng(0).integers(0, 11, 200, dtype=np.int32)


def trainer(workers, train=TRAIN, config=CONFIG, dtype="float64"):
    return Trainer(init_params(config, 1337, np, dtype), config, train, np, workers)


def steps(threads, n=3, **options):
    """A Trainer after n steps, and what the steps returned."""
    with Workers(threads) as workers:
        this = trainer(workers, **options)
        return this, [this.step(IDS, step) for step in range(n)]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_are_those_of_the_whole_batch(batch_size, threads):
    x, y = random_batch(IDS, 1, 0, batch_size, CONFIG.block_size)
    rng = Rng.of(1, 2, 3)
    with Workers(threads) as workers:
        this = trainer(workers)
        loss = this.gradients(x, y, rng)
        this.optimizer.prepare(this.grads.flat, workers.ranges)
    expected, cache = loss_forward(x, y, this.params.tree, CONFIG, rng)
    grads = dict(leaves(loss_backward(1.0, cache)))
    assert loss == pytest.approx(float(expected), rel=1e-12)
    for name, grad in this.grads.leaves():
        np.testing.assert_allclose(grad, grads[name], rtol=1e-9, atol=1e-12)
    norm = sum((g * g).sum() for g in grads.values()) ** 0.5
    assert this.optimizer.state[GRAD_NORM] == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_agree_to_rounding_with_dropout_and_accumulation(threads):
    train = dataclasses.replace(TRAIN, gradient_accumulation_steps=2)
    alone, expected = steps(1, train=train)
    shared, came = steps(threads, train=train)
    np.testing.assert_allclose(came, expected, rtol=1e-9)
    np.testing.assert_allclose(shared.params.flat, alone.params.flat, rtol=0, atol=1e-7)
    # AdamW divides by sqrt(v): where a gradient is 0 but for rounding, that shows. Not so in m.
    np.testing.assert_allclose(
        shared.optimizer.m.flat, alone.optimizer.m.flat, rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_thread_count_always_gives_the_same_bits(threads):
    first, second = (steps(threads, dtype="float32") for _ in range(2))
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[0].params.flat, second[0].params.flat)


def test_accumulated_batches_are_the_mean_of_them():
    train = dataclasses.replace(TRAIN, gradient_accumulation_steps=3, grad_clip=0.0)
    config = dataclasses.replace(CONFIG, dropout=0.0)
    this, [(loss, norm, _)] = steps(2, n=1, train=train, config=config)
    params = init_params(config, 1337, np, "float64")
    losses, total = [], np.zeros(params.size)
    for i in range(3):
        x, y = random_batch(IDS, train.seed, i, train.batch_size, config.block_size)
        part, cache = loss_forward(x, y, params.tree, config)
        losses.append(float(part))
        grads = params.zeros_like()
        named = dict(leaves(loss_backward(1.0, cache)))
        for name, view in grads.leaves():
            view[...] = named.pop(name)
        assert not named
        total += grads.flat / 3
    assert loss == pytest.approx(np.mean(losses), rel=1e-12)
    np.testing.assert_allclose(this.grads.flat, total, rtol=1e-9, atol=1e-12)
    assert norm == pytest.approx(np.linalg.norm(total), rel=1e-12)


def test_each_batch_of_a_step_has_its_own_dropout_and_so_has_each_step():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    train = dataclasses.replace(TRAIN, batch_size=1, learning_rate=0.0, min_lr=0.0, warmup_iters=0)
    ids = np.resize(np.int32([3]), 100)  # all batches are equal
    with Workers(1) as workers:
        this = trainer(workers, train, config)
        losses = [this.step(ids, step)[0] for step in range(4)]
        again = [this.step(ids, step)[0] for step in range(4)]
    assert len(set(losses)) == 4
    assert losses == again


def test_the_learning_rate_is_down_at_the_last_step_if_nothing_else_is_said():
    given = dataclasses.replace(TRAIN, lr_decay_iters=20)
    _, came = steps(1, n=20)
    assert [lr for *_, lr in came] == [learning_rate(step, given) for step in range(20)]
    assert came[-1][2] < 1.1 * TRAIN.min_lr + 0.01 * TRAIN.learning_rate


def test_clipping_bounds_the_step_but_not_the_norm_that_is_told():
    _, free = steps(1, n=1, train=dataclasses.replace(TRAIN, grad_clip=0.0))
    bound, clipped = steps(1, n=1, train=dataclasses.replace(TRAIN, grad_clip=1e-3))
    assert free[0] == clipped[0]
    np.testing.assert_allclose(np.linalg.norm(bound.optimizer.m.flat), 0.1 * 1e-3, rtol=1e-2)


def test_training_learns_a_pattern():
    ids = np.resize(np.arange(11, dtype=np.int32), 200)
    config = dataclasses.replace(CONFIG, dropout=0.0)
    with Workers(2) as workers:
        recipe = dataclasses.replace(TRAIN, max_iters=100, lr_decay_iters=None)
        this = trainer(workers, recipe, config, "float32")
        losses = [this.step(ids, step)[0] for step in range(100)]
        assert losses[0] == pytest.approx(np.log(11), rel=0.05)
        assert this.evaluate(ids) < 0.2


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [2, 8, 9, 10, 65, 8 * (EVAL_TOKENS // 8) * 2 + 4])
def test_an_evaluation_counts_every_prediction_of_the_split_once(n, threads):
    ids = np.resize(IDS, n)
    with Workers(threads) as workers:
        this = trainer(workers)
        came = [this.evaluate(ids) for _ in range(2)]
    total = 0.0
    for start in range(0, n - 1, 8):  # windows one by one, without dropout
        x, y = ids[None, start : start + 8], ids[None, start + 1 : start + 9]
        x = x[:, : y.shape[1]]
        total += float(loss_forward(x, y, this.params.tree, CONFIG)[0]) * y.size
    assert came[0] == came[1] == pytest.approx(total / (n - 1), rel=1e-12)


def test_an_evaluation_leaves_training_alone():
    with Workers(2) as workers:
        this, other = trainer(workers), trainer(workers)
        for step in range(3):
            this.evaluate(IDS)
            assert this.step(IDS, step) == other.step(IDS, step)
    np.testing.assert_array_equal(this.params.flat, other.params.flat)
