"""Processes that want the same text at the same time."""

import pytest

from tests.tools.faults.long import trained
from tests.tools.serving import side_by_side


@pytest.mark.slow
def test_many_processes_download_once_and_train_on_the_same_text(tmp_path):
    assert trained(tmp_path) is None


@pytest.mark.slow
def test_who_has_waited_in_vain_downloads_at_once(tmp_path):
    program = """if True:
        import os, pathlib, sys, time
        from minigpt.data import corpus
        folder = pathlib.Path(os.environ["XDG_CACHE_HOME"])
        (folder / f"{sys.argv[1]}.ready").touch()
        while len([*folder.glob("*.ready")]) < 8:  # all begin at the same time
            time.sleep(0.01)
        corpus.PAUSES = ()
        def fail(patience):
            time.sleep(0.5)
            raise ConnectionError("no network")
        corpus._fetch = fail
        start = time.monotonic()
        assert corpus.builtin_source().name == corpus.REFERENCE
        assert time.monotonic() - start < 3
    """
    (tmp_path / "minigpt").mkdir()  # or it would go with the first lock, and nobody wait for more
    said = side_by_side(program, tmp_path, 8)
    begin = "note: cannot download tiny Shakespeare (no network)"
    assert all(line.startswith(begin) for line in said)
