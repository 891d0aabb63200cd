"""What all tests share: random numbers, the backend that they run on, the corpus; the rings."""

import hashlib
import importlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from minigpt.data.corpus import SHA256, cache_file

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"

# A shell that starts pytest in the background makes it, and all that it starts, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a busy machine is no failure.
settings.register_profile("few", deadline=None, max_examples=10)
settings.register_profile("many", deadline=None, max_examples=100)
settings.load_profile("few")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=("numpy", "cupy"),
        default="numpy",
        help="arrays that the tests with the fixture xp run on",
    )
    parser.addoption(
        "--slow",
        action="store_true",
        help="run the slow tests, too, and hypothesis with many examples",
    )
    parser.addoption(
        "--no-pool",
        action="store_true",
        help="each array of CuPy in memory of its own, so that what guards memory guards it",
    )


def slow_ring(config):
    """Tell whether tests marked slow run: with --slow, with -m slow, or named one by one."""
    named = any("::" in arg for arg in config.args)
    return config.getoption("--slow") or "slow" in config.getoption("-m") or named


def pytest_configure(config):
    if config.getoption("--slow"):
        settings.load_profile("many")
    if config.getoption("--no-pool"):
        if config.getoption("--backend") != "cupy":
            raise pytest.UsageError("--no-pool is for --backend cupy")
        importlib.import_module("cupy").cuda.set_allocator(None)


def pytest_collection_modifyitems(config, items):
    if not slow_ring(config):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_runtest_setup(item):
    if item.get_closest_marker("bpe"):
        pytest.importorskip("tokenizers")


@pytest.fixture
def rng():
    return np.random.default_rng(1337)


@pytest.fixture
def xp(request):
    """The array module of --backend."""
    return importlib.import_module(request.config.getoption("--backend"))


@pytest.fixture
def backend(request):
    """The flag --backend, for a program."""
    return f"--backend={request.config.getoption('--backend')}"


@pytest.fixture
def cupy(xp):
    """The module; skips the test on NumPy."""
    if xp is np:
        pytest.skip("on CuPy only: --backend cupy")
    return xp


@pytest.fixture(scope="session")
def corpus():
    """The text of tiny Shakespeare."""
    for path in (os.environ.get("MINIGPT_CORPUS"), cache_file(), SHARED):
        if path and Path(path).is_file():
            raw = Path(path).read_bytes()
            if hashlib.sha256(raw).hexdigest() == SHA256:
                return raw.decode("utf-8")
    pytest.skip("tiny Shakespeare is not at hand; MINIGPT_CORPUS may name a copy")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """What cannot be written is tried again at once."""
    monkeypatch.setattr("minigpt.files.PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than all else."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of 4 steps; see tests/tools/training.py."""
    from tests.tools.training import begin

    assert begin(tmp_path / "run", "--max-iters=4") == 0
    return tmp_path / "run"
