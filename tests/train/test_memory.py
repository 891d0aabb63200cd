"""What --dry-run says of memory is what a process holds; a lack of memory says where and what."""

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from minigpt import cli
from minigpt.data.datasets import PairData
from minigpt.errors import OutOfMemory, UserError, memory_for
from minigpt.model import count_parameters
from minigpt.model.gpt import gpt_forward
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter, join
from minigpt.ops.dropout import Rng
from minigpt.params import leaves
from minigpt.sample.tasks import text_batch
from minigpt.train import __main__ as train
from minigpt.train.config import resolve
from minigpt.train.memory import (
    longest,
    memory,
    resident,
    run_peak,
    saved_by_token,
    smaller_step,
)
from minigpt.train.presets import NANOGPT, PRESETS
from minigpt.train.threads import STACK
from tests.tools.training import FLAGS, TEXT, begin, refusal

SIZES = {"vocab_size": 65, "source_vocab_size": 65}
# A process of its own trains a model for two steps and an evaluation, and prints the bytes added.
MEASURE = """
import json, sys
import numpy as np
from minigpt.backend.blas import product_rate
from minigpt.data.datasets import PairData
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter
from minigpt.train.config import resolve
from minigpt.train.memory import resident
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
values, sizes = json.loads(sys.argv[1])
config, train = resolve(values, sizes)
product_rate(2, 0.01)
if train.task == "text":
    split = np.resize(np.arange(65, dtype=np.uint8), 20000)
else:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [(letters[i % 9 :] * 9, letters[i % 7 :] * 9) for i in range(400)]
    lengths = values["block_size"], values["block_size"] - 1
    open("pairs.tsv", "w").writelines(
        f"{i:03d}{a[:lengths[0] - 3]}\\t{b[:lengths[1]]}\\n" for i, (a, b) in enumerate(pairs)
    )
    data = PairData("pairs.tsv")
    config, train = resolve(values, {k: v for k, v in data.sizes.items() if v})
    split = data.train
before = resident()[0]
with Workers(train.workers()) as workers:
    trained, frozen = init_params(config, 0, np), None
    if train.lora is not None:
        trained, frozen = init_adapter(config, train.lora, 0), trained
    trainer = Trainer(trained, config, train, np, workers, frozen)
    for step in range(2):
        trainer.step(split, step)
    trainer.evaluate(split if train.task == "seq2seq" else split[:3000])
print(resident()[1] - before)
"""
QUICK = PRESETS["quick"] | {"bigram": True, "batch_size": 48}
WIDE = {"n_layer": 2, "n_embd": 192, "n_head": 6, "block_size": 128, "batch_size": 12}
PAIRS = PRESETS["dates"] | {"n_layer": 2, "block_size": 96, "gradient_accumulation_steps": 1}
FEW = {"n_layer": 4, "n_embd": 384, "n_head": 6, "block_size": 16, "batch_size": 8}
FEW |= {"vocab_size": 12000}
LORA = {"init_from": "x", "lora_rank": 8}
MODELS = {
    "bigrams, rotation, muon": QUICK,
    "two threads": QUICK | {"threads": 2},
    "short, four layers, adamw": PRESETS["nanogpt-cpu"] | {"batch_size": 32, "n_layer": 6},
    "dropout, two threads": NANOGPT | WIDE | {"dropout": 0.2, "threads": 2},
    "untied head, biases": PRESETS["lecture"] | WIDE | {"bias": True, "dropout": 0.0},
    "wide, muon": QUICK | WIDE | {"n_embd": 384, "bigram": False},
    "long": NANOGPT | WIDE | {"block_size": 1024, "batch_size": 2, "rotary": True},
    "large vocabulary": NANOGPT | WIDE | {"vocab_size": 12000, "activation": "gelu_tanh"},
    "pairs, two threads": PAIRS | {"threads": 2, "batch_size": 24},
    "recomputed": NANOGPT | WIDE | {"n_layer": 8, "recompute": True},
    "recomputed, long, dropout, two threads": NANOGPT
    | WIDE
    | {"n_layer": 8, "block_size": 512, "dropout": 0.1, "threads": 2, "recompute": True},
    "recomputed pairs": PAIRS | {"n_layer": 6, "batch_size": 24, "recompute": True},
    "lora": NANOGPT | WIDE | LORA | {"n_layer": 8},
    "lora of all layers, dropout, two threads": NANOGPT
    | WIDE
    | LORA
    | {"n_layer": 6, "lora_targets": "c_attn,c_proj,c_fc", "lora_dropout": 0.1, "threads": 2},
    "lora, recomputed, large vocabulary": NANOGPT
    | WIDE
    | LORA
    | {"n_layer": 8, "vocab_size": 12000, "recompute": True},
    "few tokens": NANOGPT | FEW,
    "few tokens, two batches": NANOGPT | FEW | {"gradient_accumulation_steps": 2},
    "few tokens, three threads": NANOGPT | FEW | {"threads": 3},
    "few tokens, recomputed, untied, two batches, two threads": NANOGPT
    | FEW
    | {"gradient_accumulation_steps": 2, "tie_head": False, "recompute": True, "threads": 2},
    "a row, two threads": NANOGPT | WIDE | {"batch_size": 1, "block_size": 512, "threads": 2},
    "pairs, muon, dropout": PAIRS | {"optimizer": "muon", "dropout": 0.1, "batch_size": 24},
}


