"""A recorded step, which is made once."""

import pytest

from minigpt.data.characters import CharTokenizer
from minigpt.report.step.record import record_step
from minigpt.report.step.walk import walk_of

TEXT = "Before we proceed any further, hear me speak. 3 Beer\n"


@pytest.fixture(scope="session")
def tokenizer():
    return CharTokenizer.from_text(TEXT)


@pytest.fixture(scope="session")
def step(tokenizer):
    """A step on "Bee3 we": e comes three times."""
    return record_step("Bee3 we", tokenizer)


@pytest.fixture(scope="session")
def walk(step):
    return walk_of(step, "a text", head=1)


@pytest.fixture(scope="session")
def passes(walk):
    """Return every pass that is shown, with the key of its stage and its way."""
    found = {}
    for stage in (*walk.stages, *walk.closing):
        found[stage.key, "forward"] = stage.forward
        if stage.backward is not None:
            found[stage.key, "backward"] = stage.backward
    return found
