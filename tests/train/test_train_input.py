"""What is wrong with the input of a run is reported in one line, with exit code 2."""

import re
import sys

import pytest

from minigpt import backend, cli
from minigpt.cli import aliases
from minigpt.errors import UserError
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.train import __main__ as train
from minigpt.train.config import TrainConfig
from minigpt.train.options import options, parse
from minigpt.train.step import Trainer
from tests.tools.training import begin, refusal

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.mark.parametrize(
    "text, told",
    [
        ("n_heads = 3", "run.toml: unknown option 'n_heads'; did you mean 'n_head'?"),
        ("n_head = ", "is not a TOML file: Invalid value"),
        ("n_head = '3'", "run.toml: n_head is '3'; it must be a whole number"),
        ("data = 3", "run.toml: data is 3; it must be a string"),
        ("task = false", "run.toml: task is False; it must be a string"),
        ("task = []", "run.toml: task is []; it must be a string"),
        ("task = 'images'", "run.toml: task is 'images'; choose from text, seq2seq"),
        ("dropout = 1", "run.toml: dropout is 1.0; it must be at least 0 and below 1"),
        ("places = 'odd'", "run.toml: sampler is 'odd'; choose from uniform, weyl"),
        ("tf32 = 3", "run.toml: dtype is 3; it must be a string"),
        ("preset = 'gpt3'", "run.toml: preset is 'gpt3'; choose from quick, "),
        ("preset = []", "run.toml: preset is []; choose from quick, "),
        ("[model]\nn_head = 3", "run.toml: [model] is a table, but options stand without one"),
        ("n_head = [3]", "run.toml: n_head is [3]; it must be a whole number"),
        ('data = "a\\u0000"', "cannot be read: embedded null byte"),
        ('out_dir = "a\\u0000"', "--out-dir 'a\\x00': no folder can have that name"),
        ("\xff", "run.toml is not UTF-8: byte 0xff at offset 0"),
        (None, "run.toml cannot be read: No such file"),
    ],
)
def test_a_config_file_that_is_no_good(tmp_path, capsys, text, told):
    if text is not None:
        (tmp_path / "run.toml").write_text(text, encoding="latin-1")
    flags = [f"--config={tmp_path / 'run.toml'}"]
    if "out_dir" not in (text or ""):
        flags += [f"--out-dir={tmp_path / 'run'}"]
    assert told in refusal(capsys, train.main, flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag, told",
    [
        ("--n-heads=3", "unknown flag '--n-heads'; did you mean '--n-head'?"),
        ("--preset=nanogtp-cpu", "preset is 'nanogtp-cpu'; choose from quick, "),
        ("--preset=nanogtp-cpu", "did you mean 'nanogpt-cpu'?"),
        ("--n-head=3", "n_embd is 8, not a multiple of n_head 3"),
        ("--batch-size=0", "--batch-size is 0; it must be at least 1"),
        ("--block-size=0", "--block-size is 0; it must be at least 1"),
        ("--threads=0", "--threads is 0; it must be at least 1"),
        ("--n-layer=2.5", "--n-layer is '2.5'; it must be a whole number"),
        ("--activation=gleu", "--activation is 'gleu'; choose from gelu, "),
        ("--dropout=1", "--dropout is 1.0; it must be"),
        ("--learning-rate=nan", "--learning-rate is nan; it must be a number"),
        ("--vocab-size=3", "vocab_size is 3, but the text has"),
        ("--backend=torch", "choose from numpy, cupy; minigpt computes with NumPy and CuPy"),
        ("--dtype=bf16", "choose from float32, tf32, float16, bfloat16; bfloat16 is the name here"),
        ("--bf16", "--bf16: use --backend cupy with --dtype bfloat16"),
        ("--init=gpt2", "--init: use --init-scale; gpt2 is residual, lecture is plain"),
        ("--init-scale=gpt2", "GPT-2's initialization is residual; pretrained weights are not"),
        ("--places=even", "--places: use --sampler; random is uniform, even is weyl"),
        ("--lr-decay-share=0.5", "--lr-decay-share: use --lr-decay-fraction"),
        ("--tf32", "--tf32: use --dtype tf32"),
        ("--block-size=300", "the text is too short: its validation part has 200 of 2000 tokens"),
        ("--data=none.txt", "none.txt cannot be read: No such file"),
        ("--data=*.none", "--data *.none: no file has a name like that"),
        ("--n-embd=1000000000000", "the model would have 1e+25 parameters"),
    ],
)
def test_bad_input_is_reported_in_one_line_and_leaves_nothing(tmp_path, capsys, flag, told):
    assert told in refusal(capsys, begin, tmp_path / "run", flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "raw, told",
    [
        (b"", "is empty; name a file with text in it"),
        (b"abc\xe9def" * 99, "is not UTF-8: byte 0xe9 at offset 3"),
        (b"ab", "the text is too short"),
    ],
)
def test_a_text_that_is_no_good(tmp_path, capsys, raw, told):
    (tmp_path / "text.txt").write_bytes(raw)
    assert told in refusal(capsys, begin, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cupy_that_is_missing_is_reported_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr("minigpt.data.datasets.survey", lambda sources: pytest.fail("too early"))
    error = refusal(capsys, begin, tmp_path / "run", "--backend=cupy")
    assert "--backend cupy" in error and "pip install" in error


@pytest.mark.parametrize("flag", ["--dtype=float16", "--dtype=tf32", "--dtype=bfloat16"])
def test_what_numpy_cannot_do_is_reported_before_any_work(tmp_path, capsys, monkeypatch, flag):
    monkeypatch.setattr("minigpt.data.datasets.survey", lambda sources: pytest.fail("too early"))
    error = refusal(capsys, begin, tmp_path / "run", flag)
    assert error.startswith(f"error: {flag.replace('=', ' ')}: NumPy has no ")
    assert "use --backend cupy" in error and not (tmp_path / "run").exists()


def test_too_little_memory(tmp_path, capsys, monkeypatch):
    error = refusal(capsys, begin, tmp_path / "run", f"--batch-size={2**48 - 1}")
    assert error.startswith("error: out of memory in a training step (Unable to allocate ")
    assert "--batch-size" in error and "--dry-run" in error

    def fail(self, *_):
        raise MemoryError

    monkeypatch.setattr(Trainer, "step", fail)
    error = refusal(capsys, begin, tmp_path / "run", "--overwrite")
    assert error.startswith(
        "error: out of memory in a training step (no more is free); use --batch-size 2 with --"
    )


FOREIGN = [
    "--device=cuda",
    "--compile=False",
    "--gradient_checkpointing",
    "--dataset=openwebtext",
    "--epochs=3",
    "--lr=1e-3",
    "--amp",
    "--wandb_log=True",
    "--logging_dir=logs",
    "--ema=0.99",
    "--ddp",
    "--eval_iters=200",
    "--eval_only=True",
    "--always_save_checkpoint=False",
    "--num_workers=4",
    "--fp16",
    "--bf16",
    "--model=gpt2",
    "--model_name_or_path=gpt2",
    "--output_dir=here",
    "--per_device_train_batch_size=8",
    "--gradient_checkpointing",
    "--decay_lr=False",
    "--gpus=2",
    "--resume_from_checkpoint=last",
]


@pytest.mark.parametrize("flag", FOREIGN)
def test_a_flag_of_another_program_has_an_answer(tmp_path, capsys, flag):
    error = refusal(capsys, begin, tmp_path / "run", flag)
    name = flag.partition("=")[0]
    assert error.startswith(f"python -m minigpt.train: error: {name}: ") and "unknown" not in error
    known = cli.parser("", "")
    cli.add_flags(known, TrainConfig, GPTConfig, Seq2SeqConfig)
    own = {"--preset", "--resume", *known._option_string_actions}
    named = set(re.findall(r"(?<=[ (])--[a-z-]+", error.partition(f"{name}: ")[2]))
    assert named <= own  # what it names is there
    assert name.replace("_", "-") not in own


def test_answers_name_flags_that_exist_only():
    known = cli.parser("", "")
    cli.add_flags(known, TrainConfig, GPTConfig, Seq2SeqConfig)
    own = {"--preset", "--config", "--resume", "--overwrite", *known._option_string_actions}
    assert not own & aliases.TRAIN.keys()
    for answer in aliases.TRAIN.values():
        assert set(re.findall(r"--[a-z-]+", answer)) <= own, answer


@pytest.mark.parametrize("flag", ["--size=3", "--quiet", "--trainer=x", "--loss=mse", "--nlp"])
def test_a_name_that_is_far_from_all_has_no_guess(tmp_path, capsys, flag):
    error = refusal(capsys, begin, tmp_path / "run", flag)
    assert error.endswith(f"unknown flag '{flag.partition('=')[0]}'; --help lists the flags")


def test_a_toml_file_takes_a_preset_and_the_old_names(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("preset = 'lecture'\nn_layer = 3\nplaces = 'even'\ninit = 'gpt2'\ntf32 = true")
    own, given = parse([f"--config={file}", "--n_layer=2", "--bias=True"])
    assert own["preset"] == "lecture"
    assert given == {
        "n_layer": 2,
        "sampler": "weyl",
        "init_scale": "residual",
        "dtype": "tf32",
        "bias": True,
    }
    values = options(own, given)
    assert (values["max_iters"], values["n_embd"], values["n_layer"]) == (5000, 384, 2)
    assert parse([f"--config={file}", "--preset=gpt2"])[0]["preset"] == "gpt2"
    with pytest.raises(UserError, match="--resume keeps the run's settings: leave out preset"):
        parse([f"--config={file}", "--resume"])


def test_plain_mode_runs_the_ops_as_they_are_written(tmp_path, monkeypatch):
    seen = []
    original = Trainer.step

    def step(self, *args):
        seen.append(backend.is_plain())
        return original(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    before = backend.is_plain()
    assert begin(tmp_path / "run", "--plain", "--max-iters=2") == 0
    assert seen == [True, True] and backend.is_plain() == before
