"""The whole walk through a step: what goes in, the stages, how it ends."""

import inspect
from dataclasses import dataclass
from pathlib import Path

from minigpt.cli import plural
from minigpt.cli.characters import quoted, wrap
from minigpt.model import count_parameters
from minigpt.report.step.closing import closing_stages
from minigpt.report.step.pictures import line_of
from minigpt.report.step.record import PLACES, StepRecord
from minigpt.report.step.recorder import PACKAGE, Call
from minigpt.report.step.stages import stages_of

CUT = 28  # columns of a context
SENTENCE = 50  # columns of the sentence


@dataclass(frozen=True)
class Walk:
    """A recorded step as it is shown, in the terminal and in the page.

    Attributes
    ----------
    step : StepRecord
    head : int
    intro : list of str
        Paragraphs.
    examples : list of (str, str, str, str)
        Ids of a context and its target, and their texts.
    stages : list of Stage
        Both passes, in the order of the forward pass.
    closing : list of Stage
        The update, and the loss after it.
    """

    step: StepRecord
    head: int
    intro: list
    examples: list
    stages: list
    closing: list


def walk_of(step, name, head=0):
    """Return the Walk through a recorded step.

    Parameters
    ----------
    step : StepRecord
    name : str
        Of the text whose vocabulary the tokens are from.
    head : int
        Which head of each block is shown.
    """
    stages, closing = stages_of(step, head), closing_stages(step, head)
    return Walk(step, head, introduce(step, name), examples_of(step), stages, closing)


def introduce(step, name):
    """Return paragraphs on the sentence, the model and how the walk is read."""
    config, tokenizer, T = step.config, step.tokenizer, len(step.tokens) - 1
    text = cut(tokenizer.decode(step.tokens), SENTENCE)
    encode = inspect.unwrap(type(tokenizer).encode)
    place = Call("encode", *place_of(encode))
    more = [f"The {step.left_out:,} tokens after them are left out."] * bool(step.left_out)
    D = config.n_embd // config.n_head
    return [
        f"One training step on {text}, with the {plural(tokenizer.vocab_size, tokenizer.unit)} "
        f"of {name}.",
        f"encode({text}) = {step.tokens}   {place.file}:{line_of(place)}",
        *more,
        f"The model: {plural(config.n_layer, 'blocks')} of {plural(config.n_head, 'heads')}, "
        f"{count_parameters(config):,} parameters. B = 1 sentence, T = {T} tokens to predict from, "
        f"C = {config.n_embd} channels, D = C / H = {D}, V = {config.vocab_size:,} tokens. Its "
        f"first weights are random, rounded to {PLACES} decimals and larger than "
        "training would begin with, so that attention has something to show.",
        "All numbers are those of the passes, recorded while the ops run as they are written. By "
        "hand, with the digits that are shown, the last may differ. A 0 without a point is exact. "
        "dx is dL/dx, how the loss changes with x.",
    ]


def place_of(function):
    """Return the file, from the root of the project, and the line of a function."""
    code = function.__code__
    file = Path(code.co_filename).relative_to(PACKAGE.parent).as_posix()
    return file, code.co_firstlineno


def examples_of(step):
    """Return what the sentence teaches: (ids, id, text, text) of each context and its target."""
    rows, decode = [], step.tokenizer.decode
    for t in range(1, len(step.tokens)):
        context, target = step.tokens[:t], step.tokens[t]
        ids = context
        while len(" ".join(map(str, ids))) > CUT:
            ids = ids[1:]
        dots = "... " * (len(ids) < t)
        text = cut(decode(context), CUT, end=True)
        rows.append((dots + " ".join(map(str, ids)), f"{target}", text, cut(decode([target]), CUT)))
    return rows


def cut(text, width, end=False):
    """Return a text in quotes; of a long one its beginning or its end, as wide as `width`."""
    line = wrap(text[::-1] if end else text, width)[0]
    if len(line) == len(text):
        return quoted(text)
    return f"...{quoted(line[::-1])}" if end else f"{quoted(line)}..."
