import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.datasets import PairData
from minigpt.data.pair_files import FORMATS, parse_pairs, read_files, read_pairs
from minigpt.data.pairs import digest
from minigpt.errors import UserError

TWO = [("un chat", "a cat"), ("à côté", "beside")]


def write(path, raw):
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return path


def pairs_in(path):
    """The pairs of a file without a bad line."""
    pairs, notes, name = read_pairs(path)
    assert name == str(path) and not notes
    return pairs


def test_a_table_of_lines(tmp_path):
    raw = "\ufeffun chat\ta cat\r\nà côté\tbeside\nx y z\t1 2".encode()
    expected = [*TWO, ("x y z", "1 2")]
    assert pairs_in(write(tmp_path / "p.tsv", raw)) == expected
    assert pairs_in(write(tmp_path / "p.tsv", raw + b"\n")) == expected
    separators = "a\u2028b\tc\x0bd\n".encode()  # no ends of lines
    assert pairs_in(write(tmp_path / "p.tsv", separators)) == [("a\u2028b", "c\x0bd")]
    inside = b"a\rb\tc\n d\t e \r\n"  # a CR ends lines only where no LF does
    assert pairs_in(write(tmp_path / "p.tsv", inside)) == [("a\rb", "c"), (" d", " e ")]


@pytest.mark.report("23")
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name, between", [("p.tsv", "\t"), ("p.csv", ","), ("p.jsonl", '", "')])
def test_lines_end_as_on_any_system(end, last, name, between):
    lines = [f"{source}{between}{target}" for source, target in TWO]
    lines = [f'["{line}"]' if name == "p.jsonl" else line for line in lines]
    found = parse_pairs(end.join([*lines, ""] if last else lines), name)
    assert found == (TWO, [1, 2], [], 0, 0)


def test_a_spreadsheet(tmp_path):
    raw = (
        '\ufeffid,Source,Target,remark\r\n1,"a, ""quoted"" one","b\r\nc",\r\n'
        '2,"two\nlines",d,"yes, no"\r\n,,,\r\n'
    )
    pairs, notes, _ = read_pairs(write(tmp_path / "p.csv", raw))
    assert pairs == [('a, "quoted" one', "b\r\nc"), ("two\nlines", "d")]
    assert notes == ["left out: 1 blank line", "left out: 1 header"]
    assert parse_pairs(raw, "p.csv").lines == [2, 4]


