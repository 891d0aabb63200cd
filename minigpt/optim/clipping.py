"""Gradient clipping by global norm, and a dynamic loss scale for float16.

The optimizer's own numbers (loss scale, step counts, norm) are one small array beside the
parameters. On a GPU no step waits for them: whoever wants them copies the array to the host.
"""

import math

from minigpt.backend import array_module, overridable

# Indices into AdamW.state. Checkpoints hold the first four as a list, in this order.
LOSS_SCALE, GOOD_STEPS, STEPS, SKIPPED, GRAD_SCALE, GRAD_NORM = range(6)

# Gradients in float16 underflow below 6e-8 and overflow above 65504; bfloat16 has the range of
# float32. Multiplying the loss by a scale that is found by trial keeps them in between:
# Micikevicius et al. 2018, arXiv:1710.03740, section 3.2. The initial scale, the factors 2 and 1/2
# and the interval are those of torch's GradScaler, which has no bounds; the upper bound is that of
# NVIDIA's Apex, the lower one (1) ours.
INITIAL_LOSS_SCALE = 2.0**16
MAX_LOSS_SCALE = 2.0**24
GROWTH_INTERVAL = 2000  # steps in a row without overflow, after which the scale is doubled


@overridable
def clip(state, sq_norm_parts, max_norm, growth=0, loss=None, max_loss_scale=MAX_LOSS_SCALE):
    """Find the number that the optimizer multiplies all gradients by; in place on state.

        norm  = sqrt(sum sq_norm_parts) / loss_scale + 0 * loss  nan if the loss is not finite
        scale = min(1, max_norm / (norm + 1e-6)) / loss_scale    nan if norm is not finite

    All gradients are multiplied by the same number: their direction stays. Pascanu et al. 2013,
    arXiv:1211.5063, algorithm 1; the 1e-6 is torch's.

    If norm is finite, the step is taken, and after `growth` such steps in a row the loss scale is
    doubled. If not, the step is skipped and the loss scale halved, down to 1.

    Parameters
    ----------
    state : (6,) float
        LOSS_SCALE, GOOD_STEPS (steps in a row without overflow), STEPS (taken), SKIPPED,
        GRAD_SCALE, GRAD_NORM.
    sq_norm_parts : (...) float
        Parts of the sum of squares of the gradients, which are loss_scale times too large.
    max_norm : float
        0 is no clipping.
    growth : int
        0: the loss scale stays as it is.
    loss : float or () float, optional
        A step whose loss is not finite is skipped as well: its gradient can be finite.
    max_loss_scale : float
    """
    xp = array_module(state)
    loss_scale = state[LOSS_SCALE]
    norm = xp.sqrt(sq_norm_parts.sum()) / loss_scale
    if loss is not None:
        norm = norm + 0.0 * loss
    taken = xp.isfinite(norm)
    factor = xp.minimum(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    state[GRAD_SCALE] = xp.where(taken, factor / loss_scale, math.nan)
    state[GRAD_NORM] = norm
    state[STEPS] += taken
    state[SKIPPED] += ~taken
    if growth:
        good_steps = xp.where(taken, state[GOOD_STEPS] + 1, 0)
        grown = good_steps == growth
        factor = xp.where(taken, xp.where(grown, 2.0, 1.0), 0.5)
        state[GOOD_STEPS] = xp.where(grown, 0, good_steps)
        state[LOSS_SCALE] = xp.clip(loss_scale * factor, 1.0, max_loss_scale)
