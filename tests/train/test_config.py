import dataclasses
import json
from pathlib import Path

import pytest

from minigpt.cli import fields_of
from minigpt.errors import UserError
from minigpt.model import count_parameters
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.train.config import (
    BIGRAM_MAX_VOCAB,
    SIZES,
    TrainConfig,
    check_options,
    resolve,
    train_config_of,
)
from minigpt.train.cost import flops_per_step
from minigpt.train.presets import DEFAULT, PRESETS, configs_of, options_of, put_together


@pytest.mark.parametrize(
    "preset, vocab_size, parameters, without_positions",
    [
        ("nanogpt-cpu", 65, 804_096, 795_904),  # nanoGPT says 0.80 M
        ("nanogpt-baby", 65, 10_745_088, 10_646_784),  # nanoGPT says 10.65 M
        ("lecture", 65, 10_788_929, 10_690_625),
        ("gpt2", 50257, 124_439_808, 123_653_376),
    ],
)
def test_presets_are_the_published_models(preset, vocab_size, parameters, without_positions):
    config, _ = resolve(PRESETS[preset], {"vocab_size": vocab_size})
    n = count_parameters(config)
    assert (n, n - config.block_size * config.n_embd) == (parameters, without_positions)


def test_presets_are_the_published_recipes():
    names = ("block_size", "batch_size", "max_iters", "learning_rate", "min_lr", "warmup_iters")
    names += ("beta2", "weight_decay", "grad_clip", "dropout", "bias", "tie_head", "activation")
    expected = {
        "nanogpt-cpu": (64, 12, 2000, 1e-3, 1e-4, 100, 0.99, 0.1, 1.0, 0.0, False, True, "gelu"),
        "nanogpt-baby": (256, 64, 5000, 1e-3, 1e-4, 100, 0.99, 0.1, 1.0, 0.2, False, True, "gelu"),
        "lecture": (256, 64, 5000, 3e-4, 3e-4, 0, 0.999, 0.01, 0.0, 0.2, True, False, "relu"),
    }
    for preset, values in expected.items():
        config, train = resolve(PRESETS[preset], {"vocab_size": 65})
        both = {**dataclasses.asdict(config), **dataclasses.asdict(train)}
        assert tuple(both[name] for name in names) == values


def test_the_default_is_a_run_of_a_minute():
    config, train = resolve(PRESETS[DEFAULT], {"vocab_size": 65})
    assert DEFAULT == "quick" and (train.optimizer, train.lr_schedule) == ("muon", "wsd")
    per_second = 400e9  # of two cores, and half of it is reached
    assert 20 < train.max_iters * flops_per_step(config, train) / (per_second / 2) < 60


def test_a_preset_takes_a_text_of_few_characters_as_part_of_a_larger_vocabulary():
    assert resolve(PRESETS["gpt2"], {"vocab_size": 65})[0].vocab_size == 50257
    assert resolve({}, {"vocab_size": 65})[0].vocab_size == 65
    with pytest.raises(UserError, match="vocab_size is 64, but the text has 65 different tokens"):
        resolve({"vocab_size": 64}, {"vocab_size": 65})


def test_the_default_has_bigrams_where_tokens_are_few():
    for vocab_size, bigram in ((65, True), (BIGRAM_MAX_VOCAB, True), (BIGRAM_MAX_VOCAB + 1, False)):
        sizes = {"vocab_size": vocab_size}
        assert resolve(PRESETS[DEFAULT], sizes)[0].bigram is bigram
        assert resolve(PRESETS[DEFAULT] | {"bigram": not bigram}, sizes)[0].bigram != bigram


@pytest.mark.parametrize(
    "name, near",
    [("n_heads", "n_head"), ("learning_rat", "learning_rate"), ("n-layer", "n_layer")],
)
def test_an_unknown_key_is_named_with_its_nearest(name, near):
    with pytest.raises(UserError, match=f"unknown option '{name}'; did you mean '{near}'?"):
        resolve({name: 1}, {"vocab_size": 65})


@pytest.mark.parametrize("values", [{"vocab_size": "65"}, {"batch_size": 1.5}, {"data": 3}])
def test_a_value_of_the_wrong_type_is_refused(values):
    with pytest.raises(UserError, match=rf"^{next(iter(values))} is .*; it must be a "):
        resolve(values, {"vocab_size": 65})


def test_the_weyl_sampler_is_for_a_text():
    assert resolve({"sampler": "weyl"}, {"vocab_size": 65})[1].sampler == "weyl"
    with pytest.raises(
        UserError, match="^sampler is 'weyl', which task seq2seq does not have; use"
    ):
        resolve({"sampler": "weyl", "task": "seq2seq"}, {"vocab_size": 65, "source_vocab_size": 65})
    with pytest.raises(UserError, match="^sampler is 'odd'; choose from uniform, weyl$"):
        TrainConfig(sampler="odd")


