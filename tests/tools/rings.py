"""Which cases of a test belong to the fast ring: see tests/README.md."""

import pytest


def fast(cases, *names):
    """Return the cases as parameters of a test, all slow but those named.

    Parameters
    ----------
    cases : dict
        By name.
    names : str
        Of the cases that a plain `pytest` runs.

    Raises
    ------
    KeyError
        If a name is not that of a case.
    """
    if unknown := {*names} - cases.keys():
        raise KeyError(unknown)
    return [
        pytest.param(case, id=name, marks=() if name in names else pytest.mark.slow)
        for name, case in cases.items()
    ]
