"""Pairs as people have them, from the command line: their split, their measures, their faults."""

import random
import sys

import pytest

import minigpt
from minigpt import __main__ as program
from minigpt.data.datasets import PairData
from minigpt.data.pairs import split_by_source
from minigpt.errors import UserError
from minigpt.files import LAST
from minigpt.model.checkpoint import load
from minigpt.train import __main__ as train
from minigpt.train.begin import new_run
from minigpt.train.options import options
from minigpt.train.resume import resume_run
from minigpt.train.state import RunState
from tests.tools.training import metrics, refusal

pytestmark = pytest.mark.usefixtures("no_picture")

FLAGS = (
    *("--task=seq2seq", "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=16"),
    *("--batch-size=8", "--threads=1", "--gradient-accumulation-steps=1", "--max-iters=4"),
    *("--warmup-iters=2", "--eval-interval=4"),
)


@pytest.fixture
def begin(tmp_path, capsys):
    """Train on rows of pairs; return what is printed, and the data of the run."""

    def run(rows, *flags, name="p.tsv", between="\t"):
        text = "".join(f"{between.join(row)}\n" for row in rows)
        (tmp_path / name).write_text(text)
        where = f"--data={tmp_path / name}", f"--out-dir={tmp_path / 'run'}"
        assert train.main([*where, *FLAGS, "--overwrite", *flags]) == 0
        resumed = resume_run({"out_dir": str(tmp_path / "run"), "max_iters": 10**6})
        return "".join(capsys.readouterr()), resumed.data

    return run


@pytest.mark.report("10")
def test_what_is_validated_on_is_never_trained_on_however_often_it_comes(begin):
    rng = random.Random(3)
    rows = [(f"{i:03d}", str(rng.randrange(100, 1000))) for i in range(20)] * 20
    rng.shuffle(rows)
    out, data = begin(rows)
    train_part = data.pairs[: len(data.train)]
    assert not {source for source, _ in train_part} & {source for source, _ in data.val_pairs}
    assert "360 pairs, 40 more for validation" in out
    assert "note: 380 of 400 pairs repeat another pair\n" in out


@pytest.mark.report("10")
def test_a_period_of_the_file_is_not_that_of_the_split(begin):
    rows = [(f"{'abcdefghij'[i % 10]}{i:03d}", str(i)) for i in range(400)]
    _, data = begin(rows)
    assert len({source[0] for source, _ in data.val_pairs}) >= 8
    assert len({source[0] for source, _ in data.pairs[: len(data.train)]}) == 10
    assert not data.notes
    _, again = begin([*reversed(rows)])
    assert sorted(again.val_pairs) == sorted(data.val_pairs)


@pytest.mark.slow
@pytest.mark.report("10b")
def test_exact_match_is_that_of_the_whole_file_and_says_of_how_many(begin, tmp_path, capsys):
    rng = random.Random(1)
    rows = [(f"{i:05d}", str(1 if i < 20000 else rng.randrange(100, 1000))) for i in range(40000)]
    flags = "--max-iters=150", "--eval-interval=150", "--learning-rate=0.01", "--min-lr=0.001"
    out, data = begin(rows, *flags)
    line = metrics(tmp_path / "run")[-1]
    assert out.count(f", exact match {line['exact_match']:.2%} of 2,000") == 2
    assert line["measured_pairs"] == 2000 < len(data.val_pairs)
    text = "".join(map("%s\t%s\n".__mod__, data.val_pairs))
    (tmp_path / "val.tsv").write_text(text)
    program.main(["score", f"--out-dir={tmp_path / 'run'}", f"--data={tmp_path / 'val.tsv'}"])
    (whole,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("exact match"))
    assert float(whole.split()[-1].rstrip("%")) / 100 == pytest.approx(
        line["exact_match"], abs=0.02
    )
    assert 0.4 < line["exact_match"] < 0.6


@pytest.mark.report("33")
def test_symbols_that_only_the_validation_part_has_are_named(begin):
    rows = [(f"{i:03d}", f"{i}") for i in range(200)]
    rows.append(next((name, "1") for i in range(999) if is_held(rows, name := f"{i}q")))
    held = dict(split_by_source(rows)[1])
    rows = [(source, target + "z" * (source in held)) for source, target in rows]
    out, data = begin(rows)
    assert all(f"note: {note}\n" in out for note in data.notes)
    assert data.notes == [
        "1 of 11 different characters occur in sources of the validation part only, so training "
        "never sees them: q",
        "1 of 11 different characters occur in targets of the validation part only, so training "
        "never sees them: z",
    ]
    _, data = begin([(f"{i:03d}{'q' * (i % 10 == 9)}", f"{i}") for i in range(200)])
    assert not data.notes  # the letter of every tenth source is trained


def is_held(rows, source):
    """Tell whether a source is for validation if it is one of many."""
    _, val = split_by_source([*rows, (source, "1")])
    return source in dict(val)


@pytest.mark.report("11")
def test_a_blank_line_ends_no_training(begin):
    rows = [(f"{i:03d}", f"{i}") for i in range(40)]
    out, data = begin([*rows[:20], ("",), ("  ",), *rows[20:], ("",)])
    assert "36 pairs, 4 more for validation" in out
    assert "note: left out: 3 blank lines\n" in out and len(data.notes) == 1


