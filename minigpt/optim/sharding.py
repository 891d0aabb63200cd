"""Which part of a flat buffer each of several processes steps: ZeRO stage 1.

Rajbhandari et al. 2019, arXiv:1910.02054, section 5.1: every process has all weights, but the
moments of its own part alone, which it steps; then all receive the stepped weights.
"""

from minigpt.params import LINE_ELEMENTS  # parts begin where cache lines do


def cut_evenly(size, n, whole=()):
    """Return n slices that cover 0 .. size - 1 in order, about equally large; some may be empty.

    Parameters
    ----------
    size, n : int
    whole : list of (start, stop)
        Ascending: what is not to be cut. A cut within one moves to its nearer end.
    """
    edges = [0]
    for i in range(1, n):
        at = size * i // n // LINE_ELEMENTS * LINE_ELEMENTS
        for start, stop in whole:
            if start < at < stop:
                at = start if at - start < stop - at else stop
        edges.append(max(at, edges[-1]))
    return [slice(a, b) for a, b in zip(edges, [*edges[1:], size], strict=True)]
