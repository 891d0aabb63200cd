"""What the tiled overrides of attention keep between the passes, on either backend."""

from typing import Any, NamedTuple

from minigpt.ops.attention import scores
from minigpt.ops.softmax import softmax_forward


class LseCache(NamedTuple):
    """An AttentionCache that has, in place of the weights, one number per query.

    Attributes
    ----------
    lse : (B, H, Tq, 1)
        log sum exp s, from which w = exp(s - lse); 0 for a query that may see nothing.
    others : as in AttentionCache
    """

    q: Any
    k: Any
    v: Any
    y: Any
    lse: Any
    causal: bool
    key_mask: Any
    dropout: float
    rng: Any

    @property
    def w(self):
        """The weights, computed again, for the definition's backward pass and for pictures."""
        return softmax_forward(scores(self.q, self.k, self.causal, self.key_mask))[0]
