"""Problems for bench/attention.py and their right results, from the reference op."""

import argparse
from typing import NamedTuple

import numpy as np

from bench.lib.rates import dtype_of
from bench.lib.report import WrongResult
from minigpt.ops.attention import attention_backward, attention_forward

# Of the largest element: in 16 bit 8 times the unit round-off.
TOLERANCE = {"float32": 2e-5, "float16": 8 * 2**-11, "bfloat16": 8 * 2**-8}
CHECK_ROWS = 16  # parts of a long sequence of which one query each is checked


class Shape(NamedTuple):
    """One problem; Tq == Tk is causal self-attention, else cross attention without a mask."""

    B: int
    H: int
    Tq: int
    Tk: int
    D: int

    @classmethod
    def parse(cls, text):
        """Read B,H,T,D or B,H,Tq,Tk,D."""
        sizes = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
        if len(sizes) == 4:
            sizes.insert(2, sizes[2])
        if len(sizes) != 5 or min(sizes) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not B,H,T,D or B,H,Tq,Tk,D, each >= 1")
        return cls(*sizes)

    @property
    def causal(self):
        return self.Tq == self.Tk

    def __str__(self):
        sizes = (self.B, self.H, self.Tq, self.D) if self.causal else self
        return ",".join(map(str, sizes))

    def flops(self):
        """Return the FLOPs of each pass."""
        seen = self.Tq * (self.Tq + 1) // 2 if self.causal else self.Tq * self.Tk
        product = 2 * self.B * self.H * seen * self.D
        return {"forward": 2 * product, "backward": 4 * product, "both": 6 * product}


def inputs(shape, rows=None, dtype="float32"):
    """Return float32 q, k, v and dy, rounded to `dtype`; dy is 0 in all but the given rows."""
    rng = np.random.default_rng(1337)
    B, H, Tq, Tk, D = shape
    q, k, v, dy = (rng.standard_normal((B, H, T, D), np.float32) for T in (Tq, Tk, Tk, Tq))
    if rows is not None:
        dy[:, :, np.setdiff1d(np.arange(Tq), rows)] = 0
    return [x.astype(dtype_of(dtype)).astype(np.float32, copy=False) for x in (q, k, v, dy)]


def checked_rows(shape):
    """Return the queries to check: all, or of a long sequence first, last and some of each part."""
    if shape.Tq <= 256:
        return np.arange(shape.Tq)
    edges = np.linspace(0, shape.Tq, CHECK_ROWS + 1).astype(int)
    drawn = np.random.default_rng(7).integers(edges[:-1], edges[1:])
    return np.unique([0, *drawn, shape.Tq - 1])


def expected(shape, arrays, rows):
    """Return (y[rows], dq[rows], dk, dv) of the reference op in float64, for a dy of these rows."""
    q, k, v, dy = (x.astype(np.float64) for x in arrays)
    if len(rows) == shape.Tq:
        y, cache = attention_forward.reference(q, k, v, causal=shape.causal)
        return y, *attention_backward.reference(dy, cache)
    ys, dqs, dk, dv = [], [], np.zeros_like(k), np.zeros_like(v)
    for row in rows:
        one, seen = slice(row, row + 1), slice(row + 1 if shape.causal else shape.Tk)
        y, cache = attention_forward.reference(q[:, :, one], k[:, :, seen], v[:, :, seen])
        dq, dk_row, dv_row = attention_backward.reference(dy[:, :, one], cache)
        dk[:, :, seen] += dk_row
        dv[:, :, seen] += dv_row
        ys.append(y)
        dqs.append(dq)
    return np.concatenate(ys, axis=2), np.concatenate(dqs, axis=2), dk, dv


def compare(name, shape, results, right, rows, dtype="float32"):
    """Compare a candidate's whole (y, dq, dk, dv) with what `expected` gave for these rows.

    Raises
    ------
    WrongResult
        If an element is off by more than `TOLERANCE` times the largest one.
    """
    if len(rows) < shape.Tq:
        if np.delete(results[1], rows, axis=2).any():
            raise WrongResult(f"{name}: dq of {shape} is not 0 where dy is 0")
        results = [x[:, :, rows] for x in results[:2]] + results[2:]
    for what, got, want in zip(("y", "dq", "dk", "dv"), results, right, strict=True):
        error = abs(got - want).max() / abs(want).max()
        if not error <= TOLERANCE[dtype]:  # nan is wrong too
            raise WrongResult(
                f"{name}: {what} of {shape} is off by {error:.1e} of its largest element; "
                f"{TOLERANCE[dtype]:.0e} is allowed in {dtype}"
            )
