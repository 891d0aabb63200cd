"""AdamW, clipping by global norm and dynamic loss scaling.

The optimizer's own numbers (norm, scale, steps taken) are one small array where the parameters
are. On a device nobody waits for them: a step is a few launches, one after the other, and whoever
wants the numbers reads the array back.
"""

import math

from minigpt.backend import array_module, overridable
from minigpt.optim.clipping import FIRST, GROWTH, LOSS_SCALE, SCALE, TAKEN, clip
from minigpt.optim.gradients import sum_of_squares


@overridable
def adamw_step(p, g, m, v, lr, beta1, beta2, eps, weight_decay, decayed, step, scale=1.0, low=None):
    """One step of AdamW, in place on p, m and v: Loshchilov & Hutter 2019, arXiv:1711.05101,
    algorithm 2, with torch's decay of lr * weight_decay.

        g = scale * g
        m = beta1 m + (1 - beta1) g          mhat = m / (1 - beta1^step)
        v = beta2 v + (1 - beta2) g^2        vhat = v / (1 - beta2^step)
        p = p - lr * weight_decay * p - lr * mhat / (sqrt(vhat) + eps)

    Parameters
    ----------
    p, g, m, v : (N,) float
        Slices of the flat buffers.
    lr, beta1, beta2, eps, weight_decay : float
    decayed : int
        How many elements have weight decay: the first ones.
    step : int or () float
        1 at the first step.
    scale : float or () float
        What the gradient is multiplied by. If it is not finite, nothing changes.
    low : (N,) float16, optional
        Receives p, rounded.
    """
    xp = array_module(p)
    g = scale * g
    m_new = beta1 * m + (1 - beta1) * g
    v_new = beta2 * v + (1 - beta2) * g * g
    mhat, vhat = m_new / debias(beta1, step), v_new / debias(beta2, step)
    p_new = p.copy()
    p_new[:decayed] *= 1 - lr * weight_decay
    p_new -= lr * mhat / (xp.sqrt(vhat) + eps)
    taken = xp.isfinite(scale)
    for x, new in ((p, p_new), (m, m_new), (v, v_new)):
        x[...] = xp.where(taken, new, x)
    if low is not None:
        low[...] = p


def debias(beta, step):
    """Return 1 - beta^step, of the type of step, without cancellation where beta is near 1."""
    exponent = step * (math.log(beta) if beta else -math.inf)
    if isinstance(exponent, float):
        return -math.expm1(exponent)
    return -array_module(exponent).expm1(exponent)


class AdamW:
    """AdamW over flat buffers; weight decay on matrices and embeddings alone.

    Parameters
    ----------
    params : Params
    beta1, beta2, weight_decay, eps : float
    max_norm : float
        Longer gradients are brought to this norm; 0 is no clipping.
    low : Params, optional
        A copy of `params` in float16, which every step renews. The passes run on it, and so the
        loss is scaled.

    Attributes
    ----------
    m, v : Params
        First and second moments, in the layout of the parameters.
    state : (6,) array
        As in `clip`.
    step_count : int
        Steps begun.
    """

    def __init__(
        self, params, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8, max_norm=0.0, low=None
    ):
        self.params, self.m, self.v = params, params.zeros_like(), params.zeros_like()
        self.beta1, self.beta2, self.weight_decay, self.eps = beta1, beta2, weight_decay, eps
        self.max_norm, self.low, self.step_count = max_norm, low, 0
        self.state = array_module(params.flat).zeros(6, params.flat.dtype)
        self.restore({})

    def restore(self, numbers):
        """Take over the state of a checkpoint, and the parameters in `low`.

        Parameters
        ----------
        numbers : {int: float}
            By place; what is left out begins afresh.
        """
        numbers = {LOSS_SCALE: FIRST} | numbers
        if self.low is None:
            numbers[LOSS_SCALE] = 1.0
        else:
            self.low.flat[...] = self.params.flat
        for place in range(len(self.state)):
            self.state[place] = numbers.get(place, 0.0)

    @property
    def loss_scale(self):
        """What to multiply the loss by: 1.0, or a () array that is always up to date."""
        return 1.0 if self.low is None else self.state[LOSS_SCALE, ...]

    def step(self, grads, lr, squares=None, parts=None, loss=None):
        """Update the parameters by the gradients, unless these or the loss have overflowed.

        Parameters
        ----------
        grads : (size,) float
            In the layout of `params.flat`, times the loss scale.
        lr : float
        squares : (...) float, optional
            Parts of the sum of squares of `grads`, where they are known already.
        parts : callable, optional
            parts(fn, n) calls fn(start, stop) for ranges that cover 0 .. n - 1, in any order or
            at once; by default one range.
        loss : float or () float, optional
        """
        self.begin(grads, squares, loss)

        def update(start, stop):
            self.update(grads, lr, start, stop)

        if parts is None:
            update(0, self.params.size)
        else:
            parts(update, self.params.size)

    def begin(self, grads, squares=None, loss=None):
        """Count a step and find the scale of its gradients; see `step`."""
        self.step_count += 1
        squares = sum_of_squares(grads) if squares is None else squares
        clip(self.state, squares, self.max_norm, 0 if self.low is None else GROWTH, loss)

    def update(self, grads, lr, start, stop):
        """Update the parameters start .. stop - 1."""
        flats = self.params.flat, grads, self.m.flat, self.v.flat
        adamw_step(
            *(flat[start:stop] for flat in flats),
            *(lr, self.beta1, self.beta2, self.eps, self.weight_decay),
            min(max(self.params.decayed - start, 0), stop - start),
            self.state[TAKEN, ...],
            self.state[SCALE, ...],
            None if self.low is None else self.low.flat[start:stop],
        )
