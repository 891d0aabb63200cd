"""The script that draws charts, kept in the user's cache folder."""

import sys
from types import SimpleNamespace

import pytest

from minigpt.report import vega
from minigpt.report.vega import LICENCE, library


@pytest.fixture
def stub(monkeypatch):
    """A library in the place of vl-convert that counts the scripts that it makes."""
    made = SimpleNamespace(__version__="1.2", count=0, __spec__=1)

    def bundle():
        made.count += 1
        return "/* vegà\r\n */"

    made.javascript_bundle = bundle
    monkeypatch.setitem(sys.modules, "vl_convert", made)
    yield made
    library.cache_clear()


def script():
    """What a new process gets."""
    library.cache_clear()
    return library()


def test_the_script_is_made_once_and_anew_if_its_file_is_damaged(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(vega, "cache_folder", lambda: tmp_path / "cache")
    expected = LICENCE + "/* vegà\r\n */"
    assert script() == script() == expected and stub.count == 1
    file = tmp_path / "cache" / "vega-1.2.js"
    for damage in (file.read_bytes()[:-1], b"\xff", b""):
        file.write_bytes(damage)
        count = stub.count
        assert script() == script() == expected and stub.count == count + 1
    stub.__version__ = "1.3"  # another version makes its own, and that of the old one goes
    assert script() == expected and stub.count == 5
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["vega-1.3.js"]


def test_without_a_place_to_keep_it_the_script_is_made_each_time(stub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file"):
        monkeypatch.setattr(vega, "cache_folder", lambda folder=folder: folder)
        stub.count = 0
        assert script() == script() and stub.count == 2
