"""Runs that train an adapter alone: --lora-rank."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors

import minigpt
from minigpt.errors import UserError
from minigpt.interchange.loading import open_on_host
from minigpt.model import checkpoint
from minigpt.model.base import load_plain
from minigpt.model.gpt import gpt_forward
from minigpt.model.init import init_params
from minigpt.model.lora import Lora, init_adapter, join
from minigpt.ops.dropout import Rng
from minigpt.params import Params, leaves
from minigpt.train import __main__ as train
from minigpt.train.config import TrainConfig, check_options
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.options import gpt_config
from tests.tools.training import TEXT, begin, metrics, refusal, resume, same

SHORT = ("--max-iters=6", "--eval-interval=3", "--log-interval=1", "--batch-size=3")
SHORT += ("--gradient-accumulation-steps=2", "--threads=2", "--learning-rate=0.01")
SHORT += ("--warmup-iters=2", "--lr-decay-iters=6")
LAYERS = ("--lora-targets", "c_attn", "mlp.c_proj")
ADAPTER = ("--lora-rank=3", "--lora-alpha=6", "--lora-dropout=0.2", *LAYERS)
OTHER = "\n".join(line[::-1] for line in TEXT.split("\n"))
GPT = gpt_config(7, 6, 2, 2, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a run to adapt."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert begin(folder) == 0
    return folder


def adapt(base, folder, *flags):
    """Train an adapter of `base` on another text into `folder`; return the exit code."""
    text = folder.parent / "other.txt"
    text.write_text(OTHER, encoding="utf-8")
    place = [f"--init-from={base}", f"--data={text}", f"--out-dir={folder}"]
    return train.main([*place, *SHORT, *(() if "--lora-rank=0" in flags else ADAPTER), *flags])


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """The folder of a run that has trained an adapter of `base`."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    assert adapt(base, folder) == 0
    return folder


def trainer(config, lora, workers, seed=1, **options):
    """Return a Trainer of a new adapter of random weights."""
    own = {f"lora_{name}": getattr(lora, name) for name in ("rank", "alpha", "dropout", "rslora")}
    train_config = TrainConfig(
        optimizer="adamw", init_from="x", lora_targets="\n".join(lora.targets), **own, **options
    )
    frozen = init_params(config, seed)
    return Trainer(init_adapter(config, lora, seed), config, train_config, np, workers, frozen)


def test_steps_change_the_adapter_alone_and_lower_the_loss(rng):
    lora = Lora(2, 4.0, 0.1, ("c_attn", "c_proj", "c_fc"))
    ids = np.tile(np.arange(7, dtype=np.int32), 100)
    with Workers(1) as workers:
        it = trainer(GPT, lora, workers, learning_rate=0.02, min_lr=0.02, warmup_iters=0)
        base, first = init_params(GPT, 1), it.params.flat.copy()
        before = it.evaluate(ids)
        for step in range(20):
            it.step(ids, step)
        assert it.evaluate(ids) < before - 0.02
        named = dict(Params(it.params.shapes, np, "float32", it.params.flat != first).leaves())
        assert all(changed.any() for changed in named.values())
        assert len(named) == 2 * 4 * 2  # two factors of four matrices in two layers
        arrays = dict(leaves(it.tree))
        assert all(np.array_equal(arrays[name], old) for name, old in base.leaves())


def test_the_moments_are_the_adapters():
    with Workers(1) as workers:
        it = trainer(GPT, Lora(2, 4.0), workers)
        size = 2 * (8 * 2 + 2 * 24)
        assert it.grads.size == it.optimizer.m.size == it.optimizer.v.size == size