@pytest.mark.slow
@pytest.mark.report("24")
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_within_15_percent_of_the_peak_of_a_process(name, tmp_path):
    values = {"threads": 1} | MODELS[name]
    command = [sys.executable, "-c", MEASURE, json.dumps([values, SIZES])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config, train_config = resolve(values, SIZES)
    parts = memory(config, train_config)
    parts.pop("answers at evaluations", None)  # none are asked for
    assert sum(parts.values()) == pytest.approx(int(done.stdout), rel=0.15)


def test_muon_and_threads_and_pairs_are_counted():
    one, two = (
        memory(*resolve(PRESETS["quality"] | {"threads": n, "bigram": False}, SIZES))
        for n in (1, 2)
    )
    config, _ = resolve(PRESETS["quality"] | {"bigram": False}, SIZES)
    n = 4 * count_parameters(config)
    assert one["weights"] == two["weights"] == n
    gains = 4 * sum(math.prod(x) for _, x in leaves(config.shapes()) if len(x) == 1)
    assert one["gradients"] == n + gains and two["gradients"] == 3 * n
    matrices = 4 * 6 * 12 * 256**2  # whose second moments Muon never writes
    assert one["optimizer"] == 2 * n - matrices
    assert one["activations"] < two["activations"] < 1.1 * one["activations"]
    config, train_config = resolve(PRESETS["dates"] | {"threads": 2}, SIZES)
    parts = memory(config, train_config, (11, 30))
    assert parts["optimizer"] == 2 * parts["weights"]
    keys = 2 * 2 * 64 * 128 * (64 + 2 * 30)  # layers, k and v, rows, channels, tokens
    assert parts["answers at evaluations"] == 2 * 4 * keys
    assert parts["activations"] < memory(config, train_config)["activations"]


def test_frozen_weights_have_no_gradients_and_no_moments_and_keep_less():
    values = NANOGPT | WIDE | {"threads": 2}
    config, _ = resolve(values | LORA, SIZES)
    n, of_adapter = count_parameters(config), 2 * 8 * (192 + 3 * 192)  # layers, rank, in and out
    for backend in ("numpy", "cupy"):
        values |= {"backend": backend}
        full, parts = (memory(*resolve(values | options, SIZES)) for options in ({}, LORA))
        assert parts["weights"] == 4 * (n + of_adapter)
        assert parts["gradients"] == 4 * of_adapter * (3 if backend == "numpy" else 1)
        assert parts["optimizer"] == 8 * of_adapter
        assert parts["activations"] < full["activations"]


def test_few_tokens_keep_factors_in_place_of_gradients():
    C, V, layers, tokens = 384, 12000, 4, 16
    values = NANOGPT | FEW | {"threads": 1}
    config, _ = resolve(values, SIZES)
    n = count_parameters(config)
    others = n - layers * 12 * C * C - V * C  # positions and gains
    widths = {8 * tokens * width for width in (C, 3 * C, 4 * C)}  # of x and dy, of all shards

    def made(**options):
        """Numbers of gradients beside those of the step."""
        return memory(*resolve(values | options, SIZES))["gradients"] // 4 - n

    assert made() == others
    assert made(gradient_accumulation_steps=2) == others + V * C + 4 * C * C
    dy = tokens * (9 * C * layers + V)
    stacks = sum(widths) + STACK
    assert made(threads=2) == 2 * (others + 4 * dy + stacks)
    assert made(threads=3) == 3 * (others + stacks) + 8 * dy
    x = tokens * (7 * C * layers + C)
    assert made(threads=2, recompute=True) == 2 * (others + 4 * (dy + x) + stacks)
    long = memory(*resolve(values | {"threads": 2, "block_size": 512}, SIZES))["gradients"]
    assert long == 4 * 3 * (n + (512 - tokens) * C)


def arrays_of(cache):
    """Yield the arrays in a cache, however they are nested."""
    if isinstance(cache, np.ndarray):
        yield cache
    for part in cache if isinstance(cache, tuple) else ():
        yield from arrays_of(part)


@pytest.mark.parametrize(
    "targets, dropout, channels, adapters",
    [
        ("c_attn", 0.0, 11, 1),
        ("c_attn", 0.1, 11, 1),
        ("attn.c_proj", 0.0, 10, 1),
        ("attn.c_proj", 0.1, 11, 1),
        ("mlp.c_proj", 0.0, 14, 1),
        ("c_attn,c_proj,c_fc", 0.0, 16, 4),
        ("c_attn,c_proj,c_fc", 0.1, 17, 4),
        (None, 0.0, 16, 0),
    ],
)
def test_what_is_counted_of_a_block_is_what_its_caches_hold(targets, dropout, channels, adapters):
    options = LORA | {"lora_targets": targets, "lora_dropout": dropout} if targets else {}
    config, train_config = resolve(NANOGPT | WIDE | options | {"block_size": 256}, SIZES)
    lora, tokens, p = train_config.lora, 2 * 256, init_params(config, 0)
    expected = channels * config.n_embd + 8 * adapters
    assert saved_by_token(config, lora) == expected
    tree, params = p.tree, [p.flat]
    if lora is not None:
        adapter = init_adapter(config, lora, 0)
        tree, params = join(p, adapter, lora), [p.flat, adapter.flat]
    _, (_, caches, _) = gpt_forward(np.zeros((2, 256), np.int32), tree, config, Rng.of(1, 2))
    made = [x for x in arrays_of(caches[1]) if not any(np.may_share_memory(x, w) for w in params)]
    sizes = {x.__array_interface__["data"][0]: x.size for x in made}
    of_rows = 2 * 2 * tokens + config.n_head * tokens  # mu, rstd, and attention's lse
    assert sum(sizes.values()) == tokens * expected + of_rows


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_device_has_one_shard_and_half_precision_halves_what_the_passes_make(dtype):
    values = PRESETS["nanogpt-cpu"] | {"backend": "cupy"}
    config, train = resolve(values, SIZES)
    _, half = resolve(values | {"dtype": dtype}, SIZES)
    one, other, n = memory(config, train), memory(config, half), count_parameters(config)
    assert one["gradients"] == other["gradients"] == 4 * n
    assert one["weights"] == 4 * n and other["weights"] == 6 * n
    assert one["optimizer"] == other["optimizer"] == 8 * n
    assert one["activations"] == 2 * other["activations"]


def test_the_longest_pair_is_what_counts(tmp_path):
    lines = [f"{i}{'a' * (i % 7)}\t{'b' * (1 + i % 5)}\n" for i in range(100)]
    path = tmp_path / "pairs.tsv"
    path.write_text("".join([*lines, "c" * 30 + "\t" + "d" * 20 + "\n"]))
    data = PairData(str(path))
    assert longest(data) == (21, 30)  # END included
    assert longest(object()) is None


def test_the_whole_is_the_largest_of_reading_training_and_the_end():
    parts = {"weights": 10**6, "gradients": 10**6, "optimizer": 2 * 10**6, "activations": 10**9}
    held = 40 * 10**6
    assert run_peak(parts, held, 0) == held + sum(parts.values())
    assert run_peak(parts, held, 5 * 10**9) == 5 * 10**9
    parts["activations"] = 1
    assert run_peak(parts, held, 0) >= held + 6 * 10**6  # the sample reads weights of its own


def test_resident_memory_follows_what_is_allocated():
    held, most = resident()
    kept = np.ones(80_000_000, np.uint8)  # more than malloc keeps
    after, most_after = resident()
    assert 10**6 < held <= most and most_after >= after
    if sys.platform == "linux":
        assert after - held > 0.9 * kept.size


# A lack of memory


def test_memory_for_names_the_innermost_place_and_keeps_other_errors():
    inner = memory_for("while it was made", lambda: "take a half")
    with pytest.raises(OutOfMemory) as found, memory_for("outside", "less"), inner:
        raise MemoryError("Unable to allocate\n7 TiB")
    text = "out of memory while it was made (Unable to allocate 7 TiB); take a half"
    assert str(found.value) == text and isinstance(found.value, UserError | MemoryError)
    assert cli.one_line(found.value) == text
    with pytest.raises(OutOfMemory, match=r"\(Cannot allocate memory\)"), memory_for("", ""):
        raise OSError(12, "Cannot allocate memory")  # as mmap says it
    with pytest.raises(OSError, match="full"), memory_for("", ""):
        raise OSError(28, "full")


def fail(*args, **kwargs):
    raise MemoryError("Unable to allocate 1 TiB")


@pytest.mark.report("35")
@pytest.mark.parametrize(
    "place, flags, said, advised",
    [
        ("minigpt.data.datasets.survey", (), "while the text was read", "smaller file"),
        ("minigpt.data.datasets.survey", ("--dry-run",), "while the text was read", "smaller file"),
        ("minigpt.train.run.init_params", (), "while the model was made", "smaller model"),
        ("minigpt.train.step.Trainer.step", (), "in a training step", "--batch-size 2 with"),
        ("minigpt.train.step.Trainer.evaluate", (), "in an evaluation", "fewer --threads"),
        ("minigpt.train.run.save", (), "while a checkpoint was saved", "smaller model"),
    ],
)
def test_a_lack_of_memory_is_told_by_where_it_was_met(
    tmp_path, capsys, monkeypatch, place, flags, said, advised
):
    monkeypatch.setattr(place, fail)
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: begin(tmp_path / "run", *flags))
    error = capsys.readouterr().err.splitlines()[-1]  # notes may come before
    assert leaving.value.code == 2
    assert error.startswith(f"error: out of memory {said} (Unable to allocate 1 TiB); ")
    assert advised in error


