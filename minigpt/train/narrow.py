"""Sums over processes of gradients that travel as bfloat16: half the bytes of float32.

Each rank rounds its gradient and sends every rank the part of it that this one sums, in float32.
The sum is rounded once more on its way to all; where each rank steps its own part, it is not. So
the error of a sum is at most 2^-8 of the sum of magnitudes and, on the way back, 2^-8 of the sum:
bfloat16 has the range of float32 and 8 bits.
"""

from minigpt.backend import array_module
from minigpt.optim.sharding import cut_evenly
from minigpt.params import LINE_ELEMENTS

PIECE = 2**22  # numbers at a time, which bounds the memory
HALF = 0x7FFF  # of the last bit that stays, but for ties, which go to even
NAN = 0x7FC0


class Narrow:
    """What Mpi and Nccl do for gradients, with half of the bytes.

    Parameters
    ----------
    sums : Mpi or Nccl
        Its `swap` and `spread` are called.
    rank, size : int
    """

    def __init__(self, sums, rank, size):
        self.sums, self.rank, self.size = sums, rank, size

    def sum(self, flat):
        """See Ranks.sum_gradients."""
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            parts = cut_evenly(piece.size, self.size)
            own = parts[self.rank]
            self.sum_parts(piece, parts)
            half = array_module(flat).empty(piece.size, "uint16")
            half[own] = narrow(piece[own])
            self.sums.spread(half, parts)
            piece[...] = widen(half)

    def sum_parts(self, flat, parts):
        """See Ranks.sum_gradients."""
        # cut_evenly makes the last part of a piece a little longer: it still goes at once.
        xp, step = array_module(flat), PIECE // self.size + LINE_ELEMENTS
        for start in range(0, max(part.stop - part.start for part in parts), step):
            edges = [
                [min(part.start + i, part.stop) for i in (start, start + step)] for part in parts
            ]
            half = xp.concatenate([narrow(flat[a:b]) for a, b in edges])
            found = self.sums.swap(half, [b - a for a, b in edges])
            own = flat[slice(*edges[self.rank])]
            own[...] = widen(found[0])
            for other in found[1:]:
                own += widen(other)


def narrow(x):
    """Return (N,) float32 rounded to bfloat16, as its bits: (N,) uint16. Ties go to even."""
    bits = x.view("uint32")
    rounded = bits >> 16  # in place from here on: a fourth of the time
    rounded &= 1
    rounded += HALF
    rounded += bits
    rounded >>= 16
    half = rounded.astype("uint16")
    half[x != x] = NAN
    return half


def widen(half):
    """Return the float32 of bits of bfloat16."""
    return (half.astype("uint32") << 16).view("float32")