BOUNDS = {
    **dict.fromkeys(
        ("threads", "batch_size", "gradient_accumulation_steps"),
        (1, 48),
    ),
    **dict.fromkeys(
        ("max_iters", "max_seconds", "eval_interval", "log_interval"),
        (1, 48),
    ),
    **dict.fromkeys(
        ("seed", "warmup_iters", "lr_decay_iters", "eval_tokens", "sample_tokens", "report_every"),
        (0, 63),
    ),
    **dict.fromkeys(
        ("learning_rate", "min_lr", "weight_decay", "grad_clip"),
        (0, 63),
    ),
}
FRACTIONS = ("beta1", "beta2", "momentum", "lr_decay_fraction")


@pytest.mark.parametrize("name", BOUNDS)
def test_options_have_bounds(name):
    least, bits = BOUNDS[name]
    TrainConfig(**{name: least})
    low = rf"^{name} is {least - 1}(\.0)?; it must be at least {least}$"
    with pytest.raises(UserError, match=low):
        TrainConfig(**{name: least - 1})
    with pytest.raises(UserError, match=rf"^{name} is .*; it must be at .* and below 2\*\*{bits}$"):
        TrainConfig(**{name: 2**bits})


@pytest.mark.parametrize("name", FRACTIONS)
def test_fractions_are_between_zero_and_one(name):
    end, beyond = ("below", 1.0) if name != "lr_decay_fraction" else ("at most", 1.1)
    for value in (-0.1, beyond):
        with pytest.raises(
            UserError, match=f"{name} is {value}; it must be at least 0 and {end} 1"
        ):
            TrainConfig(**{name: value})


def test_every_number_has_a_bound():
    numbers = {n for n, field in fields_of(TrainConfig).items() if field.kind in (int, float)}
    elsewhere = {"lora_rank", "lora_alpha", "lora_dropout", "max_passes"}  # test_lora, test_limits
    assert numbers == {*BOUNDS, *FRACTIONS, *elsewhere}
    for cls in (GPTConfig, Seq2SeqConfig):
        for name, field in fields_of(cls).items():
            assert field.option["bounds"] or field.kind not in (int, float), name


def test_a_whole_number_is_not_rounded_to_a_float():
    assert TrainConfig(grad_clip=2**62).grad_clip == 2.0**62
    with pytest.raises(UserError, match=f"^grad_clip is {2**60 + 1}; it must be a number$"):
        TrainConfig(grad_clip=2**60 + 1)


def test_a_model_beyond_all_memory_is_refused():
    with pytest.raises(UserError, match=r"the model would have 2e\+25 parameters"):
        train_config_of({"n_embd": 10**12})
    with pytest.raises(UserError, match=r"the model would have 2e\+15 parameters"):
        resolve({"bigram": True, "n_embd": 2**20, "n_layer": 1}, {"vocab_size": 46000})


def test_a_batch_has_no_more_shards_than_rows():
    assert TrainConfig(threads=3, batch_size=8).shards() == 3
    assert TrainConfig(threads=3, batch_size=2).shards() == 2
    assert TrainConfig(threads=3, batch_size=2).threads == 3
    assert 1 <= TrainConfig().shards() <= 12
    assert TrainConfig(threads=3, batch_size=2).workers() == 3
    gpu = TrainConfig(threads=3, backend="cupy")
    assert gpu.shards() == gpu.workers() == 1


def test_configs_share_no_option():
    model, train = ({f.name for f in dataclasses.fields(c)} for c in (GPTConfig, TrainConfig))
    assert not model & train


PINNED = json.loads((Path(__file__).parents[1] / "data" / "presets.json").read_text("utf-8"))


@pytest.mark.parametrize("case", PINNED)
def test_presets_never_change(case):
    """A preset, perhaps used for another task, with vocabularies of 65 and 36, or 300 and 200."""
    preset, task, vocab_size = case.split()
    given = {} if task == "its-own" else {"task": task}
    options = put_together(options_of(preset, given.get("task")), {"threads": 2, **given})
    sizes = dict(zip(SIZES, {"65": (65, 36), "300": (300, 200)}[vocab_size], strict=True))
    model_config, train_config = map(dataclasses.asdict, resolve(options, sizes))
    assert {**model_config, **train_config} == PINNED[case]