@pytest.mark.report("35")
@pytest.mark.parametrize(
    "command, said",
    [
        (["sample", "--max-new-tokens=5"], "while sampling (Unable to allocate 1 TiB); take fewer"),
        (["score", "--data=text.txt"], "while scoring (Unable to allocate 1 TiB); give a smaller"),
        (["data", "--data=text.txt"], "while the text was read (Unable"),
    ],
)
def test_other_commands_say_what_they_lacked_memory_for(
    tmp_path, capsys, monkeypatch, command, said
):
    from minigpt.__main__ import main

    assert begin(tmp_path / "run") == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minigpt.interchange.command.load_plain", fail)
    monkeypatch.setattr("minigpt.data.__main__.TextData", fail)
    folder = ["--out-dir=run"] * (command[0] != "data")
    assert said in refusal(capsys, main, [*command, *folder])


@pytest.mark.parametrize(
    "values, said",
    [
        ({"batch_size": 64, "sampler": "weyl"}, "use --batch-size 32 with --gradient-accumulation"),
        ({"batch_size": 64, "sampler": "weyl"}, "-steps 4 (a step then has the same tokens)"),
        (
            {"batch_size": 64, "sampler": "uniform"},
            "-steps 4, or fewer --threads, or --recompute",
        ),
        ({"batch_size": 5, "sampler": "weyl"}, "--batch-size 3 with --gradient-accumulation-steps"),
        ({"batch_size": 1}, "use --recompute, or a smaller --block-size or model; --dry-run"),
        ({"batch_size": 1, "recompute": True}, "use a smaller --block-size or model; --dry-run"),
    ],
)
def test_the_advice_for_a_step_is_a_command_line(values, said):
    values = {"threads": 2, "gradient_accumulation_steps": 2} | values
    assert said in smaller_step(resolve(PRESETS["quick"] | {"bigram": True} | values, SIZES)[1])


