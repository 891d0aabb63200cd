"""The metrics of a run as a page shows them: read with care, and few enough to be drawn."""

from typing import NamedTuple

from minigpt.cli import first_of, plural
from minigpt.files import METRICS, read_metrics

MOST = 1500  # lines that a page has
SHOWN = 5  # damaged lines that a note names


class Metrics(NamedTuple):
    """What `read_run` returns.

    Attributes
    ----------
    lines : list of dict
        In their order, thinned out.
    total : int
        Lines that there are.
    notes : list of str
        What a reader should know of them, a sentence each: for the page and for the terminal.
    """

    lines: list
    total: int
    notes: list


def read_run(folder, most=MOST):
    """Return the Metrics of a run.

    Parameters
    ----------
    folder : Path
    most : int
        Lines to keep, about.

    Raises
    ------
    OSError
        If the folder has none.
    """
    damaged = []
    lines = [*read_metrics(folder, damaged)]
    kept, notes = thin(lines, most), []
    if damaged:
        named = first_of([f"line {number:,}" for number in damaged], SHOWN)
        notes.append(f"{METRICS}: {plural(len(damaged), 'lines')} left out as damaged: {named}")
    if len(kept) < len(lines):
        notes.append(
            f"{len(kept):,} of {len(lines):,} lines of {METRICS} are shown: of as many neighbours "
            "each time the lowest and the highest loss, and all evaluations that fit"
        )
    return Metrics(kept, len(lines), notes)


def thin(lines, most):
    """Return at most about `most` lines, in their order: an even choice that keeps extremes.

    First and last lines stay. Evaluations stay, if they take no more than half of the room, and are
    thinned out among themselves if they do. Of every so many neighbours the one with the lowest and
    the one with the highest loss are kept, so that no spike is lost.
    """
    if len(lines) <= most:
        return lines
    evaluated = [i for i, line in enumerate(lines) if line.get("val_loss") is not None]
    others = [i for i, line in enumerate(lines) if line.get("val_loss") is None]
    kept = {0, len(lines) - 1, *extremes(lines, evaluated, "val_loss", most // 2)}
    kept.update(extremes(lines, others, "train_loss", most - len(kept)))
    return [lines[i] for i in sorted(kept)]


def extremes(lines, which, key, most):
    """Return at most `most` of the numbers `which` of lines: of neighbours the lowest and highest.

    A line without a number under `key` counts as neither, unless none of its neighbours has one.
    """
    if len(which) <= most:
        return which
    groups, kept = max(most // 2, 1), []
    for j in range(groups):
        group = which[j * len(which) // groups : (j + 1) * len(which) // groups]
        known = [i for i in group if lines[i].get(key) is not None] or group[:1]
        kept += {min(known, key=lambda i: lines[i].get(key) or 0.0)}
        kept += {max(known, key=lambda i: lines[i].get(key) or 0.0)}
    return kept
