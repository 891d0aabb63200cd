"""An adapter of a folder of transformers on its way: trained, resumed, sampled, exported for peft.

The base is a tiny GPT-2 that was trained and exported here.
"""

import json
import shutil

import numpy as np
import pytest

import minigpt
from minigpt import __main__ as program
from minigpt.errors import UserError
from minigpt.model import checkpoint
from tests.tools.training import TEXT, begin, refusal, resume, same

SHORT = ("--max-iters=6", "--eval-interval=3", "--log-interval=1", "--batch-size=3")
SHORT += ("--gradient-accumulation-steps=2", "--threads=2", "--learning-rate=0.01")
SHORT += ("--warmup-iters=2", "--lr-decay-iters=6")
ADAPTER = ("--lora-rank=3", "--lora-alpha=6", "--lora-targets", "c_attn", "mlp.c_proj")
FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model is exported."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert begin(folder) == 0
    return folder


@pytest.fixture(scope="module")
def base(run):
    """A folder of transformers."""
    assert minigpt_("export", f"--out-dir={run}", f"--to={run.parent / 'hf'}") == 0
    return run.parent / "hf"


def minigpt_(*words):
    """Run a command of minigpt; return the exit code."""
    return program.main([*map(str, words)])


def adapt(base, folder, *flags):
    """Train an adapter of `base` into `folder`; return the exit code."""
    text = folder.parent / "other.txt"
    text.write_text(TEXT[::-1], encoding="utf-8")
    place = [f"--init-from={base}", f"--data={text}", f"--out-dir={folder}"]
    return minigpt_("train", *place, *SHORT, *ADAPTER, *flags)


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """The folder of a run that has trained an adapter of `base`."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    assert adapt(base, folder) == 0
    return folder


@pytest.fixture(scope="module")
def exported(adapted):
    """The adapter alone, in peft's files."""
    folder = adapted.parent / "peft"
    assert minigpt_("export", f"--out-dir={adapted}", f"--to={folder}", "--adapter-only") == 0
    return folder


def sampled(capsys, *flags):
    """Return what `minigpt sample` prints."""
    capsys.readouterr()
    assert minigpt_("sample", "--max-new-tokens=30", "--seed=5", *flags) == 0
    return capsys.readouterr().out


def test_an_adapter_of_a_folder_of_transformers_is_resumed_bit_for_bit(base, adapted, tmp_path):
    assert adapt(base, tmp_path / "parts", "--max-iters=3") == 0
    assert resume(tmp_path / "parts", "--max-iters=6") == 0
    for name in ("last.safetensors", "best.safetensors"):
        same(adapted, tmp_path / "parts", name)
    found, whole = minigpt.load(adapted), minigpt.load(base)
    assert not np.array_equal(found.params.flat, whole.params.flat)
    assert found.tokenizer.chars == whole.tokenizer.chars


def test_peft_finds_the_base_and_the_adapter_comes_back_as_it_is(base, adapted, exported, capsys):
    assert {path.name for path in exported.iterdir()} == FILES
    fields = json.loads((exported / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(base.resolve())
    assert (fields["r"], fields["lora_alpha"]) == (3, 6.0)
    assert fields["target_modules"] == ["c_attn", "mlp.c_proj"]
    card = (exported / "README.md").read_text("utf-8")
    assert f'from_pretrained("{base.resolve()}")' in card
    for row in ("| layers | c_attn, mlp.c_proj |", "other.txt |", "| validation loss | "):
        assert row in card
    assert "base_model: " not in card  # that is a name on the hub
    ours, again = minigpt.load(adapted), minigpt.load(base, adapter=exported)
    np.testing.assert_array_equal(again.params.flat, ours.params.flat)
    assert again.adapter is None and ours.adapter.lora.rank == 3
    text = sampled(capsys, "--model", base, "--adapter", exported)
    assert text == sampled(capsys, "--out-dir", adapted)
    assert text != sampled(capsys, "--model", base)


def test_the_merged_export_has_the_logits_of_the_adapted_model(base, adapted, tmp_path):
    assert minigpt_("export", "--out-dir", adapted, "--to", tmp_path / "a") == 0
    assert minigpt_("export", "--out-dir", adapted, "--to", tmp_path / "b", "--merge") == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert one == other
    ids = np.arange(8)
    logits = minigpt.load(tmp_path / "a").logits(ids)
    np.testing.assert_array_equal(logits, minigpt.load(adapted).logits(ids))
    assert abs(logits - minigpt.load(base).logits(ids)).max() > 1e-3


def test_the_library_exports_the_same_adapter(adapted, exported, tmp_path):
    model = minigpt.load(adapted)
    model.export(tmp_path / "peft", data=model.adapter.state["data_name"], adapter_only=True)
    for name in FILES:
        assert (tmp_path / "peft" / name).read_bytes() == (exported / name).read_bytes()
    model.save(tmp_path / "merged.safetensors")
    with pytest.raises(UserError, match="has no adapter: all of its weights were trained"):
        minigpt.load(tmp_path / "merged.safetensors").export(tmp_path / "c", adapter_only=True)
    assert not (tmp_path / "c").exists()


def test_of_a_base_that_is_a_checkpoint_the_export_is_named(run, tmp_path, capsys):
    assert adapt(run, tmp_path / "run", "--max-iters=3") == 0
    flags = "--out-dir", tmp_path / "run", "--to", tmp_path / "peft"
    capsys.readouterr()
    assert minigpt_("export", *flags, "--no-merge") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path / 'peft'}: an adapter for peft, of {run}"
    before, command = second.split(": ", 1)
    assert before == "its base must be exported, too"
    assert command == f"python -m minigpt.interchange --model {run} --to BASE"
    fields = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] is None
    assert minigpt_("export", "--model", run, "--to", tmp_path / "hf") == 0
    again = minigpt.load(tmp_path / "hf", adapter=tmp_path / "peft")
    ids = np.arange(8)
    expected = minigpt.load(tmp_path / "run").logits(ids)
    np.testing.assert_allclose(again.logits(ids), expected, rtol=0, atol=1e-6)