def test_half_the_batch_twice_has_the_same_tokens():
    def tokens(batch_size, batches):
        values = {"sampler": "weyl", "batch_size": batch_size, "bigram": True}
        values["gradient_accumulation_steps"] = batches
        config, train_config = resolve(PRESETS["quick"] | values, SIZES)
        ids = np.resize(np.arange(65, dtype=np.uint8), 5000)
        numbers = range(3 * batches, 4 * batches)  # of step 3
        taken = (text_batch(ids, config, train_config, i, i * batch_size) for i in numbers)
        return np.concatenate([x for x, _ in taken])

    assert (tokens(8, 1) == tokens(4, 2)).all()


# Limits of the system: what is left for arrays is set after everything is loaded.
LIMITED = """
import re, resource, sys
import numpy as np
from minigpt import cli
from minigpt.train import __main__ as train
import minigpt.backend.cpu.cross_entropy, tqdm
np.ones((512, 512), np.float32) @ np.ones((512, 512), np.float32)  # BLAS takes its memory
size = re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]
resource.setrlimit(resource.RLIMIT_AS, (1024 * int(size) + int(sys.argv[1]),) * 2)
cli.run(lambda: train.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.report("35")
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    "room, repeats, flags, said",
    [
        (6_000_000, 6000, (), "while the text was read"),
        (6_000_000, 6000, ("--dry-run",), "while the text was read"),
        (100_000_000, 1, ("--n-embd=4096",), "while the model was made"),
        (100_000_000, 1, ("--batch-size=100000",), "in a training step"),
    ],
)
def test_a_process_with_little_memory_says_what_it_was_for(tmp_path, room, repeats, flags, said):
    (tmp_path / "text.txt").write_text(TEXT * repeats)
    command = [sys.executable, "-c", LIMITED, str(room), "--data=text.txt", "--out-dir=run"]
    path = os.pathsep.join(sys.path)
    env = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    flags = [*FLAGS, "--threads=1", *flags]
    done = subprocess.run([*command, *flags], cwd=tmp_path, env=env, capture_output=True, text=True)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and error.startswith(f"error: out of memory {said} (")


# --dry-run


@pytest.mark.report("24", "35")
def test_dry_run_says_memory_in_all_and_time_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minigpt.train.__main__.product_rate", lambda threads: 1e9 * threads)
    monkeypatch.setattr("minigpt.train.__main__.resident", lambda: (10**8, 10**8))  # not pytest's
    assert not begin(tmp_path / "run", "--dry-run")
    out = capsys.readouterr().out
    assert re.search(r"^memory +about [\d.]+ MB in all, on 2 threads$", out, re.M)
    assert re.search(r"^  libraries and data +[\d.]+ MB$", out, re.M)
    assert re.search(r"^time on this machine +about [\d.]+ ms a step, ", out, re.M)
    assert not (tmp_path / "run").exists()
    assert train.main(["--preset=gpt2", "--dry-run"]) is None
    assert "years of training" in capsys.readouterr().out
