import hashlib
import io
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from minigpt.data import corpus as source
from minigpt.data.sources import find_sources, read_parts
from minigpt.data.survey import survey
from minigpt.errors import UserError
from minigpt.locks import acquire, release

TEXT = "First Citizen:\n" * 1000
RAW = TEXT.encode()
REFERENCE = "the Python language reference"


def read(data):
    """The text that --data names."""
    return "".join(text for _, text in read_parts(find_sources(data)))


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
    assert source.builtin_source() == ("tiny Shakespeare", RAW)
    assert cache.read_bytes() == RAW
    assert capsys.readouterr().err == f"note: downloaded tiny Shakespeare to {cache}\n"
    assert source.builtin_source() == ("tiny Shakespeare", RAW)  # no answer is left: from the cache
    assert capsys.readouterr().err == ""
    assert list(cache.parent.iterdir()) == [cache]


def test_damaged_copy_is_replaced(cache, network):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(RAW[:-1])
    network += [RAW]
    assert source.builtin_source() == ("tiny Shakespeare", RAW)
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
    assert source.builtin_source() == ("tiny Shakespeare", RAW)


def test_without_network_says_so_in_one_line(cache, network, capsys):
    network += [urllib.error.URLError("no such host")] * 3
    name, raw = source.builtin_source()
    text = raw.decode()
    assert name == REFERENCE
    assert capsys.readouterr().err == (
        "note: cannot download tiny Shakespeare (no such host); using the Python language "
        "reference instead; give your own text by --data FILE\n"
    )
    assert not network and not cache.exists()
    assert text.startswith('The "assert" statement\n') and len(text) > 300_000
    assert text == source.reference_text()


def test_wrong_checksum_is_never_taken(cache, network, capsys):
    network += [b"another text"] * 3
    assert source.builtin_source().name == REFERENCE
    assert "wrong checksum" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.slow
def test_name_look_up_that_hangs_costs_2_seconds(cache, network, capsys):
    released = threading.Event()
    network += [lambda: released.wait(20)]
    start = time.monotonic()
    assert source.builtin_source().name == REFERENCE
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
    assert source.builtin_source() == ("tiny Shakespeare", RAW)


@pytest.mark.slow
def test_download_that_stalls_is_given_up(cache, network, monkeypatch, capsys):
    monkeypatch.setattr(source, "STALL", 0.3)
    network += [lambda: Slow([0, 1])] * 3
    assert source.builtin_source().name == REFERENCE
    assert "the connection stalled" in capsys.readouterr().err


def test_no_more_tries_after_the_deadline(cache, network, monkeypatch):
    monkeypatch.setattr(source, "PAUSES", (0.1, source.CONTACT))
    network += [ConnectionResetError("reset")] * 3
    assert source.builtin_source().name == REFERENCE
    assert len(network) == 1


def test_cache_that_cannot_be_written_loses_nothing(cache, network, capsys):
    cache.parent.parent.write_text("a file where the folder should be")
    network += [RAW]
    assert source.builtin_source() == ("tiny Shakespeare", RAW)
    assert f"cannot keep it in {cache}" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing_behind(cache, network, monkeypatch, capsys):
    def full(source, target):
        raise OSError(28, "No space left on device")

    network += [RAW]
    monkeypatch.setattr("minigpt.files.os.replace", full)
    assert source.builtin_source() == ("tiny Shakespeare", RAW)
    assert capsys.readouterr().err.endswith(f"cannot keep it in {cache}: No space left on device\n")
    assert not cache.parent.exists()


def test_a_process_that_holds_the_lock_for_too_long_stops_nobody(cache, network, monkeypatch):
    monkeypatch.setattr(source, "WAIT", 0.1)
    network += [RAW]
    cache.parent.mkdir(parents=True)
    lock = acquire(cache.with_suffix(".lock"))
    try:
        assert source.builtin_source() == ("tiny Shakespeare", RAW)
    finally:
        release(lock)


def test_environment_names_a_copy(cache, monkeypatch, tmp_path):
    path = tmp_path / "copy.txt"
    monkeypatch.setenv("MINIGPT_CORPUS", str(path))
    with pytest.raises(UserError, match=f"^MINIGPT_CORPUS {path} cannot be read: No such file"):
        source.builtin_source()
    path.write_bytes(RAW + b"!")
    with pytest.raises(UserError, match=f"^MINIGPT_CORPUS {path} is not tiny Shakespeare"):
        source.builtin_source()
    path.write_bytes(RAW)
    assert source.builtin_source() == ("tiny Shakespeare", RAW)


