"""Muon for the matrices inside the blocks, AdamW for everything else.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: the step of a matrix is its
momentum with all singular values brought near to 1. Liu et al. 2025, arXiv:2502.16982: how long
that step is, and weight decay, section 2.2. What is done otherwise:

- Newton-Schulz takes four steps, each with the polynomial that is best after the one before it
  (Amsel et al. 2025, arXiv:2505.16932, here for singular values from 0.003 of the norm on), not
  five with the same one: a fifth less work, singular values nearer to 1.
- w is (C_in, C_out), the transpose of theirs; q, k and v, which lie in one matrix, are three.
- Newton-Schulz runs on the Gram matrix x x^T (x^T x of a tall x), which has the smaller of the two
  dimensions: it makes the factor that x is then multiplied by once. In exact arithmetic that is
  the same; for a matrix of 128 x 512 it takes half the time.
- The precision is that of the parameters, not bfloat16.
"""

import functools
import math
import re
from typing import NamedTuple

from minigpt.backend import array_module
from minigpt.backend.devices import on_device
from minigpt.optim.adamw import AdamW
from minigpt.optim.clipping import SCALE

# Of x, x^3 and x^5 in each step. Of all such polynomials, the first departs least from 1 between
# LEAST and 1, the others on what the one before makes of that.
LEAST = 0.003
COEFFICIENTS = (
    (8.383674, -24.765906, 18.357082),
    (4.043420, -3.011405, 0.569512),
    (3.505571, -2.626654, 0.525719),
    (2.490116, -1.834275, 0.436835),
)
STEPS = len(COEFFICIENTS)
CHUNK = 2**14  # elements of Gram matrices that are worked on together on a CPU: they stay in cache


def orthogonalized(x):
    """Bring the singular values of matrices near to 1, and leave their singular vectors.

        x_0     = x / |x|                                 |x| is the Frobenius norm
        x_(i+1) = (a_i + b_i A_i + c_i A_i^2) x_i         A_i = x_i x_i^T

    which takes a singular value s to a_i s + b_i s^3 + c_i s^5. With p_i for the parenthesis,

        x_4 = p_3 p_2 p_1 p_0 x_0          A_(i+1) = A_i p_i^2, since all of these commute

    so that of all products only A_0 and the last one have to do with the long side of x. For a
    tall x, A_i = x_i^T x_i, and the factors stand on the right.

    Parameters
    ----------
    x : (..., r, c) float
        Each matrix is one on its own.

    Returns
    -------
    y : (..., r, c)
        With singular values of 0.80 to 1.20, but for those that were below 0.003 |x|.
    """
    wide = x.shape[-2] <= x.shape[-1]
    xt = x.swapaxes(-1, -2)
    gram = x @ xt if wide else xt @ x  # (..., s, s), s = min(r, c)
    norm2 = diagonal(gram).sum(axis=-1)[..., None, None] + 1e-30  # |x|^2 = trace(x x^T)
    gram /= norm2
    factor = None
    for i, (a, b, c) in enumerate(COEFFICIENTS):
        p = gram @ gram
        p *= c
        p += b * gram
        diagonal(p)[...] += a
        factor = p if factor is None else p @ factor
        if i < STEPS - 1:
            gram = gram @ (p @ p)
    factor /= norm2**0.5
    # Rounding leaves the factor a little unsymmetric: right for what comes from its right.
    return factor @ x if wide else x @ factor.swapaxes(-1, -2)


def diagonal(x):
    """Return the diagonals of contiguous (..., s, s) matrices, a view (..., s)."""
    s = x.shape[-1]
    return x.reshape(*x.shape[:-2], s * s)[..., :: s + 1]


