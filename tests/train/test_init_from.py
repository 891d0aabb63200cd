"""Runs that begin from a model that there is: --init-from, preset finetune."""

import json

import numpy as np
import pytest

import minigpt
from minigpt.data.datasets import TextData
from minigpt.errors import UserError
from minigpt.model import checkpoint, gpt
from minigpt.model.base import cropped
from minigpt.model.init import init_params
from minigpt.sample.evaluation import mean_loss
from minigpt.sample.tasks import TASKS
from minigpt.train import __main__ as train
from minigpt.train.options import options, parse
from minigpt.train.resume import stored_run
from tests.tools.options import gpt_config
from tests.tools.training import TEXT, begin, metrics, refusal, resume, same

SHORT = ("--max-iters=6", "--eval-interval=3", "--batch-size=3", "--threads=2")
OTHER = "\n".join(line[::-1] for line in TEXT.split("\n"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a run to begin from, with learned positions."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert begin(folder) == 0
    return folder


def tune(base, folder, *flags):
    """Fine-tune `base` on another text into `folder`; return the exit code."""
    text = folder.parent / "other.txt"
    text.write_text(OTHER, encoding="utf-8")
    flags = [f"--init-from={base}", f"--data={text}", f"--out-dir={folder}", *SHORT, *flags]
    return train.main(flags)


def test_the_first_evaluation_is_the_model_as_it_came(base, tmp_path):
    assert tune(base, tmp_path / "run") == 0
    first, *rest = [line for line in metrics(tmp_path / "run") if "val_loss" in line]
    assert first["step"] == first["tokens"] == 0 and first["train_loss"] is None
    found = checkpoint.load(base / "best.safetensors")
    data = TextData(str(tmp_path / "other.txt"), found.tokenizer)
    batches = TASKS["text"].eval_batches(data.val, found.config, 8)
    loss, _ = mean_loss(TASKS["text"], found.params, found.config, batches)
    assert first["val_loss"] == pytest.approx(loss, rel=1e-6)
    assert [line["step"] for line in rest] == [3, 6]
    after = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert after.tokenizer.chars == found.tokenizer.chars
    assert after.config == found.config and after.state["train"]["init_from"] == str(base)


def test_the_best_stays_the_model_as_it_came_where_training_harms_it(base, tmp_path, capsys):
    flags = ("--learning-rate=5", "--min-lr=5", "--warmup-iters=0", "--grad-clip=0")
    assert tune(base, tmp_path / "run", *flags) == 0
    assert "step      0   train -   validation " in capsys.readouterr().out
    best = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert best.state["best_step"] == best.state["step"] == 0
    np.testing.assert_array_equal(
        best.params.flat, checkpoint.load(base / "best.safetensors").params.flat
    )


def test_a_run_that_is_resumed_needs_its_own_files_alone(base, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "last.safetensors").write_bytes((base / "last.safetensors").read_bytes())
    decay = "--lr-decay-iters=6"
    assert tune(copy, tmp_path / "whole", decay) == 0
    assert tune(copy, tmp_path / "parts", "--max-iters=3", decay, "--warmup-iters=3") == 0
    assert tune(copy, tmp_path / "same", decay, "--warmup-iters=3") == 0
    (copy / "last.safetensors").unlink()
    assert resume(tmp_path / "parts", "--max-iters=6") == 0
    same(tmp_path / "same", tmp_path / "parts", "last.safetensors")


def test_the_preset_is_finetune_and_its_block_size_at_most_the_models(base):
    own, given = parse([f"--init-from={base}"])
    chosen = options(own, given)
    assert (chosen["learning_rate"], chosen["optimizer"]) == (3e-5, "adamw")
    assert (chosen["batch_size"], chosen["gradient_accumulation_steps"]) == (4, 8)
    assert chosen["block_size"] == 256 and "n_layer" not in chosen
    own, given = parse([f"--init-from={base}", "--preset=nanogpt-baby"])
    chosen = options(own, given)
    assert (chosen["batch_size"], chosen["dropout"]) == (64, 0.2) and "bias" not in chosen


def test_an_adapter_has_a_rate_of_its_own_and_no_weight_decay(base):
    def chosen(*flags):
        found = options(*parse([f"--init-from={base}", *flags]))
        return tuple(found[name] for name in ("learning_rate", "min_lr", "weight_decay"))

    whole, adapter = (3e-5, 3e-6, 0.1), (2e-4, 2e-5, 0.0)
    assert chosen() == chosen("--preset=finetune", "--lora-rank=0") == whole
    assert chosen("--lora-rank=8") == chosen("--preset=finetune", "--lora-rank=8") == adapter
    assert chosen("--lora-rank=8", "--learning-rate=1e-4") == (1e-4, pytest.approx(1e-5), 0.0)
    assert chosen("--lora-rank=8", "--min-lr=0", "--weight-decay=0.1") == (2e-4, 0.0, 0.1)
    flags = "--preset=nanogpt-cpu", "--lora-rank=8"
    assert chosen(*flags) == chosen(flags[0])


def test_the_rate_of_adapters_is_stored_and_goes_on_alike_in_python(base, tmp_path, capsys):
    text = tmp_path / "other.txt"
    text.write_text(OTHER, encoding="utf-8")
    flags = "--lora-rank=8", "--lora-alpha=16"
    assert tune(base, tmp_path / "run", *flags) == 0
    said = capsys.readouterr().out
    assert "parameters are trained" in said and "learning rate: " in said
    given = {"max_iters": 6, "eval_interval": 3, "batch_size": 3, "threads": 2}
    given |= {"lora_rank": 8, "lora_alpha": 16, "init_from": str(base), "progress": False}
    minigpt.fit(str(text), out_dir=tmp_path / "python", **given)
    same(tmp_path / "run", tmp_path / "python", "last.safetensors")
    kept = "--lr-decay-iters=6", "--warmup-iters=3"
    assert tune(base, tmp_path / "whole", *flags, *kept) == 0
    assert tune(base, tmp_path / "parts", *flags, *kept, "--max-iters=3") == 0
    assert resume(tmp_path / "parts", "--max-iters=6") == 0
    same(tmp_path / "whole", tmp_path / "parts", "last.safetensors")
    stored = checkpoint.load(tmp_path / "parts" / "last.safetensors").state["train"]
    found = tuple(stored[name] for name in ("learning_rate", "min_lr", "weight_decay"))
    assert found == (2e-4, 2e-5, 0.0)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_shorter_block_keeps_the_first_positions(rotary):
    config = gpt_config(7, 8, 2, 2, 8, rotary=rotary)
    params = init_params(config, 3, np)
    short = gpt_config(7, 5, 2, 2, 8, rotary=rotary)
    ids = np.arange(10).reshape(2, 5) % 7
    expected, _ = gpt.gpt_forward(ids, params.tree, config)
    found, _ = gpt.gpt_forward(ids, cropped(params, short).tree, short)
    np.testing.assert_array_equal(found, expected)
    assert cropped(params, config) is params


def test_a_shorter_block_is_trained_and_kept(base, tmp_path):
    assert tune(base, tmp_path / "run", "--block-size=5", "--dropout=0.1") == 0
    found = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert (found.config.block_size, found.config.dropout) == (5, 0.1)
    assert found.params["wpe"].shape == (5, 8)


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--n-layer=3", "n_layer is 1 in {}; it is part of the model and cannot become 3: leave"),
        ("--task=seq2seq", "task is text in {}; it is part of the model and cannot become seq2"),
        ("--block-size=9", "block_size is 8 in {} and can only become smaller, not 9: leave it"),
        ("--tokenizer=char", "{} has a tokenizer of its own: leave out --tokenizer"),
        ("--vocab-size=99", "vocab_size is 27 in {}; it is part of the model and cannot become"),
    ],
)
def test_what_contradicts_the_model_is_an_error(base, tmp_path, capsys, flag, said):
    error = refusal(capsys, tune, base, tmp_path / "run", flag)
    assert f"--init-from: {said}".format(base) in error
    assert not (tmp_path / "run").exists()