@pytest.mark.parametrize(
    "text",
    [
        'a;b\n"x, y";c\n',
        '"a";b\nx, y;c\n',
        '\na\tb\n"x, y"\tc\n',
        'source;target\n"a";b\n"x, y";c\n',
        '"target","source"\n"b","a"\n"c","x, y"\n',
        '"a",b\n"x, y",c\n',
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_commas_semicolons_or_tabs_part_columns_as_the_first_line_has_it(text, end):
    found = parse_pairs(text.replace("\n", end), "p.csv")
    assert found.pairs == [("a", "b"), ("x, y", "c")] and not found.bad


@pytest.mark.report("11")
def test_blanks_after_commas_count_nowhere_if_the_header_has_them():
    rows = ' "a1", z1\n"b, c",  "z,\n 2"\n d ,e\n , \n'
    for header in ("source, target\n", '"source", "target"\n', "\nSource,  Target \n"):
        found = parse_pairs(header + rows, "p.csv")
        assert found.pairs == [("a1", "z1"), ("b, c", "z,\n 2"), ("d ", "e")]
        assert (found.headers, found.bad) == (1, [])
        assert found.blank == 1 + header.startswith("\n")
    found = parse_pairs("target; n; source\n1; 2; 3\n", "p.csv")
    assert found.pairs == [("3", "1")]
    for header in ("source,target\n", " source,target \n", "a, b\n"):
        assert parse_pairs(header + "c, d\n", "p.csv").pairs[-1] == ("c", " d")


@pytest.mark.report("11")
def test_a_spreadsheet_without_a_header_is_noted(tmp_path):
    path = write(tmp_path / "p.CSV", "a,b\nc,d\n")
    notes = [f"{path}: no header; its first line is taken for a pair"]
    assert read_pairs(path) == ([("a", "b"), ("c", "d")], notes, str(path))
    other = write(tmp_path / "q.csv", "question,answered\n")
    write(tmp_path / "r.csv", "question,answer\ne,f\n")
    write(tmp_path / "s.tsv", "a\tb\n")
    assert read_pairs(tmp_path)[1] == [
        "left out: 1 header",
        f"{path}, {other}: no header; their first lines are taken for pairs",
    ]


@pytest.mark.report("11")
def test_a_field_may_be_of_any_length():
    limit = csv.field_size_limit(100)  # as if another had set it
    long = "x, \n" * 50_000
    try:
        for between in ",;":
            text = f'source{between}target\n"{long}"{between}"{long}"\n'
            assert parse_pairs(text, "p.csv") == ([(long, long)], [2], [], 0, 1)
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize("keys", ["source target", "src tgt", "input output", "prompt completion"])
@pytest.mark.parametrize("order", [1, -1])
def test_sides_have_the_names_that_people_give_them(keys, order):
    keys = keys.split()
    records = [dict([*zip(keys, pair, strict=True)][::order]) for pair in TWO]
    lines = [json.dumps({"id": 7, **record, "x": [1]}) for record in records]
    assert parse_pairs("\n".join(lines), "a/P.JSONL").pairs == TWO
    assert parse_pairs(json.dumps(records, indent=2), "p.json").pairs == TWO
    for name, between in (("p.csv", ","), ("p.tsv", "\t")):
        rows = [between.join(records[0]), *(between.join(record.values()) for record in records)]
        found = parse_pairs("\n".join(rows), name)
        assert found.pairs == TWO and found.headers == 1
        if order == 1:
            rows[0] = rows[0].upper()
            assert parse_pairs("\n".join(rows), name) == found


def test_a_header_is_a_first_line_that_names_both_sides():
    assert parse_pairs("source\tother\nsource\ttarget\n", "p.tsv").headers == 0
    found = parse_pairs("source\ttarget\na\tb\nsource\ttarget\n", "p.tsv")
    assert found.pairs == [("a", "b"), ("source", "target")]
    assert parse_pairs("source\ttarget\na\tb\n", "p.tsv", header=False).headers == 0
    assert parse_pairs("source,target\na,b\n", "p.csv", header=False).headers == 1


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\nc,d\te\n",
        "a,b\n",
        '{"src": "a", "tgt": "b"}\n',
        '\n["a", "b"]\n',
        "[1]\tb\n",
        "x y\n",
    ],
)
def test_a_pipe_is_what_its_first_line_looks_like(text):
    name = {"\t": "p.tsv", "a": "p.csv", "x": "p.tsv"}
    name = name["\t" if "\t" in text else text[0]] if text[0] in "a[x" else "p.jsonl"
    assert parse_pairs(text) == parse_pairs(text, name) == parse_pairs(text, "/dev/fd/63")


@pytest.mark.report("11")
@pytest.mark.parametrize(
    "name, text",
    [
        ("p.tsv", "\na\tb\n\n  \n\t\nc\td\n"),
        ("p.csv", '\na,b\n\n  \n,\nc,"d"\n'),
        ("p.jsonl", '\n["a", "b"]\n\n  \n\t\n{"source": "c", "target": "d"}\n'),
    ],
)
def test_blank_lines_are_left_out_and_counted(name, text):
    found = parse_pairs(text, name)
    assert found == ([("a", "b"), ("c", "d")], [2, 6], [], 4, 0)