def test_threads_and_batches_give_the_gradients_of_one_thread(rng):
    lora = Lora(2, 4.0, 0.3, ("c_attn", "mlp.c_proj"))
    config = replace(GPT, dropout=0.2)
    ids = rng.integers(0, 7, (5, 6), dtype=np.int32)
    found = []
    for n in (1, 3):
        with Workers(n) as workers:
            it = trainer(config, lora, workers, threads=n)
            it.params.flat[...] = np.random.default_rng(3).standard_normal(it.params.size)
            it.gradients(ids, ids, Rng.of(4, 5))
            found.append(it.grads.flat.copy())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2e-6 * abs(found[0]).max())


def test_the_first_evaluation_is_the_base_and_the_run_lowers_the_loss(base, adapted):
    lines = [line for line in metrics(adapted) if "val_loss" in line]
    assert [line["step"] for line in lines] == [0, 3, 6]
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]
    found = checkpoint.load(adapted / "best.safetensors")
    assert found.lora == Lora(3, 6.0, 0.2, ("c_attn", "mlp.c_proj"))
    assert found.base.name == str(base) and found.base.folder == ""
    with safetensors.safe_open(adapted / "best.safetensors", "np") as file:
        assert set(file.keys()) == {
            f"h.0.{layer}.{factor}"
            for layer in ("attn.c_attn", "mlp.c_proj")
            for factor in ("lora_a", "lora_b")
        }


def test_a_run_that_is_resumed_ends_bit_for_bit_as_one_that_was_not(base, adapted, tmp_path):
    assert adapt(base, tmp_path / "parts", "--max-iters=3") == 0
    assert resume(tmp_path / "parts", "--max-iters=6") == 0
    for name in ("last.safetensors", "best.safetensors"):
        same(adapted, tmp_path / "parts", name)


def test_whatever_does_not_train_on_sees_merged_weights(base, adapted, capsys):
    found, whole = (checkpoint.load(folder / "best.safetensors") for folder in (adapted, base))
    plain = load_plain(adapted / "best.safetensors", np, open_on_host)
    assert plain.lora is plain.base is None and plain.params.shapes == whole.params.shapes
    ids = np.arange(6, dtype=np.int32)[None]
    joined, _ = gpt_forward(ids, join(whole.params, found.params, found.lora), whole.config)
    merged, _ = gpt_forward(ids, plain.params.tree, whole.config)
    np.testing.assert_allclose(merged, joined, atol=1e-5)
    assert not np.allclose(merged, gpt_forward(ids, whole.params.tree, whole.config)[0], atol=1e-4)
    model = minigpt.load(adapted)
    np.testing.assert_array_equal(model.params.flat, plain.params.flat)


def test_an_adapter_can_be_fine_tuned_and_adapted_again(adapted, tmp_path):
    assert adapt(adapted, tmp_path / "again") == 0
    assert adapt(adapted, tmp_path / "whole", "--lora-rank=0") == 0
    plain = load_plain(tmp_path / "again" / "last.safetensors", np, open_on_host)
    assert checkpoint.load(tmp_path / "whole" / "last.safetensors").lora is None
    assert plain.params.size == checkpoint.load(tmp_path / "whole" / "best.safetensors").params.size


