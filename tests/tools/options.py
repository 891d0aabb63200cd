"""Options of a model: rows in which every value of one meets every value of each other, and
configs with nanoGPT's options in place of the defaults.
"""

from minigpt.model.gpt import GPTConfig
from minigpt.train.config import TrainConfig, of_class
from minigpt.train.presets import NANOGPT

HEADS = {
    "tied": {"tie_head": True, "head_bias": False},
    "untied": {"tie_head": False, "head_bias": False},
    "biased": {"tie_head": False, "head_bias": True},
}
FACTORS = {
    "bias": (True, False),
    "qkv_bias": (True, False),
    "activation": ("gelu", "gelu_tanh", "relu"),
    "head": tuple(HEADS),
    "dropout": (0.0, 0.3),
    "share_embedding": (True, False),
    "rotary": (True, False),
    "bigram": (True, False),
}
ROWS = (
    (True, True, "relu", "untied", 0.0, True, True, False),
    (False, False, "gelu", "untied", 0.3, False, False, False),
    (True, False, "gelu_tanh", "tied", 0.0, False, False, False),
    (False, True, "gelu_tanh", "biased", 0.3, True, True, True),
    (True, True, "gelu", "biased", 0.0, False, True, False),
    (False, False, "relu", "tied", 0.3, True, True, False),
    (True, True, "gelu", "tied", 0.3, True, False, True),
    (False, False, "relu", "biased", 0.0, False, False, True),
    (False, False, "gelu_tanh", "untied", 0.0, False, True, True),
)


def rows(*left_out):
    """Return the rows as options of a config, but for those left out, by what is in them."""
    named = {}
    for row in ROWS:
        options = dict(zip(FACTORS, row, strict=True))
        name = "-".join(k if v is True else str(v) for k, v in options.items() if v)
        options |= HEADS[options.pop("head")]
        named[name] = {k: v for k, v in options.items() if k not in left_out}
    return named


def gpt_config(*sizes, **options):
    """Return the GPTConfig of sizes (vocab_size, block_size, n_layer, n_head, n_embd) and options,
    nanoGPT's where none is given.
    """
    names = [name for name in of_class(GPTConfig, NANOGPT) if name != "n_layer"]
    return GPTConfig(*sizes, **{name: NANOGPT[name] for name in names} | options)


def train_config(**options):
    """Return the TrainConfig of options, nanoGPT's where none is given."""
    return TrainConfig(**of_class(TrainConfig, NANOGPT) | options)
