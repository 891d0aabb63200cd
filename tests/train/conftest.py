import sys
import time

import pytest

from minigpt.train import threads
from tests.tools.training import EXACT, begin


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert begin(folder, *EXACT) == 0
    return folder


@pytest.fixture
def gathered(monkeypatch):
    """How many elements are gathered, in each call."""
    sizes, gather = [], threads.gather
    monkeypatch.setattr(
        threads, "gather", lambda flat, *a: sizes.append(flat.size) or gather(flat, *a)
    )
    return sizes


@pytest.fixture
def clock(monkeypatch):
    """A clock that is told how long things take; reading it takes 0.1 ms."""

    class Told:
        now, reading = 0.0, 1e-4

        def __call__(self):
            self.now += self.reading
            return self.now

    told = Told()
    monkeypatch.setattr(time, "perf_counter", told)
    return told
