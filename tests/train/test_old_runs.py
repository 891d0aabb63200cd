"""Runs of commit 913c30c, whose options had other names and other defaults, are still resumed.

tests/data/old has a few: 4 steps each, and in `resumed.safetensors` the tensors of
`last.safetensors` after that commit had resumed them to 6 steps.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from minigpt import cli
from minigpt.cli import aliases
from minigpt.model.checkpoint import load
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.sample import __main__ as sample
from minigpt.train import __main__ as train
from minigpt.train.config import TrainConfig
from minigpt.train.resume import resume_run

pytestmark = pytest.mark.usefixtures("no_picture")

OLD = Path(__file__).parents[1] / "data" / "old"
RUNS = ("adamw", "quick", "lecture", "seq2seq")
OPTIONS = {  # those whose names, values or defaults are others now
    "adamw": {"sampler": "uniform", "init_scale": "residual", "qkv_bias": False, "bigram": False},
    "quick": {"sampler": "weyl", "init_scale": "residual", "lr_decay_fraction": 0.5},
    "lecture": {"sampler": "uniform", "init_scale": "plain", "qkv_bias": False, "bias": True},
    "seq2seq": {"sampler": "uniform", "qkv_bias": True, "rotary": False, "activation": "gelu"},
}


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The folder of the runs, in a copy: they name their data relative to it."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("name", RUNS)
def test_an_old_checkpoint_is_read_to_the_bit(name):
    path = OLD / name / "last.safetensors"
    checkpoint, tensors = load(path), safetensors.numpy.load_file(path)
    weights = dict(checkpoint.params.leaves())
    moments = checkpoint.optimizer_arrays.items()
    weights |= {f"optimizer.{m}.{name}": x for m, of in moments for name, x in of.leaves()}
    assert weights.keys() == tensors.keys()
    for key, x in weights.items():
        np.testing.assert_array_equal(x, tensors[key])


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_resumed_as_it_was(old, name):
    # Not to the bit: the matrix products of another machine may round in another way.
    assert train.main(["--resume", f"--out-dir={name}", "--max-iters=6"]) == 0
    checkpoint = load(old / name / "last.safetensors")
    found = safetensors.numpy.load_file(old / name / "last.safetensors")
    expected = safetensors.numpy.load_file(OLD / name / "resumed.safetensors")
    assert found.keys() == expected.keys() and checkpoint.state["step"] == 6
    for key, x in expected.items():
        np.testing.assert_allclose(found[key], x, rtol=1e-3, atol=2e-6, err_msg=key)
    options = {**vars(checkpoint.config), **checkpoint.state["train"]}
    assert OPTIONS[name].items() <= options.items()
    assert options["lr_decay_iters"] == 6 and options["dtype"] == "float32"
    assert not aliases.ALIASES.keys() & options.keys()


@pytest.mark.report("10")
def test_an_old_run_keeps_its_split(old):
    rows = [tuple(line.split("\t")) for line in Path("pairs.tsv").read_text().splitlines()]
    run = resume_run({"out_dir": "seq2seq", "max_iters": 6})
    assert run.data.val_pairs == rows[9::10] and run.state.split == "position"


@pytest.mark.parametrize("name", RUNS)
def test_an_old_checkpoint_is_sampled(name, capsys):
    checkpoint = ["--checkpoint", str(OLD / name / "best.safetensors")]
    prompt = {"seq2seq": ["--prompt=42", "--verbose"]}.get(name, ["--max-new-tokens=20"])
    sample.main([*checkpoint, *prompt])
    assert capsys.readouterr().out.strip()


def test_what_an_old_checkpoint_lacks_has_its_value_of_then():
    then = {
        **cli.fields_of(GPTConfig),
        **cli.fields_of(Seq2SeqConfig),
        **cli.fields_of(TrainConfig),
    }
    assert aliases.OLD_DEFAULTS.keys() == then.keys()
    config = cli.build(GPTConfig, aliases.stored({"n_embd": 8}, cli.fields_of(GPTConfig)))
    assert config == GPTConfig(
        50257, 64, 4, 4, 8, bias=True, rotary=False, bigram=False, activation="gelu"
    )
    stored = {"places": "even", "max_iters": 7}
    config = cli.build(TrainConfig, aliases.stored(stored, cli.fields_of(TrainConfig)))
    assert (config.sampler, config.optimizer, config.batch_size) == ("weyl", "adamw", 12)
    assert (config.min_lr, config.beta2, config.lr_decay_iters) == (1e-4, 0.99, 7)


@pytest.mark.parametrize(
    "old, new",
    [
        ({"places": "random"}, {"sampler": "uniform"}),
        ({"places": "even", "seed": 3}, {"sampler": "weyl", "seed": 3}),
        ({"places": "even", "sampler": "uniform"}, {"sampler": "uniform"}),
        ({"init": "gpt2"}, {"init_scale": "residual"}),
        ({"init": "lecture"}, {"init_scale": "plain"}),
        ({"lr_decay_share": 0.3}, {"lr_decay_fraction": 0.3}),
        ({"tf32": False}, {}),
        ({"tf32": True}, {"dtype": "tf32"}),
        ({"tf32": True, "dtype": "float32"}, {"dtype": "tf32"}),
        ({"tf32": True, "dtype": "float16"}, {"dtype": "float16"}),
        ({"tf32": False, "dtype": "float16"}, {"dtype": "float16"}),
        ({"places": [1]}, {"sampler": [1]}),
    ],
    ids=json.dumps,
)
def test_old_names_become_new_ones(old, new):
    assert aliases.rename(old) == new
