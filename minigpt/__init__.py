"""A GPT whose forward and backward passes are written by hand, on NumPy or CuPy.

    import minigpt

    model = minigpt.fit("my.txt", preset="quick")   train on a text
    model = minigpt.load("out")                     or load what `minigpt train` has left
    print(model.generate("ROMEO:"))

    fit, load           train a model; read one: both return a Model
    Model               generate, stream, answer, logits, loss, loss_and_gradients, attention, save
    configs             a preset's (model_config, train_config)
    GPTConfig, Seq2SeqConfig, TrainConfig
    check               a reader's own pair of passes against numerical derivatives
    plain               with minigpt.plain(): run the ops exactly as minigpt/ops has them
    UserError           bad input; its text is one line

Reading order of the code: `ops` (the mathematics), `model.blocks`, `model.gpt`, `train`.
"""

import importlib

# Where each name is from: it is imported when it is first used, so that the commands are quick.
_PLACES = {
    "fit": "library.training.fit",
    "load": "library.model.load",
    "Model": "library.model.Model",
    "configs": "train.presets.configs_of",
    "GPTConfig": "model.gpt.GPTConfig",
    "Seq2SeqConfig": "model.encoder_decoder.Seq2SeqConfig",
    "TrainConfig": "train.config.TrainConfig",
    "check": "library.check.check",
    "plain": "backend.plain",
    "UserError": "errors.UserError",
    "__version__": "cli.VERSION",
}


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].rpartition(".")
    value = getattr(importlib.import_module(f"minigpt.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__():
    return [*_PLACES]
