"""The list of seeded faults fits source and suite; `python -m tests.tools.mutation` tries them."""

import ast
import collections

import pytest

from tests.tools.mutation import CAUGHT, ROOT, SURVIVED, Fault, all_faults, is_of, judge, planted

FAULTS = all_faults()


def name(fault):
    return f"{fault.file}: {fault.name}"


def test_there_are_enough_and_their_names_are_unique():
    assert len(FAULTS) >= 100 and len({name(fault) for fault in FAULTS}) == len(FAULTS)
    assert sum(fault.device for fault in FAULTS) >= 25


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_its_place_is_there_once_and_its_change_is_one(fault):
    source = (ROOT / fault.file).read_text("utf-8")
    assert source.count(fault.old) == 1 and fault.old != fault.new
    if fault.file.endswith(".py"):
        ast.parse(source.replace(fault.old, fault.new))


def test_every_test_that_is_named_is_there():
    named = collections.defaultdict(set)
    for fault in FAULTS:
        file, _, test = fault.test.partition("::")
        named[file].add(test.partition("[")[0])
    for file, tests in named.items():
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert tests <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, file


@pytest.fixture
def small(tmp_path):
    """A package with one function and its tests."""
    (tmp_path / "f.py").write_text("def f(x):\n    return x + 1\n")
    (tmp_path / "test_f.py").write_text(
        "import pytest\nfrom f import f\n\n"
        "def test_f():\n    assert f(1) == 2\n\n"
        "@pytest.fixture\ndef two():\n    assert f(1) == 2\n    return 2\n\n"
        "def test_two(two):\n    assert two == 2\n\n"
        "def test_nothing():\n    pass\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "new, test, verdict, by",
    [
        ("x + 2", "test_f", CAUGHT, "test_f.py::test_f - assert 3 == 2"),
        ("x + 2", "test_nothing", SURVIVED, "exit code 0"),
        ("x + 2", "test_gone", SURVIVED, "exit code 4"),
        ("x + 2", "test_two", SURVIVED, "test_f.py::test_two - assert 3 == 2"),  # does not start
        ("x + y", "test_f", SURVIVED, "NameError"),
        ("x +", "test_f", SURVIVED, "test_f.py"),
    ],
)
def test_what_counts_as_caught(small, new, test, verdict, by):
    fault = Fault("", "f.py", "x + 1", new, f"test_f.py::{test}", False)
    outcome = judge(fault, small, None)
    assert outcome.verdict == verdict and by in outcome.by
    assert "x + 1" in (small / "f.py").read_text()


def test_a_stale_place_is_an_error(small):
    for old in ("x + 3", "x"):
        with (
            pytest.raises(ValueError, match="not once"),
            planted(Fault("", "f.py", old, "", "", False), small),
        ):
            pass


def test_a_line_of_the_summary_is_of_its_test():
    test = "tests/a.py::test_b"
    assert all(is_of(test + rest, test) for rest in ("", "[1-2]", " - assert 0"))
    assert not is_of(test + "c", test) and not is_of("tests/a.py::test", test)