def test_the_defaults_are_those_of_the_command():
    assert configs_of() == configs_of("quick", vocab_size=65) == (GPTConfig(), TrainConfig())
    model_config, train_config = configs_of("dates", vocab_size=65, source_vocab_size=65)
    assert model_config == Seq2SeqConfig() and train_config.task == "seq2seq"


def test_a_preset_takes_options_in_python_as_on_the_command_line():
    model_config, train_config = configs_of("lecture", vocab_size=80, n_layer=2, max_iters=10)
    assert (model_config.vocab_size, model_config.n_layer, model_config.tie_head) == (80, 2, False)
    assert (train_config.max_iters, train_config.lr_decay_iters) == (10, 10)
    quality = configs_of("quality", max_iters=10)[1]
    assert quality.max_seconds is None and quality.max_passes is None
    with pytest.raises(UserError, match="^unknown option 'n_layers'; did you mean 'n_layer'?"):
        configs_of("quick", n_layers=3)
    with pytest.raises(UserError, match="^preset is 'qick'; choose from quick, .* mean 'quick'?"):
        configs_of("qick")
    with pytest.raises(UserError, match="^n_layer is 2.5; it must be a whole number$"):
        configs_of("quick", n_layer=2.5)


def test_nothing_is_left_to_decide_in_a_config():
    for preset in PRESETS:
        for config in configs_of(preset):
            left = {name for name, value in vars(config).items() if value is None}
            usual = {"data", "init_from", "max_seconds", "max_passes", "tokenizer", "wandb"}
            usual |= {"weight_decay"} if preset == "quality" else set()  # a step finds it
            assert left <= usual | {"lora_alpha", "lora_targets"}
    assert GPTConfig(bias=True).qkv_bias and not GPTConfig(bias=True, qkv_bias=False).qkv_bias
    train_config = TrainConfig(max_iters=7)
    assert train_config.lr_decay_iters == 7
    assert dataclasses.replace(train_config, max_iters=9, lr_decay_iters=None).lr_decay_iters == 9
    assert train_config.threads >= 1


def test_a_decay_to_the_last_step_follows_it():
    base = {"max_iters": 100, "lr_decay_iters": 100}
    assert put_together(base, {"max_iters": 200})["lr_decay_iters"] is None
    assert put_together(base, {"max_iters": 200, "lr_decay_iters": 50})["lr_decay_iters"] == 50
    assert put_together(base | {"lr_decay_iters": 90}, {"max_iters": 200})["lr_decay_iters"] == 90
    assert put_together(base, {"seed": 1}) == base | {"seed": 1}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_embd": 10, "n_head": 4}, "n_embd is 10, not a multiple of n_head 4"),
        ({"rotary": True, "n_embd": 9, "n_head": 3}, "rotary turns pairs"),
        ({"head_bias": True}, "head_bias is on with a tied head"),
        ({"n_layer": 0}, "^n_layer is 0; it must be at least 1$"),
        ({"share_embedding": True}, "^share_embedding is for --task seq2seq: leave it out$"),
        ({"task": "images"}, "^task is 'images'; choose from text, seq2seq$"),
        ({"bigram": "always"}, "^bigram is 'always'; it must be True or False$"),
        ({"backend": "torch"}, "^backend is 'torch'; choose from numpy, cupy; minigpt computes "),
        ({"dtype": "bf16"}, "^dtype is 'bf16'; choose from .*; bfloat16 is the name here$"),
    ],
)
def test_what_is_wrong_whatever_the_data_is_found_before_they_are_read(options, message):
    with pytest.raises(UserError, match=message):
        train_config_of(options)


def test_vocabularies_of_pairs_are_those_of_the_data():
    options, sizes = options_of("dates"), {"vocab_size": 12, "source_vocab_size": 30}
    with pytest.raises(UserError, match="^vocab_size is 9, but the pairs need 12: leave it out$"):
        resolve(options | {"vocab_size": 9}, sizes)
    with pytest.raises(UserError, match="^source_vocab_size is 9, but the pairs need 30: leave"):
        resolve(options | {"source_vocab_size": 9}, sizes)
    assert resolve(options | {"bigram": "auto"}, sizes)[0].bigram is True


def test_errors_of_a_file_name_it():
    with pytest.raises(UserError, match="^run.toml: n_head is '3'; it must be a whole number$"):
        check_options({"n_head": "3"}, "run.toml: ")
    with pytest.raises(UserError, match="^run.toml: unknown option 'n_heads'; did you mean"):
        check_options({"n_heads": 3}, "run.toml: ")
    assert check_options({"bigram": "auto", "min_lr": 0}) == {"bigram": "auto", "min_lr": 0.0}
