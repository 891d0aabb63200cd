"""Every derivative of the package has its check, in every form and for every option of a model."""

import itertools
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from minigpt.library.check import positional
from minigpt.model import gpt
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.ops import linear
from tests.backend import test_overrides
from tests.tools import inventory, options, registry

ROOT = Path(__file__).parents[2]
TESTED = ("tests/ops", *(f"tests/model/test_{x}.py" for x in ("blocks", "gpt", "encoder_decoder")))
# What makes a model larger, or its first weights others: no other terms in any gradient.
SIZES = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "source_vocab_size"}
SIZES |= {"init_scale"}


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What all gradient tests check, as they record it themselves."""
    path = tmp_path_factory.mktemp("coverage") / "gradients.json"
    flags = ["-q", "--slow", "-p", "tests.tools.registry", "-p", "no:cacheprovider"]
    flags += ["--names-only", "--gradients", path, "-k", "test_backward or test_every_gradient"]
    command = [sys.executable, "-m", "pytest", *flags, *TESTED]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    return registry.load(path)


@slow
def test_every_gradient_has_its_checks(records):
    assert inventory.gaps(records) == []


@slow
def test_what_is_checked_is_in_the_inventory(records):
    known = inventory.inventory()
    assert {r["subject"] for r in records} == known.keys()
    for r in records:
        assert r["input"].replace("h.1.", "h.0.") in known[r["subject"]], r


@slow
def test_a_check_that_is_lost_is_missed(records):
    for lost in (records[0], records[len(records) // 2], records[-1]):
        (gap,) = inventory.gaps([r for r in records if r is not lost])
        assert gap.startswith(f"{lost['subject']}: no check of {lost['input']} by {lost['check']}")


@slow
def test_an_input_without_a_check_is_found(records, monkeypatch):
    def linear_forward(x, w, b=None, gain=None):
        return x

    monkeypatch.setattr(linear, "linear_forward", linear_forward)
    gaps = inventory.gaps(records)
    assert gaps and all(gap.startswith("ops.linear: no check of gain") for gap in gaps)


@slow
def test_an_op_without_a_check_is_found(records, monkeypatch):
    def twice_forward(x):
        return 2 * x, ()

    def twice_backward(dy, cache):
        return 2 * dy

    twice_backward.__module__ = linear.__name__
    monkeypatch.setattr(linear, "twice_forward", twice_forward, raising=False)
    monkeypatch.setattr(linear, "twice_backward", twice_backward, raising=False)
    gaps = inventory.gaps(records)
    assert gaps and all(gap.startswith("ops.twice: no check of x") for gap in gaps)


@slow
def test_a_parameter_without_a_check_is_found(records, monkeypatch):
    shapes = gpt.shapes
    monkeypatch.setattr(gpt, "shapes", lambda config: {**shapes(config), "scale": (1,)})
    gaps = inventory.gaps(records)
    assert gaps and all("no check of scale" in gap for gap in gaps)


def inputs(rng, forward, specs):
    """Return the names of the inputs that are given to an op in some cases."""
    names, given = getattr(forward, "inputs", None) or positional(forward), set()
    for spec in specs:
        xs, ws, _ = test_overrides.make(rng, spec)
        given |= {*names[: len(xs)], *ws}
    return given


def test_every_input_is_compared_with_the_op_on_each_backend(rng):
    """GPU kernels take no float64: cases of tests/backend/test_overrides.py do."""
    for (forward, _), specs in test_overrides.CASES.items():
        name = forward.__name__.removesuffix("_forward")
        needed = inventory.inventory()[f"ops.{name}"]
        without = {"x"} if getattr(forward, "inputs", ("x",))[0] != "x" else set()
        assert inputs(rng, forward, specs) == needed - without, name


def test_every_op_is_compared_with_its_overrides():
    names = {forward.__name__.removesuffix("_forward") for forward, _ in test_overrides.CASES}
    ops = {s.removeprefix("ops.") for s in inventory.inventory() if s.startswith("ops.")}
    assert names == ops


def test_every_two_values_of_options_meet_in_a_model():
    for (i, a), (j, b) in itertools.combinations(enumerate(options.FACTORS.values()), 2):
        assert {(row[i], row[j]) for row in options.ROWS} == set(itertools.product(a, b))


def test_every_option_of_a_model_is_a_factor():
    used = {name for row in options.rows().values() for name in row}
    assert {field.name for field in fields(Seq2SeqConfig)} - SIZES == used


def test_the_backends_are_compared():
    ops = [f"{TESTED[0]}/test_{m.__name__.rpartition('.')[2]}.py" for m in inventory.OPS]
    for path in (*TESTED[1:], *ops):
        assert "check_backends(" in (ROOT / path).read_text("utf-8"), path
