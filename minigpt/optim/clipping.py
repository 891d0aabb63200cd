"""Clipping by global norm and dynamic loss scaling.

The numbers (norm, scale, steps taken) are one small array where the parameters are. On a GPU nobody
waits for them: whoever wants them reads the array back.
"""

import math

from minigpt.backend import array_module, overridable

# Places in AdamW.state
LOSS_SCALE, GOOD, TAKEN, SKIPPED, SCALE, NORM = range(6)

# A 16-bit gradient underflows below 6e-8 and overflows beyond 65504: the loss is multiplied by
# what keeps it between, which is found by trying. Micikevicius et al. 2018, arXiv:1710.03740,
# section 3.2; the numbers are torch's.
FIRST, LARGEST = 2.0**16, 2.0**24  # loss scales
GROWTH = 2000  # steps in a row without overflow, after which it is doubled


@overridable
def clip(state, squares, max_norm, growth=0, loss=None, largest=LARGEST):
    """Find what the optimizer multiplies the gradients by; in place on state.

        norm  = sqrt(sum squares) / loss_scale + 0 * loss        nan if the loss is not finite
        scale = min(1, max_norm / (norm + 1e-6)) / loss_scale    nan if norm is not finite

    If norm is finite, the step is taken, and after `growth` such steps in a row the loss scale is
    doubled; else the step is skipped and the loss scale halved, down to 1. Pascanu et al. 2013,
    arXiv:1211.5063, algorithm 1; torch's 1e-6.

    Parameters
    ----------
    state : (6,) float
        loss_scale; steps in a row without overflow; steps taken, skipped; scale; norm.
    squares : (...) float
        Parts of the sum of squares of the gradients, which are loss_scale times too large.
    max_norm : float
        0 is no clipping.
    growth : int
        0: the loss scale stays as it is.
    loss : float or () float, optional
        A step whose loss is not finite is skipped, too: its gradient can be finite.
    """
    xp = array_module(state)
    loss_scale = state[LOSS_SCALE]
    norm = xp.sqrt(squares.sum()) / loss_scale
    if loss is not None:
        norm = norm + 0.0 * loss
    taken = xp.isfinite(norm)
    least = xp.minimum(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    state[SCALE] = xp.where(taken, least / loss_scale, math.nan)
    state[NORM] = norm
    state[TAKEN] += taken
    state[SKIPPED] += ~taken
    if growth:
        good = xp.where(taken, state[GOOD] + 1, 0)
        doubled = good == growth
        factor = xp.where(taken, xp.where(doubled, 2.0, 1.0), 0.5)
        state[GOOD] = xp.where(doubled, 0, good)
        state[LOSS_SCALE] = xp.clip(loss_scale * factor, 1.0, largest)
