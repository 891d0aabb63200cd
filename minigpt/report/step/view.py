"""What all stages of a step need: labels, the head that is shown, the calls of a block's parts."""

from dataclasses import dataclass
from functools import cached_property

from minigpt.cli.characters import visible, wrap
from minigpt.report.step.record import StepRecord

LABEL = 6  # columns of a token's label


@dataclass(frozen=True)
class View:
    """A recorded step, and what of it is shown.

    Attributes
    ----------
    step : StepRecord
    head : int
        Of every block.
    """

    step: StepRecord
    head: int = 0

    @cached_property
    def tokens(self):
        """Labels of the tokens that are read: "0 B", by position."""
        return [f"{t} {self.label(i)}" for t, i in enumerate(self.step.tokens[:-1])]

    @cached_property
    def channels(self):
        """Labels of the channels."""
        return numbers(self.step.config.n_embd)

    @cached_property
    def part(self):
        """The channels of the head among those of q, k, v, or of all heads: a slice."""
        D = self.D
        return slice(self.head * D, (self.head + 1) * D)

    @property
    def D(self):
        """Channels of a head."""
        return self.step.config.n_embd // self.step.config.n_head

    @property
    def T(self):
        """Tokens that are read."""
        return len(self.step.tokens) - 1

    def label(self, i):
        """Return token `i` as it stands in the pictures."""
        return short(visible(self.step.tokenizer.label(int(i))))

    def block(self, i):
        """Return the calls of block_forward and block_backward of block `i`."""
        last = self.step.config.n_layer - 1
        return self.step.both.the("block_forward", i), self.step.both.the(
            "block_backward", last - i
        )

    def key(self, i, name):
        """Return the key of a stage of block `i`."""
        return name if self.step.config.n_layer == 1 else f"h.{i}.{name}"

    def title(self, i, text):
        """Return the title of a stage of block `i`."""
        return text if self.step.config.n_layer == 1 else f"Block {i}: {text}"


def numbers(n):
    """Return the labels "0" to n - 1."""
    return [str(i) for i in range(n)]


def short(text):
    """Return a label that takes LABEL columns of a terminal at most."""
    first = wrap(text, LABEL)[0]
    return first if first == text else wrap(text, LABEL - 2)[0] + ".."
