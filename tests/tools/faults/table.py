"""The rows of the fault table, and how often each is tried."""

import functools

from tests.tools.faults import corruption, disks, interruptions, long, numbers

DAMAGED = {
    name: (round(500 * share), round(10_000 * share), functools.partial(corruption.row, kind))
    for kind, (share, name) in corruption.KINDS.items()
}
# name: (trials of --quick, trials, fn(trials, base, uninterrupted run, seed) -> Row). What a long
# run has in place of trials is seconds.
KINDS = {
    "kill -9": (12, 200, interruptions.kill),
    "SIGTERM": (3, 20, interruptions.terminate),
    "SIGINT": (3, 20, interruptions.interrupt),
    "two runs in one folder": (1, 10, interruptions.two_runs),
    "full disk": (3, 20, disks.full_disk),
    "read-only folder": (1, 3, disks.read_only),
    "not finite": (6, 60, numbers.not_finite),
    **DAMAGED,
    "8 processes, one cache folder": (1, 10, long.one_cache),
    "a long run": (20, 3600, long.soak),
}


def rows(quick, base, seed, words=()):
    """Yield a Row for each kind of fault whose name has one of the words, or for all.

    Parameters
    ----------
    quick : bool
    base : Path
        A folder for what the runs write.
    seed : int
    words : list of str
    """
    expected = None
    for name, (few, many, row) in KINDS.items():
        if not words or any(word in name for word in words):
            expected = expected or interruptions.Uninterrupted(base)
            yield row(few if quick else many, base, expected, seed)
