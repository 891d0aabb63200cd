import pytest

from minigpt.model import count_parameters
from minigpt.train.config import resolve
from minigpt.train.cost import describe, duration, flops_per_step, human, step_seconds
from minigpt.train.memory import memory
from minigpt.train.presets import PRESETS


def test_flops_by_hand():
    values = {"n_layer": 2, "n_head": 2, "n_embd": 4, "block_size": 3, "batch_size": 5}
    values |= {"gradient_accumulation_steps": 7}
    linear = 2 * (3 * 4 * 4 + 4 * 4 + 2 * 4 * 16) + 4 * 11  # weights, each met once by a token
    seen = (1 + 2 + 3) * 4 * 2 * 2  # keys of three queries, channels, q k^T and w v, layers
    per_sequence = 2 * 3 * (linear * 3 + seen)  # 2 per multiply-add; forward, dx and dw
    assert flops_per_step(*resolve(values, {"vocab_size": 11})) == per_sequence * 5 * 7
    again = 2 * ((linear - 4 * 11) * 3 + seen)  # the forward pass of the blocks, without the head
    values["recompute"] = True
    assert flops_per_step(*resolve(values, {"vocab_size": 11})) == (per_sequence + again) * 5 * 7


def test_frozen_weights_have_no_products_of_their_gradients():
    values = {"n_layer": 2, "n_head": 2, "n_embd": 4, "block_size": 3, "batch_size": 5}
    values |= {
        "optimizer": "adamw",
        "init_from": "x",
        "lora_rank": 3,
        "lora_targets": "c_attn c_fc",
    }
    linear = 2 * (3 * 4 * 4 + 4 * 4 + 2 * 4 * 16)
    adapters = 2 * (3 * (4 + 12) + 3 * (4 + 16))  # layers, rank, in and out
    seen = (1 + 2 + 3) * 4 * 2 * 2
    per_sequence = 2 * (3 * (2 * (linear + 4 * 11) + 3 * adapters) + 3 * seen)
    assert flops_per_step(*resolve(values, {"vocab_size": 11})) == per_sequence * 5
    again = 2 * (3 * (linear + adapters) + seen)
    values["recompute"] = True
    assert flops_per_step(*resolve(values, {"vocab_size": 11})) == (per_sequence + again) * 5


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


def test_describe_says_what_a_run_costs():
    config, train = resolve({**PRESETS["lecture"], "threads": 2}, {"vocab_size": 65})
    text = "\n".join(describe(config, train, 40_000_000))
    for part in (
        "6 layers, 6 heads, 384 channels, context 256, vocabulary 65",
        "10,788,929 (10,690,625 without positions)",
        "64 x 256 = 16,384 tokens, 1.1 TFLOP",
        "5,000 steps, 81,920,000 tokens, 5.52 PFLOP",
        "weights                  43.2 MB",
        "gradients                129 MB",
        "optimizer                86.3 MB",
        "activations  ",
        "in all, on 2 threads",
        "libraries and data       40 MB",
    ):
        assert part in text


def test_describe_says_how_much_is_trained():
    values = {**PRESETS["gpt2"], "init_from": "x", "lora_rank": 8}
    config, train = resolve(values, {"vocab_size": 50257})
    text = "\n".join(describe(config, train, 40_000_000))
    trained = "294,912 of 124,734,720 parameters are trained (0.24 %), in adapters of rank 8"
    assert f"LoRA                       {trained}" in text
    assert "parameters                 124,439,808 (123,653,376 without positions)" in text
    assert "optimizer                2.36 MB" in text


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
        text = "\n".join(describe(config, train, 40_000_000))
        assert expected_parameters(*expected) in text
        assert memory(config, train)["weights"] == 4 * expected[0]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0523, "52 ms"),
        (0.52, "520 ms"),
        (1.6, "1.6 s"),
        (75, "75 s"),
        (760, "13 minutes"),
        (7200, "2 hours"),
        (400_000, "4.6 days"),
        (1e8, "3.2 years"),
        (1e12, "31,688 years"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_time_of_a_step_is_near_those_of_the_benches():
    # bench/README.md: preset, batch, context, width, seconds, rate of large products in FLOP/s
    for name, batch, context, seconds, rate in (
        ("nanogpt-cpu", 12, 64, 0.0263, 440e9),
        ("nanogpt-baby", 16, 256, 1.038, 440e9),
        ("nanogpt-cpu", 12, 64, 0.0646, 160e9),
        ("nanogpt-baby", 16, 256, 2.288, 160e9),
        ("gpt2", 4, 64, 2.261, 160e9),
        ("gpt2", 4, 64, 0.899, 440e9),
    ):
        values = PRESETS[name] | {"batch_size": batch, "block_size": context}
        values["gradient_accumulation_steps"] = 1
        config, train = resolve(values, {"vocab_size": values.get("vocab_size", 65)})
        found = step_seconds(config, flops_per_step(config, train), rate)
        assert found == pytest.approx(seconds, rel=1 / 3)


def test_the_time_is_of_the_whole_run_or_the_steps_that_fit_it():
    values = PRESETS["nanogpt-cpu"] | {"threads": 2}
    config, train = resolve(values, {"vocab_size": 65})
    rate = flops_per_step(config, train) * (1.25 + 150 / 128) / 0.05  # 50 ms a step
    text = "\n".join(describe(config, train, 0, rate=rate))
    assert "about 50 ms a step, 100 s of training" in text.replace("1.7 minutes", "100 s")
    config, train = resolve(values | {"max_seconds": 60.0}, {"vocab_size": 65})
    text = "\n".join(describe(config, train, 0, rate=rate))
    assert "about 50 ms a step, some 1,200 steps in all" in text
    assert "time on" not in "\n".join(describe(config, train, 0))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_cost_of_a_run_of_several_processes_is_that_of_one_of_them(sharded):
    values = PRESETS["lecture"] | {"threads": 1, "batch_size": 8, "shard_optimizer": sharded}
    config, train = resolve(values, {"vocab_size": 65})
    _, half = resolve(values | {"batch_size": 4}, {"vocab_size": 65})

    def lines(train, **options):
        return set(describe(config, train, 40_000_000, rate=1e11, **options))

    found, alone = lines(train, processes=2), lines(half)
    assert "each of the processes      4 sequences at most, and:" in found
    names = {line.split("  ")[0] for line in alone - found}
    assert names == {"a step", "the run"} | ({"memory", ""} if sharded else set())
    parts = memory(config, half)
    optimizer = parts["optimizer"] // (2 if sharded else 1)
    assert f"{'  optimizer':<27}{human(optimizer, 'B')}" in found