@pytest.mark.report("11")
@pytest.mark.parametrize(
    "name, text, told",
    [
        ("p.tsv", "a\tb\nc d\n", "line 2 has 0 TABs, but needs exactly one: source TAB target"),
        ("p.tsv", "a\tb\nc\td\te\n", "line 2 has 2 TABs"),
        ("p.tsv", "a\tb\n\n\td\n", "line 3 has an empty source"),
        ("p.tsv", "a\t\r\n", "line 1 has an empty target"),
        ("p.tsv", "source\ttarget\tn\na\tb\n", "line 2 has 1 TAB, but needs 2, as the header"),
        ("p.csv", "a\n", "line 1 has 1 column, but needs two: source,target"),
        ("p.csv", "a,b\na,b,c\n", "line 2 has 3 columns"),
        ("p.csv", "target,n,source\na,b\n", "line 2 has 2 columns, but needs 3, as the header"),
        ("p.csv", 'a,"b\nc"\n"d"e,f\n', "line 3 is not CSV: "),
        ("p.csv", 'a,"b\nc\n', "line 1 is not CSV: unexpected end of data"),
        ("p.jsonl", '["a", "b"]\n["a", "b"\n', "line 2 is not JSON: "),
        ("p.jsonl", '["a", "b", "c"]\n', "line 1 needs the keys source/target or src/tgt or "),
        ("p.jsonl", '{"source": "a", "tgt": "b"}\n', "line 1 needs the keys"),
        ("p.jsonl", '"ab"\n', "line 1 needs the keys"),
        (
            "p.jsonl",
            '{"source": "a", "target": 7}\n',
            "line 1 has the target 7, which is no string",
        ),
        ("p.jsonl", '{"source": null, "target": "b"}\n', "line 1 has the source None"),
        ("p.jsonl", '["a", ""]\n', "line 1 has an empty target"),
        (
            "p.jsonl",
            '["a", "b\\ud83d\\ude00"]\n["a\\ud800", "b"]\n',
            r"line 2 has '\ud800' in its source, half of a surrogate pair, which is no character",
        ),
        ("p.json", '[{"src": "a", "tgt": "\\udfff."}]', r"item 1 has '\udfff' in its target"),
        ("p.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON: "),
        ("p.json", '[["a", "b"], ["c"]]', "item 2 needs the keys"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, text, told):
    path = write(tmp_path / name, text)
    with pytest.raises(UserError) as error:
        pairs_in(path)
    assert str(error.value).startswith(f"--data {path}, {told}")
    assert "\n" not in str(error.value)


@pytest.mark.report("11")
def test_many_bad_lines_are_counted(tmp_path):
    path = write(tmp_path / "p.tsv", "a\tb\nc d\n\n" * 3 + "e\n")
    with pytest.raises(UserError, match=r"line 2 has 0 TABs.*target \(4 of 7 lines are no pairs\)"):
        PairData(str(path))


@pytest.mark.parametrize(
    "raw, told",
    [(b"a\tb\xe9\n", "p.tsv is not UTF-8: byte 0xe9 at offset 3"), (b"", "p.tsv is empty")]
    + [(b"\n \n", "p.tsv is empty")],
)
def test_a_file_without_pairs(tmp_path, raw, told):
    with pytest.raises(UserError, match=told):
        read_pairs(write(tmp_path / "p.tsv", raw))
    with pytest.raises(UserError, match="none.tsv cannot be read: No such file"):
        read_pairs(tmp_path / "none.tsv")


def test_several_files_are_read_one_after_the_other(tmp_path):
    one = write(tmp_path / "a.csv", "source,target\na,b\n\n")
    two = write(tmp_path / "b.jsonl", '["c", "d"]\n')
    write(tmp_path / "c.png", "no pairs")
    for data in (f"{one}\n{two}", tmp_path, f"{tmp_path}/*.[cj]s*"):
        notes = ["left out: 1 blank line", "left out: 1 header"]
        assert read_pairs(data) == ([("a", "b"), ("c", "d")], notes, f"2 files: {one}, {two}")
    write(two, '["c"]\n')
    with pytest.raises(UserError) as error:
        read_pairs(tmp_path)
    assert str(error.value).startswith(f"--data {two}, line 1 needs the keys")
    (_, good), (where, bad) = read_files(tmp_path)[0]
    assert (good.lines, good.bad, where, len(bad.bad)) == ([2], [], f"--data {two}", 1)


def test_a_file_of_before_has_the_pairs_and_the_digest_of_before(tmp_path):
    rows = [(f"{i:03d}", f"{i * 7 % 1000}") for i in range(30)]
    path = write(tmp_path / "p.tsv", "source\ttarget\n" + "".join(map("%s\t%s\r\n".__mod__, rows)))
    rows = [("source", "target"), *rows]
    data = PairData(str(path), split="position")
    assert data.val_pairs == rows[9::10]
    assert data.sha256 == digest([row for i, row in enumerate(rows, 1) if i % 10] + rows[9::10])


side = st.text(min_size=1, max_size=8) | st.text('ab,;"\t\r\n {[', min_size=1, max_size=8)
pairs = st.lists(st.tuples(side, side), max_size=6)


@given(pairs)
def test_what_is_written_as_csv_or_json_comes_back(pairs):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("source", "target"), *pairs])
    found = parse_pairs(file.getvalue(), "p.csv")
    assert (found.pairs, found.bad, found.headers) == (pairs, [], 1)
    records = [{"target": target, "source": source} for source, target in pairs]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    for text, name in ((lines, "p.jsonl"), (json.dumps(records), "p.json"), (lines, "p.json")):
        assert parse_pairs(text, name).pairs == pairs


@given(st.text() | st.text("ab\"',;\t\r\n {}[]:1"), st.sampled_from(("", *FORMATS)))
def test_every_line_of_any_text_is_a_pair_or_bad_or_left_out(text, ending):
    found = parse_pairs(text, f"p{ending}")
    assert all(source and target for source, target in found.pairs)
    assert len(found.lines) == len(found.pairs)
    numbers = [*found.lines, *(number for number, _ in found.bad)]
    assert len(set(numbers)) == len(numbers)
    assert not any("\n" in what for _, what in found.bad)
