"""The models: blocks of ops, the GPT, the encoder-decoder, their checkpoints."""

import math

from minigpt.cli import plural
from minigpt.params import leaves


def count_parameters(config):
    """Return the number of parameters of a model, without making any."""
    return sum(math.prod(shape) for _, shape in leaves(config.shapes()))


def describe_model(config):
    """Return the sizes of a model, in words."""
    return (
        f"{plural(config.n_layer, 'layer')}, {plural(config.n_head, 'head')}, "
        f"{config.n_embd} channels, context {config.block_size}"
    )
