"""The benches as a user runs them, on tiny problems; and that their own checks can fail."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import finetune, ranks
from bench.lib import report, timing, traffic
from tests.tools.mpirun import NEEDS_MPI

BENCH = Path(__file__).parents[1] / "bench"
RUN = """
import runpy, sys
sys.argv = {argv!r}
sys.path.insert(0, {root!r})
{before}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NO_TORCH = "sys.modules['torch'] = None"
WRONG_ATTENTION = """
import minigpt.ops.attention as op
right = op.attention_backward
def wrong(dy, cache):
    dq, dk, dv = right(dy, cache)
    return dq, 1.001 * dk, dv
wrong.reference = right.reference
op.attention_backward = wrong
"""
WRONG_ADD_NORM = """
import minigpt.model.blocks as blocks
right = blocks.add_norm_backward
def wrong(dx, dy, cache):
    dx, dh, grads = right(dx, dy, cache)
    return dx, 1.01 * dh, grads
blocks.add_norm_backward = wrong
"""
WRONG_LOGITS = """
import minigpt.sample.generate as decoding
right = decoding.next_logits
decoding.next_logits = lambda *args: right(*args) * 1.001
"""
OTHER_LEARNING_RATE = """
right = learning_rate
def learning_rate(*args):
    return 1.001 * right(*args)
"""
ONE_THREAD = ("--threads", "1")  # more of torch's wait for each other on a busy machine
ATTENTION = ("attention.py", "--shapes", "3,2,9,4", "1,1,300,4", "1,3,5,7,4", "--seconds", "0.01")
SMALL = ("--batch-size", "2", "--block-size", "8", "--seconds", "0.01", "--no-memory")
STEP = ("step.py", "--preset", "nanogpt-cpu", *SMALL)
SAMPLE = ("sample.py", "--model", "nanogpt-cpu", "--batch", "2", "--prompt-tokens", "5")
SAMPLE += ("--new-tokens", "2", "--seconds", "0.01", *ONE_THREAD)
LAUNCHES = ("launches.py", "--preset", "nanogpt-cpu", "--n-layer", "3", "--batch-size", "4")
LAUNCHES += ("--block-size", "8", "--no-before")


