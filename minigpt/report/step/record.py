"""A tiny model and one step of its training on a sentence, recorded."""

import math
from dataclasses import dataclass, replace

import numpy as np

from minigpt.backend import plain
from minigpt.cli import plural
from minigpt.data.tokenizer import Tokenizer
from minigpt.errors import UserError
from minigpt.model.gpt import GPTConfig, loss_and_gradients, loss_forward
from minigpt.model.init import STD, init_params
from minigpt.optim.adamw import AdamW
from minigpt.params import Params
from minigpt.report.step.recorder import Call, recording
from minigpt.sample.prompt import encode_text

TINY = GPTConfig(
    n_layer=1,
    n_head=2,
    n_embd=8,
    rotary=False,
    bigram=False,
    tie_head=False,
    init_scale="plain",
)
LEARNING_RATE = 0.01
SEED = 1337
PLACES = 2  # decimals of the first weights
LONGEST = 64  # tokens that are read, whatever the block size


@dataclass(frozen=True)
class StepRecord:
    """A training step: what went in, what came out, and all that its passes have computed.

    Attributes
    ----------
    tokens : list of int
        The ids that are walked through, T + 1 of them.
    left_out : int
        How many more the sentence has.
    tokenizer : Tokenizer
    config : GPTConfig
    before, after, grads : Params
        The weights at first and after the step, and the gradients.
    m, v : Params
        The optimizer's moments after the step.
    lr : float
    loss, loss_after : float
        Of the sentence, by the weights before and after the step; nats per token.
    both, update, again : Call
        Both passes; the optimizer's step; the forward pass after it.
    """

    tokens: list
    left_out: int
    tokenizer: Tokenizer
    config: GPTConfig
    before: Params
    after: Params
    grads: Params
    m: Params
    v: Params
    lr: float
    loss: float
    loss_after: float
    both: Call
    update: Call
    again: Call

    @property
    def ids(self):
        """The tokens that are read: (1, T) int32."""
        return np.array([self.tokens[:-1]], np.int32)

    @property
    def targets(self):
        """The token after each: (1, T) int32."""
        return np.array([self.tokens[1:]], np.int32)


def first_weights(config, seed=SEED):
    """Return Params whose numbers can be seen at work and typed in.

    They are those of `init_params`, with standard deviation 1 / sqrt(C) in place of 0.02, and
    rounded. With 0.02 all attention weights of a row would be alike at first.
    """
    params = init_params(config, seed)
    factor = 1 / (STD * math.sqrt(config.n_embd))
    for view in params.arrays:
        if view.ndim == 2:
            view[...] = np.round(view * factor, PLACES)
    return params


def record_step(prompt, tokenizer, block_size=8, config=TINY, lr=LEARNING_RATE, seed=SEED):
    """Run one training step on a sentence, and record it.

    >>> step = record_step("Bee3", CharTokenizer.from_text(text))
    >>> step.both.the("attention_forward")["w"]

    Parameters
    ----------
    prompt : str
        Two tokens or more; those after the first block_size + 1 are left out.
    tokenizer : Tokenizer
    block_size : int
        How many of its tokens are read at most; LONGEST is another limit.
    config : GPTConfig
        Of the model, as TINY but for its sizes; vocab_size and block_size are filled in.
    lr : float
        Of AdamW.
    seed : int
        Of the first weights.

    Returns
    -------
    step : StepRecord

    Raises
    ------
    UserError
        If the prompt has fewer than two tokens, or a character that has no token.
    """
    ids = encode_text("--prompt", prompt, tokenizer).tolist()
    if len(ids) < 2:
        raise UserError(
            f"--prompt {prompt!r:.60} has {plural(len(ids), tokenizer.unit)}, but a step needs at "
            "least 2: one to read and one to predict"
        )
    tokens = ids[: min(block_size, LONGEST) + 1]
    config = replace(config, vocab_size=tokenizer.vocab_size, block_size=len(tokens) - 1)
    params = first_weights(config, seed)
    before = Params(params.shapes, np, params.flat.dtype, params.flat.copy())
    x, y = (np.array([part], np.int32) for part in (tokens[:-1], tokens[1:]))
    optimizer, grads = AdamW(params), params.zeros_like()
    with plain():
        with recording() as both:
            loss, tree = loss_and_gradients(x, y, params.tree, config)
        for place, gradient in zip(grads.arrays, grads.ordered(tree), strict=True):
            place[...] = gradient
        with recording() as update:
            optimizer.step(grads.flat, lr)
        with recording() as again:
            loss_after, _ = loss_forward(x, y, params.tree, config)
    moments = grads, optimizer.m, optimizer.v
    sizes = tokens, len(ids) - len(tokens), tokenizer, config
    losses = lr, float(loss), float(loss_after)
    return StepRecord(*sizes, before, params, *moments, *losses, both, update, again)
