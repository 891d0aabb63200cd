import dataclasses

import pytest

from minigpt.cli import field_types
from minigpt.errors import UserError
from minigpt.model import count_parameters
from minigpt.model.gpt import GPTConfig
from minigpt.train.config import FEW, NOT_NEGATIVE, POSITIVE, TrainConfig, configs
from minigpt.train.cost import flops_per_step
from minigpt.train.presets import DEFAULT, PRESETS


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
    config, _ = configs(PRESETS[preset], vocab_size)
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
        config, train = configs(PRESETS[preset], 65)
        both = {**dataclasses.asdict(config), **dataclasses.asdict(train)}
        assert tuple(both[name] for name in names) == values


def test_the_default_is_a_run_of_a_minute():
    config, train = configs(PRESETS[DEFAULT], 65)
    assert DEFAULT == "quick" and (train.optimizer, train.lr_schedule) == ("muon", "wsd")
    per_second = 400e9  # of two cores, and half of it is reached
    assert 20 < train.max_iters * flops_per_step(config, train) / (per_second / 2) < 60


def test_a_preset_takes_a_text_of_few_characters_as_part_of_a_larger_vocabulary():
    assert configs(PRESETS["gpt2"], 65)[0].vocab_size == 50257
    assert configs({}, 65)[0].vocab_size == 65
    with pytest.raises(UserError, match="vocab_size is 64, but the text holds 65 characters"):
        configs({"vocab_size": 64}, 65)


def test_the_default_has_pairs_where_characters_are_few():
    for vocab_size, bigram in ((65, True), (FEW, True), (FEW + 1, False)):
        assert configs(PRESETS[DEFAULT], vocab_size)[0].bigram is bigram
        assert configs(PRESETS[DEFAULT] | {"bigram": not bigram}, vocab_size)[0].bigram != bigram


@pytest.mark.parametrize(
    "name, near",
    [("n_heads", "n_head"), ("learning_rat", "learning_rate"), ("n-layer", "n_layer")],
)
def test_an_unknown_key_is_named_with_its_nearest(name, near):
    with pytest.raises(UserError, match=f"unknown option '{name}'; did you mean '{near}'?"):
        configs({name: 1}, 65)


@pytest.mark.parametrize("values", [{"vocab_size": "65"}, {"batch_size": 1.5}, {"data": 3}])
def test_a_value_of_the_wrong_type_is_refused(values):
    with pytest.raises(UserError, match=rf"{next(iter(values))} is .*, but needs"):
        configs(values, 65)


def test_even_places_are_for_a_text():
    assert configs({"places": "even"}, 65)[1].places == "even"
    with pytest.raises(UserError, match="^places is 'even', which is for --task text: leave it"):
        configs({"places": "even", "task": "seq2seq"}, 65)
    with pytest.raises(UserError, match="^places is 'odd'; choose from random, even$"):
        TrainConfig(places="odd")


@pytest.mark.parametrize("name", [*POSITIVE, *NOT_NEGATIVE])
def test_options_have_bounds(name):
    least = int(name in POSITIVE)
    TrainConfig(**{name: least})
    with pytest.raises(UserError, match=f"^{name} is {least - 1}; it must be at least {least}$"):
        TrainConfig(**{name: least - 1})
    bits = 48 if name in POSITIVE else 63
    with pytest.raises(UserError, match=rf"^{name} is .*; it must be below 2\*\*{bits}$"):
        TrainConfig(**{name: 2**bits})


@pytest.mark.parametrize("name", ["beta1", "beta2", "momentum", "lr_decay_share"])
def test_shares_are_between_zero_and_one(name):
    beyond = 1.0 if name != "lr_decay_share" else 1.1
    for value in (-0.1, beyond):
        with pytest.raises(UserError, match=f"{name} is {value}; it must be (at least|from) 0 "):
            TrainConfig(**{name: value})


def test_every_number_has_a_bound():
    numbers = {name for name, types in field_types(TrainConfig).items() if {int, float} & {*types}}
    shares = {"beta1", "beta2", "momentum", "lr_decay_share"}
    assert numbers == {*POSITIVE, *NOT_NEGATIVE, *shares}


def test_a_model_beyond_all_memory_is_refused():
    with pytest.raises(UserError, match=r"the model would have 5e\+25 parameters"):
        configs({"n_embd": 10**12}, 65)


def test_a_batch_has_no_more_shards_than_rows():
    assert TrainConfig(threads=3, batch_size=8).shards() == 3
    assert TrainConfig(threads=3, batch_size=2).shards() == 2
    assert TrainConfig(threads=3, batch_size=2).cores() == 3
    assert 1 <= TrainConfig().shards() <= 12
    assert TrainConfig(threads=3, backend="cupy").shards() == 1


def test_configs_share_no_option():
    model, train = ({f.name for f in dataclasses.fields(c)} for c in (GPTConfig, TrainConfig))
    assert not model & train
