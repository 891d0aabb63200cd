import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minigpt.backend.cpu import pool
from minigpt.model import count_parameters
from minigpt.model.init import init_params
from minigpt.train.config import resolve
from minigpt.train.cost import describe, flops_per_step, human, memory
from minigpt.train.presets import NANOGPT, PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers


def test_flops_by_hand():
    values = {"n_layer": 2, "n_head": 2, "n_embd": 4, "block_size": 3, "batch_size": 5}
    values |= {"gradient_accumulation_steps": 7}
    linear = 2 * (3 * 4 * 4 + 4 * 4 + 2 * 4 * 16) + 4 * 11  # weights, each met once by a token
    seen = (1 + 2 + 3) * 4 * 2 * 2  # keys of three queries, channels, q k^T and w v, layers
    per_sequence = 2 * 3 * (linear * 3 + seen)  # 2 per multiply-add; forward, dx and dw
    assert flops_per_step(*resolve(values, {"vocab_size": 11})) == per_sequence * 5 * 7


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (1234, "1.23 kB"),
        (999_600, "1 MB"),
        (45.6e9, "45.6 GB"),
        (7e14, "700 TB"),
    ],
)
def test_human(number, text):
    assert human(number, "B") == text


def measure(config, train):
    """Bytes taken by a Trainer, and at the peak of a step of it."""
    ids = np.resize(np.arange(65, dtype=np.int32), 2000)
    tracemalloc.start()
    try:
        with Workers(train.shards()) as workers:
            trainer = Trainer(init_params(config, 0, np), config, train, np, workers)
            taken = tracemalloc.get_traced_memory()[0]
            trainer.step(ids, 0)
            tracemalloc.reset_peak()
            trainer.step(ids, 1)
            return taken, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        PRESETS["nanogpt-cpu"] | {"threads": 1},
        PRESETS["nanogpt-cpu"] | {"threads": 2},
        PRESETS["nanogpt-baby"] | {"threads": 2, "batch_size": 2, "n_layer": 2},
        PRESETS["lecture"] | {"threads": 2, "batch_size": 8, "n_layer": 1, "n_embd": 96},
        NANOGPT | {"threads": 2, "n_embd": 64, "n_head": 8, "batch_size": 16},
        PRESETS["nanogpt-cpu"] | {"threads": 2, "rotary": True, "bigram": True},
    ],
    ids=["one thread", "two threads", "wide", "thin", "many heads", "rotary with bigrams"],
)
def test_memory_is_that_of_a_real_step(monkeypatch, values):
    # What is left of a chunk takes no memory, but is counted as if it did.
    monkeypatch.setattr(pool, "CHUNK", 2**18)
    config, train = resolve(values, {"vocab_size": 65})
    parts, threads, n = memory(config, train), values["threads"], 4 * count_parameters(config)
    # In a thread of its own: what earlier tests left in this thread's pool would not be counted.
    with ThreadPoolExecutor(1) as fresh:
        taken, peak = fresh.submit(measure, config, train).result()
    assert taken == pytest.approx(4 * n, rel=0.1)  # weights, two moments, the sum of gradients
    assert sum(parts.values()) == pytest.approx(peak, rel=0.25)
    assert parts["activations (about)"] == pytest.approx(peak - (4 + threads) * n, rel=0.25)
    assert parts["gradients"] == (1 + threads) * n
    assert parts["weights"] == n == parts["optimizer (two moments)"] / 2


def test_describe_says_what_a_run_costs():
    config, train = resolve({**PRESETS["lecture"], "threads": 2}, {"vocab_size": 65})
    text = "\n".join(describe(config, train))
    for part in (
        "6 layers, 6 heads, 384 channels, context 256, vocabulary 65",
        "10,788,929 (10,690,625 without positions)",
        "64 x 256 = 16,384 tokens, 1.1 TFLOP",
        "5,000 steps, 81,920,000 tokens, 5.52 PFLOP",
        "weights                  43.2 MB",
        "gradients                129 MB",
        "optimizer (two moments)  86.3 MB",
        "activations (about)",
    ):
        assert part in text


def expected_parameters(n, without):
    """What --dry-run says of n parameters; positions only where there are some."""
    return f"{n:,} ({without:,} without positions)" if n != without else f"  {n:,}"


def test_rotary_positions_have_no_parameters_and_pairs_have_a_table():
    values = PRESETS["nanogpt-cpu"] | {"threads": 2}
    n = count_parameters(resolve(values, {"vocab_size": 65})[0])
    for options, expected in (
        ({"rotary": True}, (n - 64 * 128, n - 64 * 128)),
        ({"bigram": True}, (n + 65 * 66 * 128, n + 65 * 66 * 128 - 64 * 128)),
    ):
        config, train = resolve(values | options, {"vocab_size": 65})
        text = "\n".join(describe(config, train))
        assert expected_parameters(*expected) in text
        assert memory(config, train)["weights"] == 4 * expected[0]


def test_a_device_has_one_shard_and_half_precision_halves_what_the_passes_make():
    values = PRESETS["nanogpt-cpu"] | {"backend": "cupy"}
    config, train = resolve(values, {"vocab_size": 65})
    _, half = resolve(values | {"dtype": "float16"}, {"vocab_size": 65})
    one, other, n = memory(config, train), memory(config, half), count_parameters(config)
    assert one["gradients"] == 8 * n and other["gradients"] == 6 * n
    assert one["weights"] == 4 * n and other["weights"] == 6 * n
    assert one["optimizer (two moments)"] == other["optimizer (two moments)"] == 8 * n
    assert one["activations (about)"] == 2 * other["activations (about)"]
    assert "on the GPU" in "\n".join(describe(config, half))
