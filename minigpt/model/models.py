"""The kinds of models: what training, checkpoints and sampling need of each, in one table."""

import math
from collections.abc import Callable
from typing import NamedTuple

from minigpt.data import batches as data
from minigpt.data import pairs
from minigpt.data.tokenizers import CharTokenizer
from minigpt.model import encoder_decoder as seq2seq
from minigpt.model import gpt
from minigpt.params import leaves


class Model(NamedTuple):
    """One kind; what the functions take and return is described in gpt.py and data.py.

    Attributes
    ----------
    name : str
        In checkpoints.
    config, tokenizer : classes
    """

    name: str
    config: type
    tokenizer: type
    shapes: Callable
    init_params: Callable
    loss_forward: Callable
    loss_backward: Callable
    loss_and_gradients: Callable
    random_batch: Callable
    windows: Callable
    counted: Callable


GPT = Model(
    "gpt",
    gpt.GPTConfig,
    CharTokenizer,
    gpt.shapes,
    gpt.init_params,
    gpt.loss_forward,
    gpt.loss_backward,
    gpt.loss_and_gradients,
    data.random_batch,
    data.windows,
    data.counted,
)
SEQ2SEQ = Model(
    "seq2seq",
    seq2seq.Seq2SeqConfig,
    pairs.PairTokenizer,
    seq2seq.shapes,
    seq2seq.init_params,
    seq2seq.loss_forward,
    seq2seq.loss_backward,
    seq2seq.loss_and_gradients,
    pairs.random_pairs,
    pairs.all_pairs,
    pairs.counted,
)
MODELS = {model.name: model for model in (GPT, SEQ2SEQ)}


def model_of(config):
    """Return the Model that a config is of."""
    return next(model for model in MODELS.values() if model.config is type(config))


def count_parameters(config):
    """Return the number of parameters, without making any."""
    return sum(math.prod(shape) for _, shape in leaves(model_of(config).shapes(config)))
