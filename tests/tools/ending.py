"""Ways to disturb a run of tests/tools/training.py, and what must come of it."""

import itertools
import os

from minigpt.files import BEST, LAST
from minigpt.model import checkpoint
from tests.tools.training import metrics, same


def at_call(monkeypatch, owner, name, calls, act):
    """Let act() happen before some calls of a method, 1 being the first."""
    right, count = getattr(owner, name), itertools.count(1)

    def call(*args, **kwargs):
        if next(count) in calls:
            act()
        return right(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def raising(error):
    """Return a function that raises an exception."""

    def act():
        raise error

    return act


def sending(*numbers):
    """Return a function that sends signals to this process."""

    def act():
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def contents(folder):
    """Return the files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def state_of(folder, name=LAST):
    """Return the state in a checkpoint."""
    return checkpoint.load(folder / name).state


def check_same(folder, whole):
    """Assert that a run has ended as the undisturbed one has."""
    assert metrics(folder) == metrics(whole)
    for name in (BEST, LAST):
        same(folder, whole, name)
