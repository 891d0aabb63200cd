"""What several ranks do, as threads of one process; test_ranks_mpi.py has real processes."""

import dataclasses
import math
import threading
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.errors import UserError
from minigpt.files import LAST
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter
from minigpt.optim.sharding import cut_evenly
from minigpt.train.begin import new_run
from minigpt.train.clock import Clock
from minigpt.train.interrupt import Interrupt, Stopped
from minigpt.train.launch import find_meeting, find_place
from minigpt.train.narrow import narrow, widen
from minigpt.train.presets import options_of, put_together
from minigpt.train.ranks import ALONE, RankFailed
from minigpt.train.run import Run, check_same_weights
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.options import gpt_config, train_config
from tests.tools.stepping import IDS, dates
from tests.tools.together import in_ranks
from tests.tools.training import TEXT

CONFIG = gpt_config(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.2)
TRAIN = train_config(batch_size=5, max_iters=50, warmup_iters=5, learning_rate=3e-3)
TOLERANCE = 1e-6  # of losses in float32


def train(ranks, steps=15, config=CONFIG, split=IDS, **changes):
    """Losses of some steps, then of an evaluation; and the Trainer."""
    options = dataclasses.replace(TRAIN, **changes)
    with Workers(1) as workers:
        this = Trainer(init_params(config, 1337, np), config, options, np, workers, ranks=ranks)
        losses = [this.step(split, step)[0] for step in range(steps)]
        map = ranks.map(workers.map, ranks.together(Interrupt()))
        losses.append(this.evaluate(split[:500], np.arange(7), map))
    return losses, this


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environ, rank, size", [
    ({}, 0, 1),
    ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, 3, 4),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2),
    ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, 5, 8),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 0, 1),  # a batch script, before srun
    ({"RANK": "1", "WORLD_SIZE": "2"}, 1, 2),
    ({"RANK": "2", "WORLD_SIZE": "2"}, 0, 1),
    ({"RANK": "first", "WORLD_SIZE": "2"}, 0, 1),
    (TORCHRUN | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, 3, 4),  # srun torchrun
])  # fmt: skip
def test_what_has_started_a_process_says_which_it_is(environ, rank, size):
    assert find_place(environ)[:2] == (rank, size)


def test_processes_of_torchrun_meet_beside_its_own_port():
    assert find_meeting(TORCHRUN) == ("one", 29500, "a run")
    busy = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "7"}
    assert find_meeting(TORCHRUN | busy) == ("one", 29501, "7")
    for wrong in ({"MASTER_ADDR": ""}, {"MASTER_PORT": "http"}, {"MASTER_PORT": "65536"}):
        with pytest.raises(UserError, match="give the machine of rank 0 and a free port"):
            find_meeting(TORCHRUN | wrong)


def test_sums_on_cpus_need_mpi():
    def work(ranks):
        ranks.sums = None
        with pytest.raises(UserError, match="sums on CPUs need MPI"):
            ranks.use("numpy")

    in_ranks(2, work)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_of_all_ranks_are_those_of_the_batch(size):
    for n in (1, 3, 5, 8):
        parts = in_ranks(size, lambda ranks: ranks.rows(n))  # noqa: B023
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
        assert max(p.stop - p.start for p in parts) == math.ceil(n / size)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [2, 3])
