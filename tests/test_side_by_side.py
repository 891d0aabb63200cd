"""Processes that want the same text at the same time."""

import hashlib

from minigpt.checkpoint import load
from minigpt.folder import LAST
from tests.serving import served, side_by_side

RAW = b"First Citizen:\n" * 1000


def test_many_processes_download_once_and_train_on_the_same_text(tmp_path):
    with served(RAW) as (url, came):
        program = f"""if True:
            import sys
            sys.modules["matplotlib.figure"] = None
            from minigpt import cli, corpus, train
            corpus.URL, corpus.CONTACT = {url!r}, 60.0
            corpus.SHA256 = {hashlib.sha256(RAW).hexdigest()!r}
            model = ["--n-layer=1", "--n-head=1", "--n-embd=4", "--block-size=8", "--batch-size=2"]
            out = "--out-dir={tmp_path}/" + sys.argv[1]
            cli.run(lambda: train.main([out, *model, "--max-iters=2", "--threads=1"]))
        """
        said = side_by_side(program, tmp_path / "cache", 8)
    assert came == ["/input.txt"]
    kept = tmp_path / "cache" / "minigpt" / "tinyshakespeare.txt"
    assert sorted(said) == [""] * 7 + [f"downloaded tiny Shakespeare to {kept}\n"]
    assert kept.read_bytes() == RAW and list(kept.parent.iterdir()) == [kept]
    for i in range(8):
        state = load(tmp_path / str(i) / LAST).state
        assert state["text_sha256"] == hashlib.sha256(RAW).hexdigest() and state["step"] == 2


def test_who_has_waited_in_vain_downloads_at_the_same_time_as_the_others(tmp_path):
    program = """if True:
        import os, time
        from minigpt import corpus
        corpus.PAUSES = ()
        def fail(patience):
            time.sleep(0.5)
            raise ConnectionError("no network")
        corpus._fetch = fail
        start = time.monotonic()
        assert corpus.load_text()[1] == corpus.REFERENCE
        assert time.monotonic() - start < 3
    """
    said = side_by_side(program, tmp_path, 8)
    assert all(line.startswith("cannot download tiny Shakespeare (no network)") for line in said)
