"""Pictures: a matplotlib that is missing, broken or set up for a notebook; names of files."""

import os
import subprocess
import sys

import pytest

from minigpt.errors import UserError
from minigpt.report import picture
from minigpt.report.picture import NoPicture, check_picture, drawing
from tests.tools import training

NOTEBOOK = "module://matplotlib_inline.backend_inline"
BROKEN = 'raise AttributeError("_ARRAY_API not found")'


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A matplotlib that fails in an unusual way when it is imported."""
    (tmp_path / "broken" / "matplotlib").mkdir(parents=True)
    (tmp_path / "broken" / "matplotlib" / "__init__.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path / "broken")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.report("2")
def test_a_broken_matplotlib_costs_a_run_its_picture_only(tmp_path, capsys, broken):
    assert training.begin(tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert "note: no picture: AttributeError: _ARRAY_API not found\n" in err
    assert "a sample" in out and "more: " in out and "picture" not in out


@pytest.mark.report("2")
@pytest.mark.parametrize("backend", ["nonsense", NOTEBOOK])
def test_mplbackend_of_a_notebook_does_not_matter(tmp_path, backend):
    pytest.importorskip("matplotlib")
    code = (
        "import os; from minigpt.report.picture import drawing\n"
        "with drawing() as Figure: Figure().savefig('a.png')\n"
        "print(os.environ['MPLBACKEND'])"
    )
    env = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{backend}\n", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.report("2")
@pytest.mark.parametrize(
    "error, why",
    [
        (RuntimeError("no\nfonts"), "RuntimeError: no fonts"),
        (OSError(28, "No space left on device", "a.png"), "a.png: No space left on device"),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "ModuleNotFoundError: No mod"),
        (ModuleNotFoundError(name="matplotlib.figure"), "matplotlib is not installed: pip install"),
    ],
)
def test_whatever_fails_is_one_line(monkeypatch, error, why):
    def load():
        raise error

    monkeypatch.setattr(picture, "import_figure", load)
    with pytest.raises(NoPicture) as found, drawing():
        pass
    assert str(found.value).startswith(why) and "\n" not in str(found.value)


def test_what_fails_while_drawing_is_told_and_an_interrupt_passes(monkeypatch):
    monkeypatch.setattr(picture, "import_figure", lambda: dict)
    with pytest.raises(NoPicture, match="^ZeroDivisionError: division by zero$"), drawing():
        raise ZeroDivisionError("division by zero")
    with pytest.raises(KeyboardInterrupt), drawing():
        raise KeyboardInterrupt


@pytest.mark.report("31")
@pytest.mark.parametrize(
    "name, message",
    [
        ("", "--picture is ''; it must be a file that ends in .png, .svg or .pdf"),
        ("map", "--picture is 'map'; it must"),
        ("map.gif", "--picture is 'map.gif'; it must"),
        (".png", "--picture is '.png'; it must"),
        ("no/map.png", "--picture no/map.png: there is no folder no; make it first"),
        ("folder.svg", "--picture folder.svg is a folder; name a file"),
    ],
)
def test_a_name_that_no_picture_can_have(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UserError) as error:
        check_picture(name)
    assert str(error.value).startswith(message)


@pytest.mark.report("31")
@pytest.mark.parametrize("name", ["map.png", "map.SVG", "folder/map.pdf", "a.b.png"])
def test_a_name_that_a_picture_can_have(tmp_path, monkeypatch, name):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    check_picture(name)
    assert list(tmp_path.rglob("*.*")) == []
