"""Mutation testing: the list fits source and suite, and what counts as caught."""

import re

import pytest

from tests.tools import mutation
from tests.tools.fragments import Stale, locate, replace
from tests.tools.mutation import CAUGHT, SURVIVED, Mutant, all_mutants, is_of, judge, why_stale

MUTANTS = all_mutants()


def test_there_are_enough_and_no_two_are_alike():
    assert len(MUTANTS) >= 235 and sum(mutant.gpu for mutant in MUTANTS) >= 44
    assert len({(mutant.place, mutant.name) for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.old != mutant.new for mutant in MUTANTS)


def test_every_mutant_fits_source_and_suite():
    stale = [f"{mutant.name}: {why}" for mutant in MUTANTS if (why := why_stale(mutant))]
    assert stale == []


def test_the_readmes_count_them():
    text = (mutation.ROOT / "tests" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `minigpt[\w/]*` \| \d+ \|$", text, re.MULTILINE)
    assert rows == mutation.folder_table(MUTANTS), "its table is that of --list"
    assert f"All {len(MUTANTS)} are caught" in text
    front_page = (mutation.ROOT / "README.md").read_text("utf-8")
    assert f"{len(MUTANTS)} bugs are planted" in front_page


@pytest.fixture
def small(tmp_path):
    """A package with one function and its tests."""
    option = 'parser.addoption("--slow", action="store_true")'
    (tmp_path / "conftest.py").write_text(f"def pytest_addoption(parser):\n    {option}\n")
    (tmp_path / "f.py").write_text("def f(x):\n    return x + 1\n")
    (tmp_path / "test_f.py").write_text(
        "import pytest\nfrom f import f\n\n"
        "def test_f():\n    assert f(1) == 2\n\n"
        "@pytest.fixture\ndef two():\n    assert f(1) == 2\n    return 2\n\n"
        "def test_two(two):\n    assert two == 2\n\n"
        "def test_nothing():\n    pass\n"
    )
    return tmp_path


@pytest.mark.slow
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
    mutant = Mutant("", "f.py::f", "x + 1", new, f"test_f.py::{test}", False)
    outcome = judge(mutant, small, None)
    assert outcome.verdict == verdict and by in outcome.by
    assert "x + 1" in (small / "f.py").read_text()


@pytest.mark.parametrize(
    "place, old, new, test, why",
    [
        (".::f", "x+1", "x + 2", "test_f", None),
        (".::g", "x + 1", "x + 2", "test_f", ".::g: 0 definitions, not one"),
        ("f.py::f", "x + 3", "x + 2", "test_f", "f.py::f: 0 times 'x + 3', not once"),
        ("f.py::f", "x", "y", "test_f", "f.py::f: 2 times 'x', not once"),
        ("f.py::f", "x + 1", "x +", "test_f", "invalid syntax"),
        ("f.py::f", "x + 1", "x + 2", "test_g[1]", "no test test_f.py::test_g[1]"),
    ],
)
def test_what_is_stale(small, place, old, new, test, why):
    found = why_stale(Mutant("", place, old, new, f"test_f.py::{test}", False), small)
    assert found == why or why == "invalid syntax" in found


PYTHON = '''
SMALL, LARGE = 1e-5, 1e5


class A:
    """x + 1"""

    @property
    def f(self):
        return self.x + 1  # x + 1


def f(x):
    """x + 1"""
    y = g(
        "x + 1",
        (x + 1),  # x + 1
    )
    return y // 2
'''
CUDA = """
struct alignas(16) A {  // f(x) { x + 1 }
  int f;
  __device__ int at(int x) const { return f > x + 1; }
};

__device__ int f(int x) { return x + 1; }

#define G(D) extern "C" void g_##D() { f(D); }
G(32)
"""


@pytest.mark.parametrize(
    "place, old, line",
    [
        ("p.py::f", "x + 1", "        (NEW),  # x + 1"),
        ("p.py::f", "g('x + 1', (x + 1))", "    y = NEW"),
        ("p.py::f", "// 2", "    return y NEW"),
        ("p.py::A.f", "x+1", "        return self.NEW  # x + 1"),
        ("p.py::LARGE", "1e5", "SMALL, LARGE = 1e-5, NEW"),
        ("c.cu::f", "x + 1", "__device__ int f(int x) { return NEW; }"),
        ("c.cu::at", "x + 1", "  __device__ int at(int x) const { return f > NEW; }"),
        ("c.cu::A", "int f;", "  NEW"),
        (".::A.f", "x + 1", "        return self.NEW  # x + 1"),
    ],
)
def test_a_fragment_is_found_in_its_function_only(tmp_path, place, old, line):
    (tmp_path / "p.py").write_text(PYTHON)
    (tmp_path / "c.cu").write_text(CUDA)
    file, source = replace(tmp_path, place, old, "NEW")
    before, after = (text.splitlines() for text in (file.read_text(), source))
    assert line in after and sum("NEW" in x for x in after) == 1
    kept = [x for x in after if "NEW" not in x]
    assert kept == [x for x in before if x in kept]


def test_a_name_that_is_defined_twice_is_stale(tmp_path):
    (tmp_path / "p.py").write_text(PYTHON)
    (tmp_path / "c.cu").write_text(CUDA)
    for place in (".::f", ".::A", "c.cu::g_", "p.py::g"):
        with pytest.raises(Stale, match="not one"):
            locate(tmp_path, place)


def test_a_line_of_the_summary_is_of_its_test():
    test = "tests/a.py::test_b"
    assert all(is_of(test + rest, test) for rest in ("", "[1-2]", " - assert 0"))
    assert not is_of(test + "c", test) and not is_of("tests/a.py::test", test)


def test_the_command_lists_counts_and_finds_what_is_stale(monkeypatch, capsys):
    good, stale = MUTANTS[0], MUTANTS[1]._replace(old="gone", name="lost")
    monkeypatch.setattr(mutation, "all_mutants", lambda: [good, stale])
    assert mutation.main(["--list"]) == 0
    assert f"{good.place}: {good.name}" in (out := capsys.readouterr().out)
    assert f"| `{good.folder}` | 2 |\nAll 2\n" in out
    assert mutation.main(["--stale"]) == 1
    assert "lost: " in (out := capsys.readouterr().out) and "1 of 2 are stale" in out
    assert mutation.main(["--stale", good.name]) == 0