class Kind(NamedTuple):
    """The matrices of one name in all layers of a stack of blocks: equal shapes, equal distances.

    Attributes
    ----------
    start, stride : int
        Where the first lies in the flat buffer, and how far it is to the next.
    layers : int
    rows, columns : int
        Of each of the `parts` matrices that lie beside one another in it: 3 for q, k and v.
    parts : int
    """

    start: int
    stride: int
    layers: int
    rows: int
    columns: int
    parts: int

    def view(self, flat, first, last):
        """Return a view (layers, parts, rows, columns) of layers first .. last - 1."""
        item, width = flat.itemsize, self.parts * self.columns
        return array_module(flat).lib.stride_tricks.as_strided(
            flat[self.start + first * self.stride :],
            (last - first, self.parts, self.rows, self.columns),
            (self.stride * item, self.columns * item, width * item, item),
        )

    @property
    def work(self):
        """Products of numbers in a step of one layer, about."""
        small, large = sorted((self.rows, self.columns))
        return self.parts * small * small * (2 * large + (4 * STEPS - 3) * small)

    @property
    def chunk(self):
        """Layers at a time on a CPU."""
        return max(1, CHUNK // (self.parts * min(self.rows, self.columns) ** 2))


def kinds(params):
    """Return (kinds, ranges): what Muon steps, and (start, stop) of all else in the flat buffer."""
    starts, edges, at = {}, [0], 0
    for name, view in params.leaves():
        if view.ndim < 2:
            continue
        inside = re.fullmatch(r"(.*\bh)\.\d+\.(.+)", name)  # h.0.mlp.c_fc.w, encoder.h.0. ...
        if inside:
            starts.setdefault((*inside.groups(), view.shape), []).append(at)
            edges += [at, at + view.size]
        at += view.size
    edges.append(params.size)
    ranges = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
    found = []
    for (_, name, (rows, width)), (start, *others) in starts.items():
        parts = {"c_attn": 3, "c_kv": 2}.get(name.split(".")[-2], 1)
        stride = others[0] - start if others else rows * width
        found.append(Kind(start, stride, 1 + len(others), rows, width // parts, parts))
    return found, ranges


class Muon(AdamW):
    """Muon and AdamW over flat buffers; weight decay on matrices and embeddings alone.

    With the gradient g as clipped, for each matrix inside a block:

        m = momentum m + (1 - momentum) g
        u = orthogonalized(momentum m + (1 - momentum) g)          Nesterov's momentum
        w = w - lr * weight_decay * w - lr * 0.2 sqrt(max(rows, columns)) * u

    The root mean square of such a step is 0.2 lr, about that of AdamW's, so that learning rate and
    decay may be the same for both (Liu et al. 2025, eq. 4).

    Parameters
    ----------
    params, beta1, beta2, weight_decay, eps, max_norm, low
        As AdamW's; the decay is Muon's too.
    momentum : float

    Attributes
    ----------
    m, v : Params
        In the layout of the parameters. What Muon steps has its momentum in m, and 0 in v.
    state, step_count
        As AdamW's.
    """

    def __init__(self, params, *args, momentum=0.95, **kwargs):
        super().__init__(params, *args, **kwargs)
        self.momentum = momentum
        self.kinds, self.ranges = kinds(params)

    def step(self, grads, lr, squares=None, parts=None, loss=None):
        """Update the parameters by the gradients: see AdamW.step."""
        self.begin(grads, squares, loss)
        parts = parts or (lambda fn, n: fn(0, n))
        work = sum(kind.layers * kind.work for kind in self.kinds)
        rest = sum(stop - start for start, stop in self.ranges)
        parts(functools.partial(self._step_matrices, grads, lr), work)
        parts(functools.partial(self._step_rest, grads, lr), rest)

    def _step_matrices(self, grads, lr, start, stop):
        """Step the layers whose work ends after `start` and by `stop`, in units of all work."""
        for kind in self.kinds:
            first, last = (min(max(x // kind.work, 0), kind.layers) for x in (start, stop))
            chunk = kind.layers if on_device(grads) else kind.chunk
            for i in range(first, last, chunk):
                self._step_layers(kind, grads, lr, i, min(i + chunk, last))
            start, stop = (x - kind.layers * kind.work for x in (start, stop))

    def _step_layers(self, kind, grads, lr, first, last):
        """Step one kind of matrix in layers first .. last - 1."""
        xp, scale = array_module(grads), self.state[SCALE, ...]
        w, g, m = (kind.view(x, first, last) for x in (self.params.flat, grads, self.m.flat))
        finite = xp.isfinite(scale)  # if not, nothing changes, and nobody has to wait to know
        taken = finite.astype(grads.dtype)
        lr, rest = lr * taken, (1 - self.momentum) * taken
        g = xp.where(finite, scale * g, 0.0)
        g *= rest
        m *= 1 - rest
        m += g
        g += self.momentum * m
        u = orthogonalized(g)
        u *= 0.2 * math.sqrt(max(kind.rows, kind.columns)) * lr
        w *= 1 - self.weight_decay * lr
        w -= u
        if self.low is not None:
            kind.view(self.low.flat, first, last)[...] = w

    def _step_rest(self, grads, lr, start, stop):
        """Step by AdamW the elements start .. stop - 1 of those in `ranges`, counted through."""
        for a, b in self.ranges:
            first, last = (min(max(a + x, a), b) for x in (start, stop))
            if first < last:
                self.update(grads, lr, first, last)
            start, stop = start - (b - a), stop - (b - a)