def test_another_or_missing_base_is_refused(base, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    assert adapt(copy, tmp_path / "run", "--max-iters=3") == 0
    files = {path: path.read_bytes() for path in copy.iterdir()}
    again = lambda *flags: resume(tmp_path / "run", "--max-iters=6", *flags)  # noqa: E731
    for path in files:
        path.unlink()
    line = refusal(capsys, again)
    assert "last.safetensors is an adapter, and its base cannot be read" in line
    assert str(copy) in line
    with pytest.raises(UserError, match="an adapter, and its base cannot be read"):
        minigpt.load(tmp_path / "run")
    assert begin(tmp_path / "other", "--seed=7") == 0
    line = refusal(capsys, again, f"--init-from={tmp_path / 'other'}")
    assert "has other weights now (SHA-256 " in line and str(tmp_path / "other") in line
    assert again(f"--init-from={base}") == 0  # the same model in another place


def test_a_relative_base_is_found_from_another_folder(base, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(base.parent)
    assert adapt("run", tmp_path / "run") == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").base.folder == str(base.parent)
    assert minigpt.load(tmp_path / "run").config == minigpt.load(base).config
    assert resume(tmp_path / "run", "--max-iters=7") == 0


def test_an_adapter_does_not_take_the_place_of_its_base(base, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(base, folder)
    for place in (folder, folder / "best.safetensors"):
        line = refusal(capsys, adapt, place, folder, "--overwrite")
        assert "give another --out-dir" in line
    same(base, folder, "last.safetensors")


def test_positions_are_cut_as_in_the_whole_model(base, tmp_path):
    assert adapt(base, tmp_path / "run", "--block-size=5") == 0
    model = minigpt.load(tmp_path / "run")
    assert model.config.block_size == 5 and model.params["wpe"].shape == (5, 8)
    wpe = checkpoint.load(base / "best.safetensors").params["wpe"]
    np.testing.assert_array_equal(model.params["wpe"], wpe[:5])


@pytest.mark.parametrize(
    "given, said",
    [
        ({"lora_alpha": 8.0}, "lora_alpha is 8.0, but lora_rank is 0"),
        ({"lora_dropout": 0.1}, "lora_dropout is 0.1, but lora_rank is 0"),
        ({"lora_targets": "c_fc"}, "lora_targets is c_fc, but lora_rank is 0"),
        ({"lora_rslora": True}, "lora_rslora is True, but lora_rank is 0"),
        ({"lora_rank": 8, "optimizer": "adamw"}, "there is no model to adapt"),
        ({"lora_rank": 8, "init_from": "x"}, "optimizer is muon, which steps whole matrices"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        TrainConfig(**given)


@pytest.mark.parametrize(
    "name, value",
    [("lora_rank", -1), ("lora_alpha", 0), ("lora_dropout", 1), ("lora_rslora", 2)],
)
def test_values_that_no_adapter_can_have_are_refused(name, value):
    with pytest.raises(UserError, match=name):
        check_options({name: value})


def test_targets_are_words_or_parted_by_commas():
    for given in ("c_attn, c_proj", "c_attn\nc_proj", ["c_attn", "c_proj"], "c_attn,c_proj,"):
        config = TrainConfig(lora_rank=4, init_from="x", optimizer="adamw", lora_targets=given)
        assert config.lora == Lora(4, 4.0, 0.0, ("c_attn", "c_proj"))


def test_what_a_command_refuses_is_one_line(base, adapted, tmp_path, capsys):
    line = refusal(capsys, adapt, base, tmp_path / "run", "--lora-targets", "wte")
    assert "target 'wte' is no linear layer" in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    line = refusal(capsys, resume, copy, "--max-iters=9", "--lora-rank=4")
    assert "lora_rank is 3" in line and "cannot become 4" in line
    line = refusal(capsys, resume, copy, "--max-iters=9", "--lora-targets=c_fc")
    assert "it is part of the adapter" in line


@pytest.mark.parametrize(
    "key, value",
    [
        ("lora", "{}"),
        ("lora", '{"rank": 0, "alpha": 1.0}'),
        ("lora", "[1]"),
        ("lora", '{"rank": 4, "alpha": 6.0, "targets": ["wte"]}'),
        ("lora", '{"rank": 4, "alpha": 6.0}'),
        ("base", '{"name": 1, "folder": "", "sha256": ""}'),
        ("base", "null"),
        ("base", None),
    ],
)
def test_damaged_metadata_are_one_line(adapted, tmp_path, key, value):
    path = tmp_path / "best.safetensors"
    data = (adapted / "best.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    header["__metadata__"][key] = value
    if value is None:
        del header["__metadata__"][key]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_versions_without_adapters_say_so(adapted):
    """They accept the format "minigpt 1" alone, and name any other."""
    with safetensors.safe_open(adapted / "best.safetensors", "np") as file:
        assert file.metadata()["format"] == "minigpt 1 adapter"
