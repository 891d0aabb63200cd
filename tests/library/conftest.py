"""Two models that have been trained for a moment."""

import pytest

import minigpt
from tests.library.runs import OPTIONS, PAIRS, SMALL
from tests.tools.training import TEXT


@pytest.fixture(scope="module")
def model():
    return minigpt.fit(text=TEXT, progress=False, **OPTIONS)


@pytest.fixture(scope="module")
def reverser():
    """An encoder-decoder that has begun to learn to turn digits around."""
    return minigpt.fit(pairs=PAIRS, progress=False, max_iters=20, **SMALL)