def test_tiny_shakespeare_is_read_as_it_is(corpus, monkeypatch, tmp_path):
    path = tmp_path / "input.txt"
    path.write_bytes(corpus.encode())
    monkeypatch.setenv("MINIGPT_CORPUS", str(path))
    assert source.builtin_source() == ("tiny Shakespeare", corpus.encode())
    assert len(corpus) == 1115394
    assert corpus.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "\n", "\0", "é漢😀", "a\ufeffb", " "])
def test_own_text_keeps_every_character(cache, tmp_path, text):
    path = tmp_path / "own.txt"
    path.write_bytes(text.encode())
    assert read(path) == read(str(path)) == text
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no part of the text
    assert read(path) == text


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
        survey(find_sources(path))
    assert str(error.value).startswith(f"--data {path} {message}")


def test_own_text_is_never_replaced(cache, network, monkeypatch, tmp_path):
    network += [RAW]
    monkeypatch.setenv("MINIGPT_CORPUS", str(tmp_path / "copy.txt"))
    with pytest.raises(UserError, match="is a folder, but it has no file that ends in"):
        read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        read(tmp_path / "file" / "own.txt")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read("")
    assert len(network) == 1


def test_python_without_its_reference(cache, network, monkeypatch):
    network += [OSError("no network")] * 3
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="lacks pydoc_data; give a text file by --data FILE"):
        source.builtin_source()


@pytest.fixture
def no_home(cache, monkeypatch, tmp_path):
    """A user without a home folder, in an empty folder that anything may be written to."""
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(source.os.path, "expanduser", lambda path: path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.report("4")
@pytest.mark.parametrize("named", [None, "", "rel", "~/.cache", "./rel"])
@pytest.mark.parametrize("answers", [[RAW], [OSError("no network")] * 3], ids=["text", "none"])
def test_without_a_home_nothing_is_kept(no_home, network, monkeypatch, capsys, named, answers):
    network += answers
    if named is not None:
        monkeypatch.setenv("LOCALAPPDATA" if source.os.name == "nt" else "XDG_CACHE_HOME", named)
    name = source.builtin_source().name
    assert name == ("tiny Shakespeare" if answers == [RAW] else REFERENCE)
    assert list(no_home.iterdir()) == [] and network == []
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert answers != [RAW] or line.endswith("it is not kept, as there is no home folder\n")


@pytest.mark.report("4")
def test_a_failed_download_leaves_no_folder(cache, network):
    network += [OSError("no network")] * 3
    assert source.builtin_source().name == REFERENCE
    assert not cache.parent.parent.exists()


@pytest.mark.report("4")
def test_a_folder_that_was_there_stays(cache, network):
    cache.parent.parent.mkdir()
    network += [OSError("no network")] * 3
    source.builtin_source()
    assert list(cache.parent.parent.iterdir()) == []


@pytest.mark.report("22")
@pytest.mark.skipif(source.os.name == "nt", reason="has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_copy_has_the_permissions_of_any_other_file(cache, network, umask, mode):
    network += [RAW]
    before = source.os.umask(umask)
    try:
        source.builtin_source()
    finally:
        source.os.umask(before)
    assert cache.stat().st_mode & 0o777 == mode


@pytest.mark.report("6")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda raw: b"\xef\xbb\xbf" + raw, "a byte order mark in front, and is right but for"),
        (lambda raw: raw.replace(b"\n", b"\r\n"), "CR LF at the ends of its lines, and is right"),
        (
            lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"),
            "a byte order mark in front and CR LF at the ends of its lines, and is right but for",
        ),
        (lambda raw: raw[:-1], None),
    ],
)
def test_a_copy_that_an_editor_has_changed_is_told_how(cache, monkeypatch, tmp_path, change, why):
    (tmp_path / "copy.txt").write_bytes(change(RAW))
    monkeypatch.setenv("MINIGPT_CORPUS", str(tmp_path / "copy.txt"))
    with pytest.raises(UserError, match="is not tiny Shakespeare: its SHA-256 is") as error:
        source.builtin_source()
    assert (f"it has {why}" in str(error.value)) if why else "it has" not in str(error.value)
