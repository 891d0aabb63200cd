"""Folders of transformers in the commands that take a model: as a run's own folder, on a backend.

What they compute on CuPy is compared with NumPy.
"""

import numpy as np
import pytest

import minigpt
from minigpt.interchange import __main__ as export
from minigpt.interchange.loading import load_model
from minigpt.model import checkpoint
from minigpt.sample import __main__ as sample
from minigpt.sample import score
from minigpt.train import __main__ as train
from tests.tools.training import begin, metrics, refusal

GREEDY = "--temperature=0", "--max-new-tokens=40", "--prompt=Line"
STEPS = "--max-iters=2", "--eval-interval=1", "--batch-size=3", "--warmup-iters=0"
STEPS += ("--gradient-accumulation-steps=1", "--learning-rate=0.02")


@pytest.fixture(scope="module", params=["--no-rotary", "--rotary"])
def places(request, tmp_path_factory):
    """The folder of a run, and that of its model as transformers reads it."""
    folder = tmp_path_factory.mktemp("models")
    assert begin(folder / "run", request.param, "--bias") == 0
    minigpt.load(folder / "run").export(folder / "exported")
    return folder / "run", folder / "exported"


@pytest.mark.cupy
def test_greedy_text_is_that_of_the_run_on_numpy(places, backend, capsys):
    run, folder = places
    texts = []
    for flags in (f"--out-dir={run}", "--backend=numpy"), (f"--model={folder}", backend):
        assert sample.main([*flags, *GREEDY]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0]) > 40


@pytest.mark.cupy
@pytest.mark.parametrize(
    "flags", [(), ("--lora-rank=2", "--lora-alpha=200")], ids=["all weights", "LoRA"]
)
def test_steps_from_a_folder_are_those_from_the_run_on_numpy(places, backend, tmp_path, flags):
    run, folder = places
    found = []
    for name, base, where in ("a", run, "--backend=numpy"), ("b", folder, backend):
        to = [f"--init-from={base}", f"--data={run.parent / 'text.txt'}"]
        to.append(f"--out-dir={tmp_path / name}")
        assert train.main([*to, where, *STEPS, *flags]) == 0
        found.append([line["val_loss"] for line in metrics(tmp_path / name) if "val_loss" in line])
    assert len(found[0]) == 3 and abs(found[0][2] - found[0][0]) > 1e-3
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    last = checkpoint.load(tmp_path / "b" / "last.safetensors")
    assert (last.lora is not None) is bool(flags)


COMMANDS = {
    "sample": lambda folder, to: sample.main([f"--model={folder}"]),
    "score": lambda folder, to: score.main([f"--model={folder}", f"--data={folder}/config.json"]),
    "export": lambda folder, to: export.main([f"--model={folder}", f"--to={to}"]),
    "train": lambda folder, to: train.main([f"--init-from={folder}", f"--out-dir={to}"]),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_each_command_refuses_a_folder_in_one_line_and_writes_nothing(tmp_path, capsys, command):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    before = sorted(tmp_path.rglob("*"))
    said = refusal(capsys, command, tmp_path / "m", tmp_path / "to")
    assert "model_type is 'llama'; what can be loaded: gpt2, starcoder2" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.cupy
def test_a_model_is_loaded_to_a_backend(places, xp):
    found = load_model(places[1], xp)
    assert type(found.params.flat) is xp.ndarray
    there, here = minigpt.load(places[1], xp.__name__), minigpt.load(places[0])
    np.testing.assert_allclose(
        there.logits("Line 1: "), here.logits("Line 1: "), rtol=1e-4, atol=1e-5
    )
