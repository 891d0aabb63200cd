"""What all tests share: the random numbers, the backend that they run on, the corpus."""

import hashlib
import importlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from minigpt.corpus import SHA256, cache_file

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"

# A shell that starts pytest in the background makes it, and all that it starts, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("minigpt", deadline=None)  # a busy machine is no failure
settings.load_profile("minigpt")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=("numpy", "cupy"),
        default="numpy",
        help="arrays that the tests with the fixture xp run on",
    )


@pytest.fixture
def rng():
    return np.random.default_rng(1337)


@pytest.fixture
def xp(request):
    """The array module of --backend."""
    return importlib.import_module(request.config.getoption("--backend"))


@pytest.fixture(scope="session")
def corpus():
    """The text of tiny Shakespeare."""
    for path in (os.environ.get("MINIGPT_CORPUS"), cache_file(), SHARED):
        if path and Path(path).is_file():
            raw = Path(path).read_bytes()
            if hashlib.sha256(raw).hexdigest() == SHA256:
                return raw.decode("utf-8")
    pytest.skip("tiny Shakespeare is not at hand; MINIGPT_CORPUS may name a copy")