def test_options_that_repeat_the_models_are_none(base, tmp_path):
    assert tune(base, tmp_path / "run", "--n-layer=1", "--task=text", "--block-size=8") == 0


def test_no_model_and_characters_it_does_not_know_are_errors(base, tmp_path, capsys):
    error = refusal(capsys, tune, tmp_path / "none", tmp_path / "run")
    assert "none" in error
    (tmp_path / "cyrillic.txt").write_text("Ж" * 2000, encoding="utf-8")
    error = refusal(capsys, tune, base, tmp_path / "run", f"--data={tmp_path / 'cyrillic.txt'}")
    assert "Ж" in error
    error = refusal(capsys, train.main, ["--preset=finetune"])
    assert error == "error: preset finetune is for a model that there is: name it by --init-from"


def test_a_run_that_is_resumed_cannot_begin_from_another_model(base, tmp_path, capsys):
    assert tune(base, tmp_path / "run") == 0
    error = refusal(capsys, resume, tmp_path / "run", f"--init-from={tmp_path}")
    assert "goes on from its own weights: leave out --init-from" in error
    stored = stored_run({"out_dir": str(tmp_path / "run"), "init_from": str(base)})
    assert stored[3].init_from == str(base)


def test_a_file_of_options_and_fit_begin_from_a_model_too(base, tmp_path):
    (tmp_path / "run.toml").write_text(f'init_from = "{base}"\nmax_iters = 2\n')
    (tmp_path / "other.txt").write_text(OTHER)
    flags = [f"--config={tmp_path / 'run.toml'}", f"--data={tmp_path / 'other.txt'}", *SHORT[2:]]
    assert train.main([*flags, f"--out-dir={tmp_path / 'a'}"]) == 0
    model = minigpt.fit(
        text=OTHER, init_from=base, max_iters=2, batch_size=3, threads=2, progress=False
    )
    found = checkpoint.load(tmp_path / "a" / "best.safetensors")
    np.testing.assert_array_equal(model.params.flat, found.params.flat)
    with pytest.raises(UserError, match="^--init-from: n_embd is 8 in .* cannot become 16"):
        minigpt.fit(text=OTHER, init_from=base, n_embd=16)


