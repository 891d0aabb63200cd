"""AdamW over flat buffers: one pass over each of a few long arrays."""

import math

from minigpt.backend import array_module, overridable
from minigpt.optim.clipping import (
    GRAD_SCALE,
    GROWTH_INTERVAL,
    INITIAL_LOSS_SCALE,
    LOSS_SCALE,
    STEPS,
    clip,
)
from minigpt.optim.gradients import sum_of_squares


@overridable
def adamw_step(
    p, g, m, v, lr, beta1, beta2, eps, weight_decay, decayed, step, scale=1.0, half=None
):
    """One step of AdamW, in place on p, m and v: Loshchilov & Hutter 2019, arXiv:1711.05101,
    algorithm 2, with torch's decay of lr * weight_decay.

        g = scale * g
        m = beta1 m + (1 - beta1) g          mhat = m / (1 - beta1^step)
        v = beta2 v + (1 - beta2) g^2        vhat = v / (1 - beta2^step)
        p = p - lr * weight_decay * p - lr * mhat / (sqrt(vhat) + eps)

    m and v are running means of g and g^2. They start at 0, so that after t steps
    m = (1 - beta1) sum_i beta1^(t-i) g_i: the weights add up to 1 - beta1^t only, which is what
    mhat divides by; vhat likewise. The decay is decoupled: it is not divided by sqrt(vhat), as it
    would be if it came through the gradient (Adam with an L2 penalty).

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
        The gradient is multiplied by it. If it is not finite, nothing changes.
    half : (N,) float16 or bfloat16, optional
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
    if half is not None:
        half[...] = p


def debias(beta, step):
    """Return 1 - beta^step, of the type of step, without cancellation where beta is near 1."""
    exponent = step * (math.log(beta) if beta else -math.inf)
    if isinstance(exponent, float):
        return -math.expm1(exponent)
    return -array_module(exponent).expm1(exponent)


def in_one_range(fn, n):
    """Return [fn(0, n)]: the `parallel_for` of one thread."""
    return [fn(0, n)]


class AdamW:
    """AdamW over flat buffers; weight decay on matrices and embeddings only.

    Parameters
    ----------
    params : Params
    beta1, beta2, weight_decay, eps : float
    max_norm : float
        Gradients with a larger norm are scaled down to it; 0 is no clipping.
    half_params : Params, optional
        A copy of `params` in half precision, which every step renews: the passes run on it.
    loss_scaling : bool
        Whether the loss is multiplied by `loss_scale`, which adapts itself: see `clip`.
    own : slice, optional
        The part of `params.flat` that is stepped, where other processes step the others.

    Attributes
    ----------
    m, v : Params
        First and second moments, in the layout of the parameters; of a part alone, one array.
    state : (6,) array
        As in `clip`.
    step_count : int
        Steps begun, taken or skipped.
    """

    def __init__(
        self,
        params,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
        eps=1e-8,
        max_norm=0.0,
        half_params=None,
        loss_scaling=False,
        own=None,
    ):
        self.params, self.own = params, own or slice(0, params.size)
        self.m, self.v = (params.zeros_like() if own is None else params.part(own) for _ in "mv")
        self.beta1, self.beta2, self.weight_decay, self.eps = beta1, beta2, weight_decay, eps
        self.max_norm, self.step_count = max_norm, 0
        self.half_params, self.loss_scaling = half_params, loss_scaling
        self.state = array_module(params.flat).zeros(6, params.flat.dtype)
        self.restore({})

    def restore(self, numbers):
        """Set the state from a checkpoint's, and `half_params` from the parameters.

        Parameters
        ----------
        numbers : {int: float}
            By index. What is left out starts afresh, and so does the loss scale without
            `loss_scaling`, where it is 1.
        """
        numbers = {LOSS_SCALE: INITIAL_LOSS_SCALE} | numbers
        if not self.loss_scaling:
            numbers[LOSS_SCALE] = 1.0
        if self.half_params is not None:
            self.half_params.flat[...] = self.params.flat
        for i in range(len(self.state)):
            self.state[i] = numbers.get(i, 0.0)

    @property
    def loss_scale(self):
        """What to multiply the loss by: 1.0, or a () array that is always up to date."""
        return self.state[LOSS_SCALE, ...] if self.loss_scaling else 1.0

    def step(self, grads, lr, parallel_for=in_one_range, loss=None, total=None):
        """Update the parameters by the gradients, unless these or the loss have overflowed.

        Parameters
        ----------
        grads : (size,) float
            In the layout of `params.flat`, times the loss scale.
        lr : float
        parallel_for : callable
            parallel_for(fn, n) calls fn(start, stop) for ranges that cover 0 .. n - 1, in any
            order or at once, and returns the results in the order of the ranges; by default it
            is one range.
        loss : float or () float, optional
        total : callable, optional
            total(x) -> the sum of an array (1,) over all processes, where each has a part.
        """
        self.prepare(grads, parallel_for, loss, total)
        first, n = self.own.start, self.own.stop - self.own.start
        parallel_for(lambda a, b: self.update(grads, lr, first + a, first + b), n)

    def prepare(self, grads, parallel_for=in_one_range, loss=None, total=None):
        """Count a step, take the norm of its gradients, and clip; see `step`."""
        self.step_count += 1
        grads = grads[self.own]
        parts = parallel_for(lambda start, stop: sum_of_squares(grads[start:stop]), grads.size)
        parts = parts[0] if len(parts) == 1 else array_module(grads).concatenate(parts)
        if total is not None:
            parts = total(parts.sum().reshape(1))
        growth = GROWTH_INTERVAL if self.loss_scaling else 0
        clip(self.state, parts, self.max_norm, growth, loss)

    def update(self, grads, lr, start, stop):
        """Update the parameters start .. stop - 1."""
        at = slice(start - self.own.start, stop - self.own.start)  # of the moments
        adamw_step(
            *(flat[start:stop] for flat in (self.params.flat, grads)),
            *(moment.flat[at] for moment in (self.m, self.v)),
            *(lr, self.beta1, self.beta2, self.eps, self.weight_decay),
            min(max(self.params.decayed - start, 0), stop - start),
            self.state[STEPS, ...],
            self.state[GRAD_SCALE, ...],
            None if self.half_params is None else self.half_params.flat[start:stop],
        )
