"""Muon for the matrices inside the blocks, AdamW for everything else.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: the step of a matrix is its momentum
with all singular values brought near 1. Liu et al. 2025, arXiv:2502.16982: the length of that step,
and weight decay, section 2.2.

Why: let the gradient be g = U S V^T, its singular value decomposition. Among all steps u whose
largest singular value is at most 1, U V^T has the largest product <g, u>: it is the longest step in
the direction of g, and it moves rare directions (small singular values) as far as frequent ones.
AdamW does something like it for each number alone.

No SVD is needed: x x^T x = U S^3 V^T, so that an odd polynomial in x acts on the singular values
alone, and iterating one that pulls all of them to 1 leaves U V^T (Newton-Schulz; the classical step
is 1.5 s - 0.5 s^3). Dividing by the Frobenius norm first makes every s <= 1.

Differences from Jordan's:

- Four steps, each with the polynomial that is best after the one before it (Amsel et al. 2025,
  arXiv:2505.16932, here for singular values from 0.003 of the norm on), instead of five with the
  same one. Singular values come nearer to 1, with a fifth less work (a sixth for 128 x 512 in the
  form below).
- w is (C_in, C_out), the transpose of theirs; q, k and v share one array but are stepped as three
  matrices.
- The steps run on the Gram matrix x x^T (x^T x of a tall x), which has the smaller of the two
  dimensions: it gives the factor that x is then multiplied by once. In exact arithmetic that is the
  same. It takes fewer operations where the long side is more than 1.5 times the short one: 0.58 as
  many for 128 x 512, but 1.25 as many for a square matrix.
- The precision is that of the parameters, not bfloat16, whose 8 bits are too few for powers of a
  Gram matrix. On a GPU the products are in TF32 where that is asked for.
"""

import functools
import math
import re
from typing import NamedTuple

from minigpt.backend import array_module, overridable
from minigpt.backend.devices import on_gpu
from minigpt.optim.adamw import AdamW, in_one_range
from minigpt.optim.clipping import GRAD_SCALE

# Of x, x^3 and x^5 in each step. Of all such polynomials, the first departs least from 1 between
# MIN_SINGULAR and 1, the others on what the one before makes of that.
MIN_SINGULAR = 0.003
COEFFICIENTS = (
    (8.383674, -24.765906, 18.357082),
    (4.043420, -3.011405, 0.569512),
    (3.505571, -2.626654, 0.525719),
    (2.490116, -1.834275, 0.436835),
)
ITERATIONS = len(COEFFICIENTS)
MOMENTUM = 0.9
GRAM_ELEMENTS = 2**14  # of Gram matrices at a time on a CPU: they stay in the cache


def orthogonalize(x, coarse=False):
    """Bring the singular values of matrices near 1, and keep their singular vectors.

        x_0     = x / |x|                                 |x| is the Frobenius norm
        x_(i+1) = (a_i + b_i A_i + c_i A_i^2) x_i         A_i = x_i x_i^T

    which takes a singular value s to a_i s + b_i s^3 + c_i s^5. With p_i for the parenthesis,

        x_4 = p_3 p_2 p_1 p_0 x_0          A_(i+1) = A_i p_i^2, since all of these commute

    so that only two products involve the long side of x: A_0, and the last one. For a tall x,
    A_i = x_i^T x_i, and the factors stand on the right.

    Parameters
    ----------
    x : (..., r, c) float
        Each matrix is one on its own.
    coarse : bool
        Whether products see fewer bits than float32 has. Rounding can turn a small eigenvalue of
        A_1 negative, which A_2 and A_3 multiply: then A_2 is made anew, of x_2 = p_1 p_0 x_0.

    Returns
    -------
    y : (..., r, c)
        With singular values from 0.80 to 1.20, except those that were below 0.003 |x|.
    """
    gram = gram_of(x)
    norm2 = diagonal(gram).sum(axis=-1)[..., None, None] + 1e-30  # |x|^2 = trace(x x^T)
    gram /= norm2
    factor, size = None, norm2**0.5
    for i, (a, b, c) in enumerate(COEFFICIENTS):
        p = batched_product(gram, gram)
        p *= c
        p += b * gram
        diagonal(p)[...] += a
        factor = p if factor is None else batched_product(p, factor)
        if coarse and i == 1:
            factor /= size
            x, factor, size = multiply(factor, x), None, 1.0
            gram = gram_of(x)
        elif i < ITERATIONS - 1:
            gram = batched_product(gram, batched_product(p, p))
    factor /= size
    return multiply(factor, x)


def gram_of(x):
    """Return x x^T, or x^T x where that is smaller: (..., s, s), s = min(r, c)."""
    xt = x.swapaxes(-1, -2)
    return batched_product(x, xt) if x.shape[-2] <= x.shape[-1] else batched_product(xt, x)


def multiply(factor, x):
    """Return factor @ x, or x @ factor^T for a tall x; factor is symmetric but for rounding."""
    if x.shape[-2] <= x.shape[-1]:
        return batched_product(factor, x)
    return batched_product(x, factor.swapaxes(-1, -2))  # its transpose is right on this side


@overridable
def batched_product(a, b):
    """Return a @ b for each matrix of a (..., r, k) and b (..., k, c): (..., r, c)."""
    return a @ b


def diagonal(x):
    """Return the diagonals of contiguous (..., s, s) matrices, a view (..., s)."""
    s = x.shape[-1]
    return x.reshape(*x.shape[:-2], s * s)[..., :: s + 1]