def test_losses_are_those_of_one_process(size, optimizer):
    expected, alone = train(ALONE, optimizer=optimizer)
    results = in_ranks(size, lambda ranks: train(ranks, optimizer=optimizer))
    for losses, this in results:
        np.testing.assert_allclose(losses, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(this.params.flat, results[0][1].params.flat)
        assert this.count == alone.count and this.evaluated == alone.evaluated


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_sharded_optimizer_takes_the_same_steps(size, optimizer):
    expected, alone = train(ALONE, optimizer=optimizer)

    def sharded(ranks):
        losses, this = train(ranks, optimizer=optimizer, shard_optimizer=True)
        moments = this.whole_moments()
        if ranks.rank == 0:
            for name in ("m", "v"):
                whole = getattr(alone.optimizer, name).flat
                np.testing.assert_allclose(getattr(moments, name).flat, whole, rtol=0, atol=1e-5)
        return losses, this.params.flat, [this.optimizer.m.flat.size, this.optimizer.v.flat.size]

    results = in_ranks(size, sharded)
    for losses, weights, _ in results:
        np.testing.assert_allclose(losses, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(weights, results[0][1])
    sizes = np.array([sizes for *_, sizes in results])
    assert (sizes.sum(axis=0) == alone.params.size).all()
    assert sizes.max() < 1.25 * alone.params.size / size  # whole matrices, so about


@given(size=st.integers(0, 400), n=st.integers(1, 9), edges=st.sets(st.integers(0, 400)))
def test_parts_cover_a_buffer_in_order_and_cut_nothing_that_is_whole(size, n, edges):
    edges = sorted(edge for edge in edges if edge <= size)
    whole = list(zip(edges[::2], edges[1::2], strict=False))
    parts = cut_evenly(size, n, whole)
    assert len(parts) == n
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(size))
    assert not any(a < p.start < b for p in parts for a, b in whole)


def test_adapters_are_trained_alike_on_frozen_weights():
    lora = {"lora_rank": 2, "init_from": "a model", "optimizer": "adamw", "lora_dropout": 0.1}
    options = dataclasses.replace(TRAIN, lora_alpha=2.0, lora_targets="c_attn", **lora)

    def losses(ranks):
        params = init_adapter(CONFIG, options.lora, 1, np)
        frozen = init_params(CONFIG, 1, np)
        with Workers(1) as workers:
            this = Trainer(params, CONFIG, options, np, workers, frozen, ranks)
            return [this.step(IDS, step)[0] for step in range(15)]

    expected = losses(ALONE)
    for found in in_ranks(2, losses):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_rank_without_rows_takes_part():
    changes = {"batch_size": 2, "gradient_accumulation_steps": 2}
    expected, _ = train(ALONE, **changes)
    for losses, _ in in_ranks(3, lambda ranks: train(ranks, **changes)):
        np.testing.assert_allclose(losses, expected, rtol=0, atol=TOLERANCE)


def test_pairs_are_trained_on_alike():
    config, pairs = dates()
    options = {"task": "seq2seq", "sampler": "uniform", "batch_size": 7}

    def losses(ranks):
        with Workers(1) as workers:
            made = init_params(config, 1337, np), config, dataclasses.replace(TRAIN, **options)
            this = Trainer(*made, np, workers, ranks=ranks)
            return [this.step(pairs, step)[0] for step in range(15)]

    expected = losses(ALONE)
    for found in in_ranks(3, losses):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_bfloat16_rounds_to_the_nearest():
    x = [1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, np.inf, -np.inf, 3.4028235e38]
    expected = [1, 1, 1 + 2**-6, 1 + 2**-7, np.inf, -np.inf, np.inf]
    np.testing.assert_array_equal(widen(narrow(np.array(x, np.float32))), expected)
    x = np.ldexp(np.random.default_rng(1).normal(size=500), np.arange(500) // 2 - 124)
    x = x.astype(np.float32)
    assert (abs(widen(narrow(x)) - x) <= 2**-8 * abs(x)).all()
    for bits in (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001):  # the first is that of a GPU
        assert np.isnan(widen(narrow(np.array([bits], np.uint32).view(np.float32))))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_sums_in_bfloat16_are_within_their_bound_at_half_of_the_bytes(size, whole, monkeypatch):
    monkeypatch.setattr("minigpt.train.narrow.PIECE", 300)
    each = [np.random.default_rng(rank).normal(size=1000).astype(np.float32) for rank in range(3)]
    exact, magnitude = (sum(f(x.astype(float)) for x in each[:size]) for f in (np.copy, np.abs))
    bound = 2**-8 * magnitude + (2**-8 * (abs(exact) + 2**-8 * magnitude) if whole else 0)

    def work(ranks):
        flat, parts = each[ranks.rank].copy(), cut_evenly(1000, size)
        ranks.sum_gradients(flat, None if whole else parts, narrow=True)
        own = slice(None) if whole else parts[ranks.rank]
        error = abs(flat - exact)[own]
        assert (error <= bound[own] + 1e-6).all() and error.max() > 2**-9
        return flat, ranks.sums.sent

    found = in_ranks(size, work)
    if whole:
        assert all((flat == found[0][0]).all() for flat, _ in found)
    sent = sum(sent for _, sent in found)
    assert sent == 2 * 1000 * (size - 1) * (1 + whole)  # of float32: twice as much


@pytest.mark.parametrize("sharded", [False, True])
def test_training_with_sums_in_bfloat16_stays_close(sharded):
    expected, _ = train(ALONE)
    found = in_ranks(2, lambda r: train(r, sum_dtype="bfloat16", shard_optimizer=sharded))
    assert found[0][0] == found[1][0]
    difference = abs(np.array(found[0][0]) - expected)
    assert TOLERANCE < difference.max() < 0.01 and difference[0] < TOLERANCE  # a loss is exact


def test_two_runs_of_two_ranks_are_equal_to_the_bit():
    (first, _), (second, _) = (in_ranks(2, train)[0] for _ in range(2))
    assert first == second


def test_an_evaluation_is_shared_out_and_its_loss_is_the_same_to_the_bit():
    def evaluate(ranks):
        items = []
        map = ranks.map(lambda fn, some: items.extend(some) or [*builtin(fn, some)], Never())
        with Workers(1) as workers:
            this = Trainer(init_params(CONFIG, 1337, np), CONFIG, TRAIN, np, workers, ranks=ranks)
            return this.evaluate(IDS, None, map), len(items)

    builtin = map
    alone, n = evaluate(ALONE)
    found = in_ranks(3, evaluate)
    assert [loss for loss, _ in found] == [alone] * 3
    assert sum(items for _, items in found) == n
    assert max(items for _, items in found) < n / 2


def test_each_thread_of_each_rank_has_as_many_batches_of_an_evaluation_at_a_time():
    groups = []

    def record(fn, items):
        groups.append(len(items))
        return map(fn, items)

    with Workers(2) as workers:
        this = Trainer(init_params(CONFIG, 1337, np), CONFIG, TRAIN, np, workers)
        for size in (1, 3, 12):
            this.ranks = types.SimpleNamespace(size=size)
            this.evaluate(np.tile(IDS, 40)[:25_000], None, record)
    assert groups[0] == 16 and 18 in groups and 24 in groups


class Never:
    signal = None


def test_a_signal_at_some_ranks_is_announced_once_and_at_once_and_obeyed_by_all(capfd):
    noted, said = threading.Event(), []

    def work(ranks):
        stop = Interrupt(ranks.announce)
        stop.patient = True
        together = ranks.together(stop)
        for batch in range(9):
            if together.signal is not None:
                return batch, together.signal, stop.signal
            if ranks.rank and batch == 4:
                stop.note(15, None)
                noted.set()
            if ranks.rank == 0 and batch == 4:  # amid a batch
                noted.wait()
                while "finishing this batch" not in "".join(said):
                    said.append(capfd.readouterr().err)
            ranks.sum(np.ones(3))

    assert in_ranks(3, work) == [(5, 15, 15)] * 3
    said.append(capfd.readouterr().err)
    assert "".join(said).count("SIGTERM: finishing this batch and saving") == 1


def test_a_signal_that_comes_to_all_is_not_the_second_for_those_that_know_of_it(capfd):
    def work(ranks):
        stop = Interrupt(ranks.announce)
        stop.patient = True
        together = ranks.together(stop)
        if ranks.rank == 0:
            stop.note(15, None)
        ranks.gather()
        if ranks.rank == 1:
            stop.note(15, None)
            with pytest.raises(KeyboardInterrupt):
                stop.note(15, None)
        ranks.gather()
        return together.signal

    assert in_ranks(2, work) == [15, 15]


def test_a_signal_amid_the_batches_of_a_step_leaves_it():
    def work(ranks):
        stop = Interrupt(ranks.announce)
        options = dataclasses.replace(TRAIN, gradient_accumulation_steps=3)
        with Workers(1) as workers:
            made = init_params(CONFIG, 1337, np), CONFIG, options, np, workers
            this, batches = Trainer(*made, ranks=ranks), []
            gradients = this.gradients

            def count(*args, **kwargs):
                batches.append(1)
                stop.signal = 15 if ranks.rank else None
                return gradients(*args, **kwargs)

            this.gradients = count
            with pytest.raises(Stopped):
                this.step(IDS, 0, None, ranks.together(stop))
            return len(batches)

    assert in_ranks(2, work) == [1, 1]


def test_an_evaluation_is_left_by_all_ranks_together():
    def work(ranks):
        stop = Interrupt()
        stop.signal = 2 if ranks.rank == 2 else None
        shared = ranks.map(map, ranks.together(stop))
        assert shared(abs, [-1, 2, -3]) == [1, 2, 3]
        with pytest.raises(Stopped):
            shared(abs, [1, 2, 3])

    in_ranks(3, work)


def test_a_rank_that_fails_ends_the_others_where_they_meet_next():
    def work(ranks):
        if ranks.rank == 1:
            ranks.fail(ValueError("a bug\nof two lines"))
            return None
        with pytest.raises(RankFailed) as failure:
            ranks.sum(np.ones(3))
        return str(failure.value)

    said = in_ranks(3, work)
    assert said == [said[0], None, said[0]]
    assert said[0] == "rank 1 of 3 has failed: ValueError: a bug of two lines"


def test_an_interrupt_at_the_end_leaves_in_order():
    def work(ranks):
        exchange, calls = ranks._exchange, []

        def interrupted(x):
            calls.append(x)
            found = exchange(x)
            if ranks.rank == 1 and len(calls) == 1:
                raise KeyboardInterrupt
            return found

        ranks._exchange = interrupted
        ranks.__exit__(None, None, None)
        ranks._left = True
        return len(calls)

    assert in_ranks(2, work) == [2, 2]


def test_ranks_at_different_places_end():
    def work(ranks):
        with pytest.raises(RankFailed, match="no longer do the same .by rank: a sum, signals, a"):
            ranks.gather(place="signals") if ranks.rank == 1 else ranks.sum(np.ones(3))

    in_ranks(3, work)


def test_a_run_does_not_go_on_without_a_rank_that_fails_during_a_save():
    def save_last():
        raise RankFailed("rank 1 of 2 has failed")

    with pytest.raises(RankFailed):
        Run.try_to_save(types.SimpleNamespace(save_last=save_last, notes=[]), LAST)


@pytest.mark.parametrize("error", [UserError, OSError])
def test_an_error_of_the_first_rank_is_one_of_all(error):
    def work(ranks):
        def write():
            raise error("the disk is full")

        other = UserError if error is UserError else RankFailed  # no save goes on after that
        with pytest.raises(UserError if ranks.rank else error, match="the disk is full") as found:
            ranks.first(write)
        assert ranks.rank == 0 or found.type is other
        return ranks.first(lambda: ranks.rank)

    assert in_ranks(2, work) == [0, 0]


def test_the_clock_is_that_of_the_first_rank():
    def work(ranks):
        clock = Clock(0.0, 0.0, ranks.first)
        clock.lap()
        return clock.seconds, clock.peek()

    one, other = in_ranks(2, work)
    assert one == other


def test_a_run_by_passes_and_the_clock_ends_at_the_same_step_at_all_ranks(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    given = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 3, "threads": 1}
    given |= {"data": str(tmp_path / "text.txt"), "out_dir": str(tmp_path / "run")}
    given |= {"max_passes": 0.2, "max_seconds": 90.0, "weight_decay": None}

    def work(ranks):
        run = new_run(put_together(options_of("nanogpt-cpu"), given), False, ranks)
        with Workers(1) as workers:
            run.start(workers)
            while not run.state.over:
                run.advance()
        return run.state.step, run.lr, run.trainer.optimizer.weight_decay

    one, other = in_ranks(2, work)
    assert one == other and one[0] == 15


def test_cores_are_shared_with_the_ranks_of_the_same_machine(monkeypatch):
    cores = threading.local()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cores.mine, raising=False)
    monkeypatch.setattr("minigpt.train.ranks.cpu_quota", lambda: None)
    monkeypatch.setattr(
        "minigpt.train.ranks.core_limit", lambda: type("", (), {"cores": len(cores.mine)})
    )

    def work(ranks, where, nodes):
        ranks.nodes, cores.mine = nodes, where[ranks.rank]
        return ranks.cores()

    here, everything = ["a"] * 4, set(range(8))
    assert in_ranks(4, lambda r: work(r, [everything] * 4, here)) == [2] * 4
    assert in_ranks(4, lambda r: work(r, [everything] * 4, ["a", "a", "a", "b"])) == [2, 2, 2, 8]
    bound = [{0, 1, 2}, {3, 4, 5}, {6}, {6}]
    assert in_ranks(4, lambda r: work(r, bound, here)) == [3, 3, 1, 1]


def test_weights_that_differ_are_noticed():
    def work(ranks):
        with Workers(1) as workers:
            this = Trainer(init_params(CONFIG, 1337, np), CONFIG, TRAIN, np, workers, ranks=ranks)
            check_same_weights(this, 0)
            if ranks.rank == 1:
                this.params.flat[7] = np.nextafter(this.params.flat[7], 1)
            with pytest.raises(UserError, match="after step 3 are not the same at ranks 0 and 1"):
                check_same_weights(this, 3)

    in_ranks(2, work)