@pytest.mark.report("11")
def test_bad_lines_are_counted_before_any_work(tmp_path, capsys):
    rows = [(f"{i:03d}", f"{i}") for i in range(40)] + [("no tab",)] * 3
    (tmp_path / "p.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    command = [f"--data={tmp_path / 'p.tsv'}", f"--out-dir={tmp_path / 'run'}", *FLAGS]
    told = refusal(capsys, train.main, command)
    assert "p.tsv, line 41 has 0 TABs" in told and "(3 of 43 lines are no pairs)" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, between", [("p.csv", ","), ("p.txt", "\t")])
def test_a_table_may_have_a_header(begin, name, between):
    rows = [("Source", "Target"), *((f"{i:03d}", f"{i}") for i in range(40))]
    out, data = begin(rows, name=name, between=between)
    assert "36 pairs, 4 more" in out and data.notes == ["left out: 1 header"]
    assert ("Source", "Target") not in data.pairs


def test_pairs_come_through_a_pipe(tmp_path, capsys, monkeypatch):
    lines = "".join(f'{{"input": "{i:03d}", "output": "{i}", "id": {i}}}\n' for i in range(40))
    (tmp_path / "lines").write_text(lines)
    with (tmp_path / "lines").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert train.main(["--data=-", f"--out-dir={tmp_path / 'run'}", *FLAGS]) == 0
    assert ": 36 pairs, 4 more for validation" in capsys.readouterr().out
    assert train.main(["--resume", f"--out-dir={tmp_path / 'run'}", "--max-iters=8"]) == 0


@pytest.mark.report("10", "33")
def test_what_is_odd_about_the_pairs_is_said(tmp_path):
    tsv = tmp_path / "p.tsv"
    rows = [(f"{i:03d}{'q' * (i % 10 == 9)}", f"{i}{'z' * (i % 10 == 9)}") for i in range(200)]
    for split, noted in (("position", ["q", "z"]), ("source", [])):
        tsv.write_text("".join(map("%s\t%s\n".__mod__, rows)))
        notes = PairData(str(tsv), split=split).notes
        assert [note.partition(" never sees them: ")[2] for note in notes] == noted
    tsv.write_text("".join(map("%s\t%s\n\n".__mod__, [*rows, rows[0], (rows[0][0], "7")])))
    notes = PairData(str(tsv)).notes
    assert notes == [
        "left out: 202 blank lines",
        "1 of 202 pairs repeat another pair",
        "1 of 200 sources have several targets",
    ]


NOTE = "block_size is {}, as the longest pair needs {} tokens"


@pytest.mark.parametrize(
    "longest, block_size", [(30, 64), (64, 64), (65, 72), (72, 72), (240, 240)]
)
def test_the_block_size_grows_with_the_longest_pair_unless_one_is_given(
    tmp_path, longest, block_size
):
    tsv = tmp_path / "p.tsv"
    tsv.write_text("".join(f"{'a' * (longest - 2)}{i}\tb\n" for i in range(10, 30)))
    given = {"data": str(tsv), "task": "seq2seq", "out_dir": str(tmp_path / "run")}
    own = {"preset": None, "resume": False}
    run = new_run(options(own, given), overwrite=False)
    assert run.config.block_size == block_size and type(run.config.block_size) is int
    assert (NOTE.format(block_size, longest) in run.data.notes) == (longest > 64)
    with pytest.raises(UserError, match=f"20 of 20 .*--block-size 29: the longest needs {longest}"):
        new_run(options(own, {**given, "block_size": 29}), overwrite=False)


@pytest.mark.report("11")
@pytest.mark.parametrize("end", ["\n", "\r"])
def test_where_no_source_is_one_line_no_sample_is_shown(begin, end):
    rows = [(f'"{i}{end}x"', "y") for i in range(20)]
    out, _ = begin([("source", "target"), *rows], name="p.csv", between=",")
    assert "note: 20 of 20 pairs have a line break; `minigpt sample` reads and writes lines" in out
    assert "a sample" not in out and "none:" not in out and "\nmore: " in out
    out, _ = begin([(f"{i}", '"y\ny"') for i in range(20)], name="p.csv", between=",")
    assert "a sample" in out and "none:" not in out
    assert "p.csv: no header; its first line is taken for a pair\n" in out


def test_a_few_pairs_that_are_far_longer_are_left_to_the_user(tmp_path, capsys):
    tsv, rows = tmp_path / "p.tsv", [f"{i}\tb\n" for i in range(300)]
    tsv.write_text("".join([*rows, "c" * 300 + "\td\n"]))
    flags = [flag for flag in FLAGS if "block" not in flag]
    run = [f"--data={tsv}", f"--out-dir={tmp_path / 'run'}", *flags, "--max-iters=2"]
    told = refusal(capsys, train.main, run)
    assert "1 of 301 pairs are longer than --block-size 64: the longest needs 300" in told
    assert "99 % of all at most 3; set --block-size 300, or leave them out" in told
    assert train.main([*run, "--block-size=300"]) == 0
    tsv.write_text("".join([*rows, "c" * 400 + "\td\n"]))
    told = refusal(capsys, train.main, [*run[:2], "--resume", "--max-iters=3"])
    assert "longest needs 400" in told and "begin a new run with --block-size 400, or" in told


def test_the_block_size_grows_in_a_program_too():
    pairs = [("a" * 70 + str(i), "b" * 80) for i in range(20)]
    model = minigpt.fit(pairs=pairs, n_layer=1, n_head=1, n_embd=4, max_iters=10, progress=False)
    assert model.config.block_size == 88
    with pytest.raises(UserError, match="longer than --block-size 60"):
        minigpt.fit(pairs=pairs, block_size=60, max_iters=10)


def test_a_split_of_a_checkpoint_is_checked(begin, tmp_path):
    _, data = begin([(f"{i:03d}", f"{i}") for i in range(40)])
    state = load(tmp_path / "run" / LAST).state
    assert RunState.build(state).split == data.split == "source"
    with pytest.raises(UserError, match="its split is 'half'"):
        RunState.build({**state, "split": "half"})