def test_what_cannot_be_exported_alone_is_one_line_and_nothing_is_written(
    run, base, adapted, exported, tmp_path, capsys
):
    alone = ("export", "--to", tmp_path / "peft", "--adapter-only")
    for flags, said in (
        (("--out-dir", adapted, "--merge"), "--merge and --adapter-only: give one of the two"),
        (("--out-dir", run), "this model has no adapter: all of its weights were trained"),
        (("--model", base, "--adapter", exported), "is in peft's format already"),
        (("--model", base), "is for an adapter that was trained here"),
    ):
        assert said in refusal(capsys, minigpt_, *alone, *flags)
    into_base = "--out-dir", adapted, "--to", base, "--force"
    before = {path: path.read_bytes() for path in base.iterdir()}
    line = refusal(capsys, minigpt_, "export", "--adapter-only", *into_base)
    assert f"{base} is the folder of the adapter's base" in line
    assert {path: path.read_bytes() for path in base.iterdir()} == before
    assert not (tmp_path / "peft").exists()


def test_without_its_base_an_adapter_says_what_is_needed(base, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    assert adapt(copy, tmp_path / "run", "--max-iters=3") == 0
    shutil.rmtree(copy)
    out = f"--out-dir={tmp_path / 'run'}"
    said = f"is an adapter, and its base cannot be read: {copy}"
    assert said in refusal(capsys, minigpt_, "sample", out)
    assert said in refusal(capsys, minigpt_, "export", out, f"--to={tmp_path / 'merged'}")
    assert said in refusal(capsys, resume, tmp_path / "run", "--max-iters=6")
    assert not (tmp_path / "merged").exists()
    assert minigpt_("export", out, f"--to={tmp_path / 'peft'}", "--adapter-only") == 0  # needs none
    assert {path.name for path in (tmp_path / "peft").iterdir()} == FILES


def test_a_base_of_the_hub_keeps_its_name(adapted, tmp_path):
    found = checkpoint.load(adapted / "best.safetensors")
    found = found._replace(base=found.base._replace(name="owner/model", folder=""))
    path = tmp_path / "hub.safetensors"
    checkpoint.save(path, **of_save(found))
    assert minigpt_("export", "--checkpoint", path, "--to", tmp_path / "p", "--adapter-only") == 0
    fields = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "owner/model"
    assert "\nbase_model: owner/model\n" in (tmp_path / "p" / "README.md").read_text("utf-8")


def of_save(found):
    """Return what checkpoint.save takes of a Checkpoint."""
    names = "params", "config", "tokenizer", "state", "lora", "base"
    return {name: getattr(found, name) for name in names}


@pytest.mark.reference
def test_peft_gives_the_logits_of_our_merged_model(adapted, exported):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, exported).eval()
    at_once = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    ids = np.arange(8)
    expected = minigpt.load(adapted).logits(ids)
    with torch.no_grad():
        for model in (theirs, at_once):
            found = model(torch.tensor(ids[None])).logits.numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * abs(expected).max())