def run(*command, before=""):
    """Run a bench in a process of its own, after the lines `before`."""
    argv = [str(BENCH / command[0]), *map(str, command[1:])]
    code = RUN.format(argv=argv, root=str(BENCH.parent), before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def records(tmp_path, *command, before=""):
    """Run a bench that must succeed; return the records that it writes."""
    file = tmp_path / "found.json"
    done = run(*command, "--json", file, before=before)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["environment"]["threads"] >= 1
    assert str(BENCH.parent) not in file.read_text()
    return found["records"]


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE_S", 0)
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.measure(candidates, rounds=4)
    assert "".join(calls).endswith(4 * "aabb")  # each turn begins with an untimed call
    assert [len(t.samples) for t in times.values()] == [4, 4]


def test_ratio_pairs_the_samples_of_a_round():
    slow, fast = timing.Times([2, 4, 60], 1), timing.Times([1, 2, 20], 1)
    assert timing.ratio(slow, fast) == {"of_medians": 2.0, "q1": 2.0, "q3": 2.5}
    assert slow.record() | {"median_s": 4.0, "min_s": 2.0, "q1_s": 3.0} == slow.record()


@pytest.mark.slow
def test_memory_is_what_was_allocated():
    size = 3_000_000
    assert abs(timing.traced_peak(lambda: np.ones(size, np.uint8)) - size) < 20_000
    before = timing.resident_peak()
    np.ones(before + size, np.uint8)
    peak = timing.resident_peak()
    assert peak >= before + size
    if Path("/proc/self/clear_refs").exists():
        assert timing.resident_start() < peak - size


@pytest.mark.slow
@pytest.mark.cupy
def test_attention(tmp_path, xp):
    flags = ("--backend", xp.__name__, "--threads", 2)
    found = records(tmp_path, *ATTENTION, *flags, before=NO_TORCH)
    assert [r["pass"] for r in found] == ["forward", "backward", "both"] * 3
    assert [r["causal"] for r in found] == [True] * 6 + [False] * 3
    assert found[0]["flops"] == 3 * 2 * 45 * 4 * 4 and found[1]["flops"] == 2 * found[0]["flops"]
    assert all(r["times"]["minigpt"]["median_s"] > 0 for r in found)
    assert found[2]["peak_extra_bytes"]["minigpt"] >= 0


@pytest.mark.slow
@pytest.mark.cupy
def test_launches_are_counted_alike_whole_and_by_layer_and_sequence(tmp_path, xp):
    if not os.environ.get("CUPY_ON_CPU") or xp is np:
        pytest.skip("counts where CuPy runs on the CPU")
    [found], [whole] = (
        records(tmp_path, *LAUNCHES, *flags, before=NO_TORCH) for flags in ((), ("--whole",))
    )
    assert found["launches"] == whole["launches"] == sum_of(whole, ("kernel", "attention"))
    for kind, (times, size, flops) in whole["kinds"].items():
        assert found["kinds"][kind][::2] == [times, flops]
        assert found["kinds"][kind][1] == pytest.approx(size, rel=0.02)  # other tokens occur
    linear = importlib.import_module("minigpt.backend.gpu.linear")
    assert (traffic.PARTS, traffic.ROWS) == (linear.PARTS, linear.ROWS)
    # Products: 6 FLOPs for each weight and token; the scores of attention are no products here.
    assert whole["kinds"]["product"][2] == 6 * 4 * 8 * (3 * 12 * 128**2 + 65 * 128)
    # Three parts can be no more or less than the least that is worked out for them.
    least, counts = whole["minimum_bytes"], whole["counts"]
    products = least["products of the blocks"] + least["products of the head"]
    assert whole["kinds"]["product"][1] == products
    activation = sum(counts[f"kernel activation_{way}ward"][1] for way in ("for", "back"))
    assert activation == least["activation"]
    parameters = 3 * (12 * 128**2 + 2 * 128) + 65 * 128 + 8 * 128 + 128
    assert counts["kernel adamw_step"][1] == pytest.approx(7 * 4 * parameters, rel=1e-3)
    assert whole["ratio"] == whole["bytes"] / sum(whole["minimum_bytes"].values()) > 1
    assert set(whole["predicted_s"]) >= {"A100 tf32", "H100 float32", "RTX 4090 tf32"}


def sum_of(record, kinds):
    """Return how many launches of these kinds a record lists by name."""
    return sum(n for name, (n, *_) in record["counts"].items() if name.split()[0] in kinds)


def test_launches_need_a_device_on_the_cpu(monkeypatch):
    monkeypatch.delenv("CUPY_ON_CPU", raising=False)
    done = run(*LAUNCHES)
    assert done.returncode == 2 and "CUPY_ON_CPU is not set" in done.stderr


@pytest.mark.slow
@pytest.mark.reference
def test_attention_beside_torch(tmp_path):
    pytest.importorskip("torch")
    found = records(tmp_path, *ATTENTION, *ONE_THREAD, "--no-memory")
    assert {name for r in found for name in r["times"]} == {"minigpt", "sdpa", "naive"}
    for r in found:
        ours, theirs = r["times"]["minigpt"]["median_s"], r["times"]["sdpa"]["median_s"]
        assert r["ratio_to_sdpa"]["of_medians"] == pytest.approx(theirs / ours)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_finds_a_wrong_gradient(threads):
    for shape in ("3,2,9,4", "1,2,300,4"):
        command = ("attention.py", "--shapes", shape, "--threads", threads)
        done = run(*command, before=NO_TORCH + WRONG_ATTENTION)
        assert done.returncode == 1
        assert f"wrong result: minigpt: dk of {shape} is off by" in done.stderr


def test_attention_refuses_what_is_no_shape():
    done = run("attention.py", "--shapes", "1,2,3")
    assert done.returncode == 2
    assert "'1,2,3' is not B,H,T,D or B,H,Tq,Tk,D" in done.stderr


@pytest.mark.slow
def test_step(tmp_path):
    [found] = records(tmp_path, *STEP, "--profile", before=NO_TORCH)
    assert found["tokens_per_s"] == pytest.approx(16 / found["time"]["median_s"])
    assert found["flops"][0] < found["flops"][1]
    ops = {r["op"]: r["calls"] for r in found["ops"]}
    assert ops["attention_forward"] == ops["attention_backward"] == 4
    assert ops["linear_forward"] == 12 and ops["linear_activation_forward"] == 4
    assert ops["sum_gradients"] == 1
    ways = {r["way"]: r for r in found["passes"]}
    assert ways["AdamW"]["memory_bytes"] == ways["triad"]["memory_bytes"] == 4 * (4 + 3)
    assert ways["triad"]["passes"] == 3 and ways["triad"]["cache_bytes"] == 4 * 3 * 3
    assert ways["AdamW"]["passes"] == 13 and ways["AdamW"]["cache_bytes"] == 4 * (4 * 3 + 9 * 2)


@pytest.mark.slow
@pytest.mark.reference
def test_step_beside_torch(tmp_path):
    pytest.importorskip("torch")
    found = records(tmp_path, *STEP[:-1], *ONE_THREAD, "--dropout", "0.1", "--optimizer", "fused")
    assert [r["candidate"] for r in found] == ["minigpt", "torch eager"]
    for r in found:
        assert r["resident_bytes"]["peak"] > r["resident_bytes"]["libraries"] > 0


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize(
    "command, before, message",
    [
        (STEP, WRONG_ADD_NORM, "wrong result: nanogpt-cpu: gradient of"),
        (SAMPLE, WRONG_LOGITS, "wrong result: logits differ from those of torch, no cache"),
    ],
)
def test_a_difference_from_torch_is_found(command, before, message):
    pytest.importorskip("torch")
    done = run(*command, *ONE_THREAD, before=before)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.slow
def test_sample(tmp_path):
    [found] = records(tmp_path, *SAMPLE, before=NO_TORCH)
    assert found["tokens_per_s"] == pytest.approx(4 / found["time"]["median_s"])
    assert found["weight_bytes"] == 4 * (12 * 4 * 128**2 + 65 * 128)


@pytest.mark.slow
@pytest.mark.reference
def test_sample_beside_torch(tmp_path):
    pytest.importorskip("torch")
    names = [r["candidate"] for r in records(tmp_path, *SAMPLE)]
    assert names[:2] == ["minigpt", "torch, no cache"]


@pytest.mark.slow
def test_scaling_draws_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    command = ("scaling.py", "--lengths", 8, 16, "--widths", 16, 32, "--tokens", 32, "--n-layer", 1)
    command += ("--n-embd", 16, "--block-size", 8, "--seconds", 0.01, "--threads", 2)
    found = records(tmp_path, *command, "--plot", tmp_path / "found.png")
    assert [(r["sweep"], r["value"]) for r in found] == [
        *(("threads", n) for n in (1, 2)),
        *(("length", n) for n in (8, 16)),
        *(("width", n) for n in (16, 32)),
    ]
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_time_to_loss(tmp_path):
    (tmp_path / "text").write_text("First Citizen:\nBefore we proceed any further, hear me. " * 200)
    data = f"--data {tmp_path / 'text'}"
    flags = f"{data} --max-seconds 4 --n-embd 16 --block-size 8 --batch-size 2 --eval-interval 5"
    entries = records(
        tmp_path, "time_to_loss.py", "--runs", "8 s", "--seeds", "1", "2", f"--flags={flags}"
    )
    assert [len(entry["curves"]) for entry in entries] == [2]
    for points in entries[0]["curves"]:
        seconds, steps, losses = zip(*points, strict=True)
        assert steps[0] == 5 and list(seconds) == sorted(seconds) and seconds[-1] < 20
        assert losses[-1] < losses[0]


def test_what_is_predicted_of_several_machines_is_in_the_readme(capsys):
    ranks.predict()
    text = (BENCH / "README.md").read_text("utf-8")
    lines = [line for line in capsys.readouterr().out.splitlines() if "b/s a " in line]
    for line in lines:
        whole, half, *shares = re.findall(r"[\d.]+(?= ms|%)", line)
        assert f"| {whole} / {half} ms | {' | '.join(f'{share} %' for share in shares)} |" in text
    assert len(lines) == 6


@pytest.mark.slow
@NEEDS_MPI
def test_ranks(tmp_path):
    flags = ("--preset", "nanogpt-cpu", "--large", "nanogpt-cpu", "--batch-size", "4")
    entries = records(tmp_path, "ranks.py", *flags, "--rounds", 1, "--seconds", 0.1, "--threads", 2)
    steps, (whole, sharded) = entries[:-2], entries[-2:]
    assert [(r["processes"], r["threads"], r["batch_size"]) for r in steps] == [
        (1, 2, 4), (2, 1, 4), (1, 1, 4), (2, 1, 8),
    ]  # fmt: skip
    assert all(len(r["rounds_s"]) == 1 and r["rounds_s"][0] > 0 for r in steps)
    assert steps[1]["sum_s"] > 0 and 0 < steps[1]["narrow_error"] < 2**-8
    assert 2 * sum(sharded["moments"]) == sum(whole["moments"])


@pytest.mark.slow
def test_tokenizers(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "text").write_text("First Citizen:\nBefore we proceed any further, hear me. " * 200)
    flags = "--n-embd 16 --block-size 8 --batch-size 2 --eval-interval 5 --n-layer 1"
    argv = ("--runs", "char", "300", "--seeds", "1", "2", "--seconds", "4")
    entries = records(
        tmp_path, "subwords.py", *argv, "--data", tmp_path / "text", f"--flags={flags}"
    )
    assert [entry["tokenizer"] for entry in entries] == ["char", "300"]
    for entry in entries:
        assert [found["seed"] for found in entry["results"]] == [1, 2]
        for found in entry["results"]:
            assert 0 < found["best_bpb"] <= found["val_bpb"] < 8
            assert found["steps"] >= 1 and found["cpu_s"] > 0 and found["seconds"] <= 5
    losses = [entry["results"][0]["val_loss"] for entry in entries]
    bits = [entry["results"][0]["val_bpb"] for entry in entries]
    assert losses[0] / bits[0] < losses[1] / bits[1]  # a subword has more bytes


@pytest.mark.slow
@pytest.mark.reference
def test_time_to_loss_beside_torch(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "text").write_text("First Citizen:\nBefore we proceed any further, hear me. " * 200)
    flags = f"--data {tmp_path / 'text'} --max-iters 2 --eval-interval 1"
    argv = ("--runs", "torch", "--seeds", "1", f"--torch-flags={flags}")
    (entry,) = records(tmp_path, "time_to_loss.py", *argv)
    assert [step for _, step, _ in entry["curves"][0]] == [1, 2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_large_text(tmp_path):
    command = ("large_text.py", "--sizes", 1, "--max-seconds", 3, "--before", BENCH.parent)
    found = records(tmp_path, *command)
    assert [(r["code"], r["run"]) for r in found] == [
        ("here", "first"),
        ("here", "second"),
        ("before", "first"),
    ]
    for r in found:
        assert 10**6 - 4 < r["text_bytes"] <= 10**6 and r["steps"] >= 1
        assert 0 < r["first_step_s"] < r["wall_s"]
        assert r["resident_bytes"] >= r["anonymous_bytes"] > 10**7
    done = run("large_text.py", "--sizes", 1, "--before", tmp_path)
    assert done.returncode == 2 and f"{tmp_path} is no checkout of minigpt" in done.stderr


@pytest.mark.slow
def test_same_bits_tells_a_checkout_from_one_with_another_learning_rate(tmp_path):
    root, changed = BENCH.parent, tmp_path / "changed"
    shutil.copytree(root / "minigpt", changed / "minigpt")
    with open(changed / "minigpt" / "optim" / "schedule.py", "a", encoding="utf-8") as file:
        file.write(OTHER_LEARNING_RATE)
    for new, code, verdict in ((root, 0, "the same, "), (changed, 1, "NOT the same, ")):
        done = run("same_bits.py", root, new, "--steps", 2, "--only", "nanogpt-baby, no clip")
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.splitlines()[-1].startswith(verdict)
        loss, *_, weights = re.split("  +", done.stdout.splitlines()[2].strip())[1:]
        if new is root:
            assert loss == weights == "equal"
        else:
            assert loss.endswith("from 2") and float(weights) > 1e-6
    done = run("same_bits.py", root, "--only", "nothing")
    assert done.returncode == 1 and "no run begins with 'nothing'" in done.stderr


@pytest.mark.slow
@pytest.mark.report("24")
def test_memory_is_what_dry_run_says(tmp_path):
    command = ("memory.py", "--preset", "nanogpt-cpu", "--short", *ONE_THREAD, "--flags")
    [found] = records(tmp_path, *command, "--batch-size 24", before=NO_TORCH)
    assert found["preset"] == "nanogpt-cpu" and found["peak"] > 100e6
    assert found["estimate"] == pytest.approx(found["peak"], rel=0.15)
    command = ("memory.py", "--preset", "finetune lora all", "--base", "nanogpt-cpu")
    [found] = records(tmp_path, *command, "--short", *ONE_THREAD, before=NO_TORCH)
    assert found["estimate"] == pytest.approx(found["peak"], rel=0.15)


@pytest.mark.slow
@pytest.mark.reference
def test_follow(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "text").write_text("First Citizen:\nBefore we proceed any further, hear me. " * 200)
    command = ("follow.py", "--preset", "nanogpt-cpu", "--data", tmp_path / "text", "--steps", 12)
    [found] = records(tmp_path, *command, "--batch-size", 2)
    assert len(found["torch"]) == len(found["minigpt"]) == 12
    assert found["torch"][0] > found["torch"][-1] + 0.5
    assert found["minigpt"] == pytest.approx(found["torch"], abs=1e-4)


def test_fine_tuning_has_a_record_of_every_way(tmp_path):
    full, again, lora, *_ = records(
        tmp_path, "finetune.py", "memory", "--short", "--steps", "1", *ONE_THREAD, before=NO_TORCH
    )
    assert [r["mode"] for r in (full, again, lora)] == ["full", "recompute", "lora"]
    assert full["trained"] == again["trained"] == full["parameters"] > 10 * lora["trained"]
    assert full["peak"] > 0 and full["median_s"] > 0


@pytest.mark.slow
def test_fine_tuning_on_a_second_text_begins_where_the_first_has_led(tmp_path):
    pytest.importorskip("tokenizers")
    files = tmp_path / "first", tmp_path / "second"
    files[0].write_text("First Citizen:\nBefore we proceed any further, hear me speak.\n" * 200)
    files[1].write_text("Second Citizen:\nOne word, good citizens, before we proceed.\n" * 200)
    command = ("finetune.py", "loss", "--short", *ONE_THREAD, "--data", *files)
    _, scratch, full, lora, everywhere = records(
        tmp_path, *command, "--first-steps", 60, "--steps", 16, before=NO_TORCH
    )
    assert [r["way"] for r in (full, lora, everywhere)] == ["full", "LoRA", "LoRA, all layers"]
    before = {r["curve"][0][0]: r["curve"][0][2] for r in (full, lora, everywhere)}
    assert scratch["curve"][0][0] > 0 and before.keys() == {0}
    assert full["val_bpb"] < before[0] < scratch["val_bpb"] < 8
    assert lora["val_bpb"] < before[0]
    assert full["trained"] == scratch["trained"] > everywhere["trained"] > lora["trained"]
    assert lora["trained"] == 8 * (16 + 3 * 16)  # lora_a and lora_b of the one c_attn
    for r in (scratch, full, lora, everywhere):
        assert r["tokens"] == 16 * 16 * 16 and r["step_s"] > 0 and r["peak"] > 10**7
        assert r["tried"] == [[r["learning_rate"], r["val_loss"], r["val_bpb"]]]
    done = run(*command[:-1], tmp_path / "none")
    assert done.returncode == 2 and done.stderr.startswith("error: --data ")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"curve": [(0, 3.1, 4.0)]}, "LoRA begins at 3.1, full at 3.0"),
        ({"tokens": 9}, "not seen equally many tokens"),
    ],
)
def test_ways_of_fine_tuning_that_do_not_begin_alike_are_no_comparison(change, message):
    same = {"curve": [(0, 3.0, 4.0)], "steps": 2, "tokens": 8}
    records = [{"way": way, **same} for way in ("first text", "scratch", "full", "LoRA")]
    finetune.check(records)
    with pytest.raises(report.WrongResult, match=message):
        finetune.check([*records[:3], {**records[3], **change}])
