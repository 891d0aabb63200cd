import hashlib
import io
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from minigpt.data import corpus as source
from minigpt.errors import UserError
from minigpt.locks import acquire, release

TEXT = "First Citizen:\n" * 1000
RAW = TEXT.encode()
REFERENCE = "the Python language reference"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A user without a corpus, to whom TEXT is tiny Shakespeare; the path of the cached copy."""
    monkeypatch.delenv("MINIGPT_CORPUS", raising=False)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr(source, "SHA256", hashlib.sha256(RAW).hexdigest())
    monkeypatch.setattr(source, "PAUSES", (0.0, 0.0))
    return tmp_path / "cache" / "minigpt" / "tinyshakespeare.txt"


@pytest.fixture
def network(monkeypatch):
    """What the network answers, try by try: bytes, an exception or a function to call."""
    answers = []

    def urlopen(url, timeout):
        assert url == source.URL and timeout <= 10
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer) if isinstance(answer, bytes) else answer()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return answers


def test_first_use_downloads_and_keeps_a_copy(cache, network, capsys):
    network += [RAW]
    assert source.load_text() == (TEXT, "tiny Shakespeare")
    assert cache.read_bytes() == RAW
    assert capsys.readouterr().err == f"downloaded tiny Shakespeare to {cache}\n"
    assert source.load_text() == (TEXT, "tiny Shakespeare")  # no answer is left: from the cache
    assert capsys.readouterr().err == ""
    assert list(cache.parent.iterdir()) == [cache]


def test_damaged_copy_is_replaced(cache, network):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(RAW[:-1])
    network += [RAW]
    assert source.load_text() == (TEXT, "tiny Shakespeare")
    assert cache.read_bytes() == RAW


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("reset"),
        ConnectionResetError("reset"),
        TimeoutError("slow"),
        ValueError("a proxy's nonsense"),
        RAW[:-1],
        b"<html>Please log in</html>",
    ],
)
def test_tries_again_after_a_failure(cache, network, failure):
    network += [failure, failure, RAW]
    assert source.load_text() == (TEXT, "tiny Shakespeare")


def test_without_network_says_so_in_one_line(cache, network, capsys):
    network += [urllib.error.URLError("no such host")] * 3
    text, name = source.load_text()
    assert name == REFERENCE
    assert capsys.readouterr().err == (
        "cannot download tiny Shakespeare (no such host); using the Python language reference "
        "instead; give your own text by --data FILE\n"
    )
    assert not network and not cache.exists()
    assert text.startswith('The "assert" statement\n') and len(text) > 300_000
    assert text == source.reference_text()


def test_wrong_checksum_is_never_taken(cache, network, capsys):
    network += [b"another text"] * 3
    assert source.load_text()[1] == REFERENCE
    assert "wrong checksum" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.slow
def test_name_look_up_that_hangs_costs_2_seconds(cache, network, capsys):
    released = threading.Event()
    network += [lambda: released.wait(20)]
    start = time.monotonic()
    assert source.load_text()[1] == REFERENCE
    assert 1.9 < time.monotonic() - start < 3
    assert "(no answer)" in capsys.readouterr().err
    released.set()


class Slow(io.BytesIO):
    """A response that gives its bytes in parts, each after some seconds."""

    def __init__(self, delays):
        super().__init__(RAW)
        self.delays = iter(delays)

    def read(self, size):
        time.sleep(next(self.delays, 0))
        return super().read(size)


@pytest.mark.slow
def test_slow_download_that_goes_on_may_finish(cache, network, monkeypatch):
    monkeypatch.setattr(source, "CONTACT", 0.5)
    network += [lambda: Slow([0.7, 0.2])]
    assert source.load_text() == (TEXT, "tiny Shakespeare")


@pytest.mark.slow
def test_download_that_stalls_is_given_up(cache, network, monkeypatch, capsys):
    monkeypatch.setattr(source, "STALL", 0.3)
    network += [lambda: Slow([0, 1])] * 3
    assert source.load_text()[1] == REFERENCE
    assert "the connection stalled" in capsys.readouterr().err


def test_no_more_tries_after_the_deadline(cache, network, monkeypatch):
    monkeypatch.setattr(source, "PAUSES", (0.1, source.CONTACT))
    network += [ConnectionResetError("reset")] * 3
    assert source.load_text()[1] == REFERENCE
    assert len(network) == 1


def test_cache_that_cannot_be_written_loses_nothing(cache, network, capsys):
    cache.parent.parent.write_text("a file where the folder should be")
    network += [RAW]
    assert source.load_text() == (TEXT, "tiny Shakespeare")
    assert f"cannot keep it in {cache}" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing_behind(cache, network, monkeypatch, capsys):
    def full(source, target):
        raise OSError(28, "No space left on device")

    network += [RAW]
    monkeypatch.setattr("minigpt.files.os.replace", full)
    assert source.load_text() == (TEXT, "tiny Shakespeare")
    assert capsys.readouterr().err.endswith(f"cannot keep it in {cache}: No space left on device\n")
    assert not cache.parent.exists()


def test_a_process_that_holds_the_lock_for_too_long_stops_nobody(cache, network, monkeypatch):
    monkeypatch.setattr(source, "WAIT", 0.1)
    network += [RAW]
    cache.parent.mkdir(parents=True)
    lock = acquire(cache.with_suffix(".lock"))
    try:
        assert source.load_text() == (TEXT, "tiny Shakespeare")
    finally:
        release(lock)


def test_environment_names_a_copy(cache, monkeypatch, tmp_path):
    path = tmp_path / "copy.txt"
    monkeypatch.setenv("MINIGPT_CORPUS", str(path))
    with pytest.raises(UserError, match=f"^MINIGPT_CORPUS {path} cannot be read: No such file"):
        source.load_text()
    path.write_bytes(RAW + b"!")
    with pytest.raises(UserError, match=f"^MINIGPT_CORPUS {path} is not tiny Shakespeare"):
        source.load_text()
    path.write_bytes(RAW)
    assert source.load_text() == (TEXT, "tiny Shakespeare")


def test_tiny_shakespeare_is_read_as_it_is(corpus, monkeypatch, tmp_path):
    path = tmp_path / "input.txt"
    path.write_bytes(corpus.encode())
    monkeypatch.setenv("MINIGPT_CORPUS", str(path))
    assert source.load_text() == (corpus, "tiny Shakespeare")
    assert len(corpus) == 1115394
    assert corpus.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "\n", "\0", "é漢😀", "a\ufeffb", " "])
def test_own_text_keeps_every_character(cache, tmp_path, text):
    path = tmp_path / "own.txt"
    path.write_bytes(text.encode())
    assert source.load_text(path) == source.load_text(str(path)) == (text, str(path))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no part of the text
    assert source.load_text(path)[0] == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "cannot be read: No such file or directory; name a text file"),
        (b"", "is empty; name a file with text in it"),
        (b"\xef\xbb\xbf", "is empty; name a file with text in it"),
        (b"caf\xe9 noir", "is not UTF-8: byte 0xe9 at offset 3"),
        (b"\xef\xbb\xbfab\xff", "is not UTF-8: byte 0xff at offset 5"),
        (
            "text".encode("utf-16"),
            "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 old.txt > new.txt",
        ),
        (b"cut short \xe6\xbc", "is not UTF-8: byte 0xe6 at offset 10"),
    ],
)
def test_own_text_that_cannot_be_used(cache, tmp_path, raw, message):
    path = tmp_path / "own.txt"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError) as error:
        source.load_text(path)
    assert str(error.value).startswith(f"--data {path} {message}")


def test_own_text_is_never_replaced(cache, network, monkeypatch, tmp_path):
    network += [RAW]
    monkeypatch.setenv("MINIGPT_CORPUS", str(tmp_path / "copy.txt"))
    with pytest.raises(UserError, match="is a folder, but it has no file that ends in"):
        source.load_text(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        source.load_text(tmp_path / "file" / "own.txt")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        source.load_text("")
    assert len(network) == 1


def test_python_without_its_reference(cache, network, monkeypatch):
    network += [OSError("no network")] * 3
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="lacks pydoc_data; give a text file by --data FILE"):
        source.load_text()
