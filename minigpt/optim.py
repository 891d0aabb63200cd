"""AdamW, clipping by global norm, and the learning rate as a function of the step."""

import math

from minigpt.backend import array_module, overridable


@overridable
def adamw_step(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale=1.0):
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
    step : int
        1 at the first step.
    scale : float
        What clipping multiplies the gradient by.
    """
    g = g * scale
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    denominator = array_module(p).sqrt(v) / math.sqrt(1 - beta2**step) + eps
    p *= 1 - lr * weight_decay
    p -= (lr / (1 - beta1**step)) * m / denominator


def clip_scale(norm, max_norm):
    """Return what brings a gradient of that norm to at most max_norm: min(1, max / (norm + 1e-6)).

    max_norm 0 is no clipping. Pascanu et al. 2013, arXiv:1211.5063, algorithm 1; torch's 1e-6.
    """
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0


def learning_rate(step, config):
    """Warm-up, then half a cosine from learning_rate down to min_lr, as in nanoGPT.

    Parameters
    ----------
    step : int
        0 at the first step.
    config : object
        With learning_rate, min_lr, warmup_iters and lr_decay_iters.
    """
    lr, warmup, last = config.learning_rate, config.warmup_iters, config.lr_decay_iters
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if step >= last:
        return config.min_lr
    share = (step - warmup) / (last - warmup)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * share)) * (lr - config.min_lr)


class AdamW:
    """AdamW over flat buffers; weight decay on matrices and embeddings alone.

    Parameters
    ----------
    params : Params
    beta1, beta2, weight_decay, eps : float

    Attributes
    ----------
    m, v : Params
        First and second moments, in the layout of the parameters.
    step_count : int
    """

    def __init__(self, params, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8):
        self.params, self.m, self.v = params, params.zeros_like(), params.zeros_like()
        self.beta1, self.beta2, self.weight_decay, self.eps = beta1, beta2, weight_decay, eps
        self.step_count = 0

    def step(self, grads, lr, scale=1.0, parts=None):
        """Update the parameters by the gradients.

        Parameters
        ----------
        grads : (size,) float
            In the layout of `params.flat`.
        lr : float
        scale : float
            What clipping multiplies the gradients by.
        parts : callable, optional
            parts(fn, n) calls fn(start, stop) for ranges that cover 0 .. n - 1, in any order or
            at once; by default one range.
        """
        self.step_count += 1

        def update(start, stop):
            split = min(max(self.params.decayed, start), stop)
            for a, b, decay in ((start, split, self.weight_decay), (split, stop, 0.0)):
                flats = (self.params.flat, grads, self.m.flat, self.v.flat)
                adamw_step(
                    *(flat[a:b] for flat in flats),
                    lr,
                    self.beta1,
                    self.beta2,
                    self.eps,
                    decay,
                    self.step_count,
                    scale,
                )

        if parts is None:
            update(0, self.params.size)
        else:
            parts(update, self.params.size)
