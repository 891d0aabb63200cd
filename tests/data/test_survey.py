"""One pass over a text: its parts, its characters, its hash, and what is odd about it."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data import sources
from minigpt.data.sources import Source, empty_note, read_parts
from minigpt.data.survey import survey
from minigpt.errors import UserError

MARK = b"\xef\xbb\xbf"
TEXTS = st.text(st.sampled_from("ab\r\n\0é漢😀\ufeff"), max_size=30)


def held(*raws):
    """Sources with these contents."""
    return [Source(f"{i}.txt", raw) for i, raw in enumerate(raws)]


@pytest.fixture(params=[3, 5, 64])
def small_parts(request, monkeypatch):
    """Read so few bytes at a time; a byte order mark fits."""
    monkeypatch.setattr(sources, "PART", request.param)


def joined(texts):
    """The text of several files, as read one by one."""
    texts = [text.removeprefix("\ufeff") for text in texts]
    texts = [text for text in texts if text]
    ended = [text if text.endswith("\n") else f"{text}\n" for text in texts[:-1]]
    return "".join([*ended, *texts[-1:]])


@pytest.mark.parametrize("size", [3, 4, 5, 64])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_parts_are_the_joined_text_in_whole_characters(size, texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PART", size)
        parts = [*read_parts(held(*(text.encode() for text in texts)))]
    assert all(raw.decode() == text for raw, text in parts)
    assert "".join(text for _, text in parts) == joined(texts)


@pytest.mark.parametrize("size", [3, 4, 7, 64])
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_survey_counts_as_if_the_text_were_whole(size, texts):
    text = joined(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PART", size)
        if not text:
            with pytest.raises(UserError, match="0.txt is empty; name a file with text in it"):
                survey(held(*(text.encode() for text in texts)))
            return
        found = survey(held(*(text.encode() for text in texts)))
    raw = text.encode()
    assert (found.size, found.length) == (len(raw), len(text))
    assert found.chars == "".join(sorted(set(text)))
    assert found.sha256 == hashlib.sha256(raw).hexdigest()
    assert (found.cr, found.crlf) == (text.count("\r"), text.count("\r\n"))
    assert found.marks == text.count("\ufeff")


@pytest.mark.parametrize("raw", [b"ab\xff", b"\xef\xbb\xbfab\xe6\xbc", "é".encode() * 9 + b"\xc3("])
def test_a_byte_that_does_not_fit_is_named_with_its_place(small_parts, raw):
    with pytest.raises(UnicodeDecodeError) as expected:
        raw.decode("utf-8")
    with pytest.raises(UserError, match="--data 0.txt is not UTF-8") as error:
        survey(held(raw))
    assert f" at offset {expected.value.start} " in str(error.value)


@pytest.mark.report("6")
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("text".encode("utf-16"), "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 old.txt > new"),
        ("text".encode("utf-32"), "is UTF-32; convert it: iconv -f UTF-32 -t UTF-8 old.txt > new"),
        (b"\xfe\xff\0t", "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 old.txt > new.txt"),
        (b"\x1f\x8b\x08\0", "is compressed by gzip; unpack it first: gunzip -k FILE"),
        (b"PK\x03\x04\x14\0\xff", "is a ZIP archive, as .docx and .xlsx files are; save its text"),
        (b"%PDF-1.5\n%\xd0\xd4", "is a PDF; take its text out of it first: pdftotext FILE.pdf"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(raw, message):
    with pytest.raises(UserError) as error:
        survey(held(raw))
    assert str(error.value).startswith(f"--data 0.txt {message}")


@pytest.mark.report("6", "23")
def test_notes_say_what_cannot_be_seen_in_an_editor():
    assert survey(held(b"a\nb\n")).notes == []
    notes = survey(held(MARK + b"a\r\nb\r\r\n", MARK + b"c", b"\0" + MARK * 2)).notes
    assert [note.split(";")[0] for note in notes] == [
        "2 lines of the text end in CR LF, and each CR is a character to learn",
        "the text has 1 CR without LF, the line ends of old Macs",
        "the text has 2 byte order marks (U+FEFF) within it, as files that were joined have",
        "the text has NUL characters",
    ]
    one = survey(held(b"a\r\n" + MARK)).notes
    assert one[0].startswith("1 line of the text ends in CR LF,")
    assert one[1].startswith("the text has 1 byte order mark (U+FEFF) within it")
    assert "tr -d '\\r' < old.txt > new.txt" in notes[0] and "tr '\\r' '\\n'" in notes[1]
    assert "iconv -f UTF-16LE -t UTF-8" in notes[3]


def test_empty_files_among_several_are_left_out_and_named():
    assert empty_note(held(b"")) == empty_note(held(b"a", b"b")) == []
    assert empty_note(held(b"", b"a")) == ["1 of 2 files is empty: 0.txt"]
    assert empty_note(held(b"", b"a", MARK, b"", b"", b"\n")) == [
        "4 of 6 files are empty: 0.txt, 2.txt, 3.txt and 1 more"
    ]