def test_an_encoder_decoder_is_fine_tuned_on_pairs(tmp_path, capsys):
    lines = [f"{i} {i % 7}\t{i % 7}{i % 3}\n" for i in range(60)]
    (tmp_path / "pairs.tsv").write_text("".join(lines))
    model = ("--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=12", "--warmup-iters=0")
    given = ("--data", str(tmp_path / "pairs.tsv"), *SHORT)
    run = [*given, "--task=seq2seq", *model, f"--out-dir={tmp_path / 'a'}"]
    assert train.main(run) == 0
    (tmp_path / "pairs.tsv").write_text("".join(lines[::2]))
    assert train.main([*given, f"--init-from={tmp_path / 'a'}", f"--out-dir={tmp_path / 'b'}"]) == 0
    first = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and "exact_match" in first
    found = checkpoint.load(tmp_path / "b" / "last.safetensors")
    assert found.state["train"]["task"] == "seq2seq" and found.config.block_size == 12


def test_dry_run_reads_the_model_and_writes_nothing(base, tmp_path, capsys):
    assert tune(base, tmp_path / "run", "--dry-run", "--recompute") is None
    out = capsys.readouterr().out
    assert "1 layer, 2 heads, 8 channels, context 8" in out
    assert not (tmp_path / "run").exists()


def test_a_budget_in_seconds_evaluates_as_much_as_there_is_time_for(base, tmp_path):
    assert tune(base, tmp_path / "run", "--max-seconds=4") == 0
    first = [line for line in metrics(tmp_path / "run") if "val_loss" in line][0]
    state = checkpoint.load(tmp_path / "run" / "last.safetensors").state
    assert first["step"] == 0 and state["eval_targets"] > 100
