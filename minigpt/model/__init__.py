"""The models: blocks of ops, the GPT, the encoder-decoder, their checkpoints."""

import math

from minigpt.params import leaves


def count_parameters(config):
    """Return the number of parameters of a model, without making any."""
    return sum(math.prod(shape) for _, shape in leaves(config.shapes()))