class MatrixGroup(NamedTuple):
    """The matrices of one name in all layers of a stack of blocks: equal shapes, equal distances.

    Attributes
    ----------
    start, stride : int
        Where the first begins in the flat buffer, and how far it is to the next.
    layers : int
    rows, columns : int
        Of each of the `parts` matrices that lie side by side in it: 3 for q, k and v.
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
    def size(self):
        """Numbers in one layer."""
        return self.parts * self.rows * self.columns

    @property
    def work(self):
        """Multiplications in a step of one layer, approximately."""
        small, large = sorted((self.rows, self.columns))
        return self.parts * small * small * (2 * large + (4 * ITERATIONS - 3) * small)

    @property
    def chunk(self):
        """Layers at a time on a CPU."""
        return max(1, GRAM_ELEMENTS // (self.parts * min(self.rows, self.columns) ** 2))


def group_matrices(params):
    """Return (groups, ranges): what Muon steps, and (start, stop) of all else in the buffer."""
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
    groups = []
    for (_, name, (rows, width)), (start, *others) in starts.items():
        parts = {"c_attn": 3, "c_kv": 2}.get(name.split(".")[-2], 1)
        stride = others[0] - start if others else rows * width
        groups.append(MatrixGroup(start, stride, 1 + len(others), rows, width // parts, parts))
    return groups, ranges


def matrices_of(groups):
    """Return (start, stop) of every array that has matrices of the groups, ascending."""
    return sorted(
        (group.start + i * group.stride, group.start + i * group.stride + group.size)
        for group in groups
        for i in range(group.layers)
    )


def within(own, groups, ranges):
    """Return what of (groups, ranges) lies in a slice of the buffer, which cuts no matrix."""
    found = []
    for group in groups:
        first = max(0, -((group.start - own.start) // group.stride))
        last = min(group.layers, (own.stop - group.size - group.start) // group.stride + 1)
        if first < last:
            start = group.start + first * group.stride
            found.append(group._replace(start=start, layers=last - first))
    pairs = ((max(a, own.start), min(b, own.stop)) for a, b in ranges)
    return found, [(a, b) for a, b in pairs if a < b]


class Muon(AdamW):
    """Muon and AdamW over flat buffers; weight decay on matrices and embeddings only.

    With the gradient g as clipped, for each matrix inside a block:

        m = momentum m + (1 - momentum) g
        u = orthogonalize(momentum m + (1 - momentum) g)           Nesterov's momentum
        w = w - lr * weight_decay * w - lr * 0.2 sqrt(max(rows, columns)) * u

    |U V^T|^2 = min(rows, columns), so that its root mean square is 1 / sqrt(max(rows, columns)).
    That of the step is thus 0.2 lr, about as AdamW's: learning rate and decay can be the same for
    both (Liu et al. 2025, eq. 4).

    Parameters
    ----------
    params, beta1, beta2, weight_decay, eps, max_norm, half_params, loss_scaling
        As AdamW's; the decay is Muon's, too.
    momentum : float
    tf32 : bool
        Whether products are in TF32: see devices.tf32_products.

    Attributes
    ----------
    m, v : Params
        In the layout of the parameters. What Muon steps has its momentum in m, and 0 in v.
    state, step_count
        As AdamW's.
    """

    def __init__(self, params, *args, momentum=MOMENTUM, tf32=False, **kwargs):
        super().__init__(params, *args, **kwargs)
        self.momentum, self.tf32 = momentum, tf32
        self.groups, self.ranges = within(self.own, *group_matrices(params))

    def step(self, grads, lr, parallel_for=in_one_range, loss=None, total=None):
        """Update the parameters by the gradients: see AdamW.step."""
        self.prepare(grads, parallel_for, loss, total)
        work = sum(group.layers * group.work for group in self.groups)
        rest = sum(stop - start for start, stop in self.ranges)
        parallel_for(functools.partial(self._step_matrices, grads, lr), work)
        parallel_for(functools.partial(self._step_rest, grads, lr), rest)

    def _step_matrices(self, grads, lr, start, stop):
        """Number the multiplications of all layers in a row; step each layer whose last one is in
        (start, stop].
        """
        for group in self.groups:
            first, last = (min(max(x // group.work, 0), group.layers) for x in (start, stop))
            chunk = group.layers if on_gpu(grads) else group.chunk
            for i in range(first, last, chunk):
                self._step_layers(group, grads, lr, i, min(i + chunk, last))
            start, stop = (x - group.layers * group.work for x in (start, stop))

    def _step_layers(self, group, grads, lr, first, last):
        """Step one group of matrices in layers first .. last - 1."""
        xp, scale = array_module(grads), self.state[GRAD_SCALE, ...]
        w, g = (group.view(x, first, last) for x in (self.params.flat, grads))
        own = group._replace(start=group.start - self.own.start)
        m = own.view(self.m.flat, first, last)
        finite = xp.isfinite(scale)  # if not, nothing changes, and nobody has to wait to know
        taken = finite.astype(grads.dtype)
        lr, rest = lr * taken, (1 - self.momentum) * taken
        g = xp.where(finite, scale * g, 0.0)
        g *= rest
        m *= 1 - rest
        m += g
        g += self.momentum * m
        u = orthogonalize(g, self.tf32)
        u *= 0.2 * math.sqrt(max(group.rows, group.columns)) * lr
        w *= 1 - self.weight_decay * lr
        w -= u
        if self.half_params is not None:
            group.view(self.half_params.flat, first, last)[...] = w

    def _step_rest(self, grads, lr, start, stop):
        """Step by AdamW the elements start .. stop - 1 of those in `ranges`, end to end."""
        for a, b in self.ranges:
            first, last = (min(max(a + x, a), b) for x in (start, stop))
            if first < last:
                self.update(grads, lr, first, last)
            start, stop = start - (b - a), stop - (b - a)
