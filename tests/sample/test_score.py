"""`minigpt score`: a model's numbers on files of the user's."""

import json
import math
import sys

import numpy as np
import pytest

import minigpt
from minigpt import __main__ as program
from minigpt import cli
from minigpt.data.datasets import PairData, TextData
from minigpt.errors import UserError
from minigpt.files import LAST
from minigpt.model.checkpoint import load
from minigpt.sample import progress, scoring
from minigpt.sample.prompt import read_line
from minigpt.train import __main__ as train
from tests.tools.training import begin, metrics, refusal

# Few targets are frequent, so that a model of a few steps is right in some cases.
ROWS = [(f"{i:03d}", "xy"[i % 3 == 0]) for i in range(400)]
PAIR_FLAGS = (
    *("--task=seq2seq", "--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8"),
    *("--batch-size=16", "--threads=1", "--max-iters=30", "--eval-interval=15"),
    *("--warmup-iters=2", "--gradient-accumulation-steps=1", "--learning-rate=0.01"),
)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert begin(folder) == 0
    return folder


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "p.tsv").write_text("".join(map("%s\t%s\n".__mod__, ROWS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        flags = f"--data={folder / 'p.tsv'}", f"--out-dir={folder / 'run'}", *PAIR_FLAGS
        assert train.main([*flags]) == 0
    return folder / "run"


@pytest.fixture
def score(capsys):
    """Run the command; return its exit code, standard output and standard error."""

    def run(folder, data, *flags):
        capsys.readouterr()
        where = f"--checkpoint={folder / LAST}"
        status = program.main(["score", where, f"--data={data}", *flags])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def numbers(score):
    """Run the command with --json; return its exit code, the score and standard error."""

    def run(folder, data, *flags):
        status, out, err = score(folder, data, "--json", *flags)
        assert out.count("\n") == 1
        return status, json.loads(out), err

    return run


def file_of(path, text):
    path.write_bytes(text.encode())
    return path


def test_a_text_has_the_loss_that_training_reports(text_run, numbers, tmp_path):
    data = TextData(str(text_run.parent / "text.txt"))
    text = data.tokenizer.decode(data.val)
    status, found, err = numbers(text_run, file_of(tmp_path / "val.txt", text))
    assert (status, err, found["not_scored"]) == (0, "", [])
    assert found["loss"] == pytest.approx(metrics(text_run)[-1]["val_loss"], rel=1e-6)
    assert found["tokens"] == found["characters"] == len(text) - 1
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_character"] == pytest.approx(found["loss"] / math.log(2))
    assert found["bits_per_byte"] == pytest.approx(metrics(text_run)[-1]["val_bpb"], rel=1e-6)


def test_bits_are_per_character_and_per_byte_of_what_is_predicted(tmp_path):
    text = "äb\u20ac\U0001f600" * 40 + "\n"
    model = minigpt.fit(
        text=text, n_layer=1, n_head=1, n_embd=4, block_size=4, max_iters=1, progress=False
    )
    found = model.score(file_of(tmp_path / "t.txt", text))
    bits = found["loss"] * (len(text) - 1) / math.log(2)
    assert found["bits_per_character"] == pytest.approx(bits / (len(text) - 1))
    assert found["bits_per_byte"] == pytest.approx(bits / (len(text.encode()) - 2))
    ids = np.array(model.tokenizer.encode(text))
    windows = [ids[i : i + 5] for i in range(0, len(ids) - 1, 4)]
    losses = [(model.loss(w[:-1], w[1:]), len(w) - 1) for w in windows]
    whole = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    assert found["loss"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.report("33")
def test_unknown_characters_are_counted_named_and_left_out(text_run, numbers, score, tmp_path):
    text = "Line 1: the square of 1 is 1.\n" * 5
    _, plain, _ = numbers(text_run, file_of(tmp_path / "plain.txt", text))
    odd = file_of(tmp_path / "odd.txt", "\u4e00" + text.replace("square", "s\u00e9qu\u00e9are"))
    status, found, err = numbers(text_run, odd)
    assert status == 2 and found["unknown_characters"] == 11
    assert found["not_scored"] == [
        "11 characters that the model does not know, left out: 'é' (10), '一' (1)"
    ]
    assert err == f"error: {found['not_scored'][0]}\n"
    same = plain.keys() - {"data", "unknown_characters", "not_scored"}
    assert {name: plain[name] for name in same} == {name: found[name] for name in same}
    status, out, err = score(text_run, odd)
    assert status == 2 and "loss" in out and err.startswith("error: 11 characters")


@pytest.mark.report("23")
def test_line_ends_of_other_systems_are_new_lines(text_run, numbers, tmp_path):
    text = "Line 1: the square of 1 is 1.\n" * 5
    losses = set()
    for i, end in enumerate(("\n", "\r\n", "\r")):
        data = file_of(tmp_path / f"{i}.txt", text.replace("\n", end))
        status, found, _ = numbers(text_run, data)
        losses.add((status, found["loss"], found["characters"]))
    assert len(losses) == 1


@pytest.mark.report("10b")
def test_pairs_have_the_loss_and_the_exact_match_that_training_reports(
    pair_run, numbers, tmp_path, capsys
):
    val = PairData(str(pair_run.parent / "p.tsv")).val_pairs
    rows = ["source,target", *map(",".join, val)]
    data = file_of(tmp_path / "val.csv", "\r\n".join(rows))
    status, found, err = numbers(pair_run, data, "--wrong=0")
    line = metrics(pair_run)[-1]
    assert (status, err, found["wrong"], found["beam"]) == (0, "", [], 1)
    assert found["loss"] == pytest.approx(line["val_loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(2 * found["loss"] / math.log(2))  # a byte, END
    assert found["bits_per_byte"] == pytest.approx(line["val_bpb"], rel=1e-6)
    assert found["exact_match"] == line["exact_match"] and 0 < line["exact_match"] < 1
    assert found["pairs"] == line["measured_pairs"] == len(val) and found["tokens"] == 2 * len(val)
    assert found["wrong_answers"] == round(len(val) * (1 - line["exact_match"]))


def test_wrong_answers_are_listed_as_sample_gives_them(pair_run, score, numbers, capsys):
    data = pair_run.parent / "p.tsv"
    status, found, _ = numbers(pair_run, data, "--wrong=1000", "--beam=2")
    wrong = found["wrong"]
    assert status == 0 and len(wrong) == found["wrong_answers"] > 50
    model = minigpt.load(pair_run / LAST)
    sources = [answer["source"] for answer in wrong]
    assert sources == sorted(sources)  # in the order of the file
    assert [answer["answer"] for answer in wrong[:64]] == model.answer(sources[:64], beam=2)
    assert all(dict(ROWS)[answer["source"]] == answer["expected"] for answer in wrong)
    _, out, err = score(pair_run, data, "--wrong=5", "--beam=2")
    head, _, table = out.partition("\n\n5 wrong answers, spread evenly over all:\n")
    rows = [line.split("\t") for line in table.splitlines()]
    assert rows[0] == ["source", "expected", "answer"] and err == ""
    some = [wrong[i * len(wrong) // 5] for i in range(5)]
    assert rows[1:] == [[*answer.values()] for answer in some]
    assert "exact match         " in head and "nats per token" in head
    assert found == {**model.score(data, beam=2, wrong=1000), "data": str(data)}


def test_answers_stand_by_their_lines_in_whatever_order_they_are_made(pair_run):
    model = minigpt.load(pair_run)
    lines = [read_line("", text, model.tokenizer.source, 8) for text in ("1", "22", "98765")]
    found = [
        scoring.answers_to(
            (model.params, model.config, model.tokenizer), lines, order, 1, lambda text: None
        )
        for order in ([0, 1, 2], [2, 0, 1])
    ]
    scores = [[answer.log_prob for answer in answers] for answers in found]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and len(set(scores[0])) == 3


@pytest.mark.report("11")
def test_bad_lines_are_told_by_number_and_the_others_are_scored(pair_run, numbers, tmp_path):
    good = [f"{s}\t{t}" for s, t in ROWS[:6]]
    bad = ["no tab", "\tx", "12a\tx", "123\tz", "123456789\tx", "123\txxxxxxxx"]
    rows = [row for both in zip(good, bad, strict=True) for row in both]
    status, found, err = numbers(pair_run, file_of(tmp_path / "b.tsv", "\n".join(rows)))
    _, only_good, _ = numbers(pair_run, file_of(tmp_path / "g.tsv", "\n".join(good)))
    told = err.splitlines()
    assert status == 2 and found["not_scored"] == [line.removeprefix("error: ") for line in told]
    for number, line, why in zip(
        range(2, 13, 2),
        told,
        ["has 0 TABs", "has an empty source", "'a' at position 2", "'z' at position 0"]
        + ["has 9 characters, but the model reads 1 to 8"]
        + ["has a target of 8 characters, but the model writes at most 7"],
        strict=True,
    ):
        assert f"b.tsv, line {number}" in line and why in line
    for name in ("pairs", "tokens", "loss", "exact_match", "wrong"):
        assert found[name] == only_good[name]


def test_of_many_bad_lines_the_first_are_named(pair_run, score, tmp_path, capsys):
    rows = "".join(map("%s\t%s\n".__mod__, ROWS[:3])) + "bad\n" * 50
    status, out, err = score(pair_run, file_of(tmp_path / "b.tsv", rows))
    assert status == 2 and len(err.splitlines()) == 21
    assert err.endswith("error: 30 more lines could not be scored\n")
    data = f"--data={file_of(tmp_path / 'c.tsv', 'bad' + chr(10))}"
    command = ["score", f"--out-dir={pair_run}", data]
    assert "none of 1 lines can be scored; the first: " in refusal(capsys, program.main, command)


def test_a_cell_is_one_line_whatever_is_in_it(pair_run, score, tmp_path, monkeypatch):
    wrong = {"source": "a\nb", "expected": "\t", "answer": "x"}
    monkeypatch.setattr(scoring, "some_of", lambda items, most: [wrong] * 2)
    _, out, _ = score(pair_run, file_of(tmp_path / "b.tsv", "".join(map("%s\t%s\n".__mod__, ROWS))))
    assert out.splitlines()[-1] == "a\\nb\t\\t\tx"


def test_an_answer_that_is_cut_off_is_wrong_and_marked(pair_run, monkeypatch):
    best = scoring.answer_each
    monkeypatch.setattr(
        scoring, "answer_each", lambda *args: [[r[0]._replace(ended=False)] for r in best(*args)]
    )
    found = minigpt.load(pair_run).score(pair_run.parent / "p.tsv")
    assert found["exact_match"] == 0
    assert all(answer["answer"].endswith(" ...") for answer in found["wrong"])


@pytest.mark.parametrize(
    "kind, flags, told",
    [
        ("text", ["--data=DATA", "--beam=2"], "--beam is for an encoder-decoder"),
        ("text", [], "there is nothing to score; name a file by --data FILE"),
        ("text", ["--data=EMPTY"], "is empty"),
        ("text", ["--data=ONE"], "has 1 token that the model knows; a score needs 2"),
        ("pairs", ["--data=EMPTY"], "is empty; name a file with pairs in it"),
        ("pairs", ["--data=nowhere"], "--data nowhere cannot be read"),
        ("pairs", ["--data=DATA", "--num-beams=2"], "--num-beams: use --beam N"),
        ("pairs", ["--data=DATA", "--wrong=-1"], "--wrong is -1; it must be at least 0"),
    ],
)
def test_what_cannot_be_scored(text_run, pair_run, tmp_path, capsys, kind, flags, told):
    folder = {"text": text_run, "pairs": pair_run}[kind]
    files = {"EMPTY": "", "ONE": "L", "DATA": "001\tx\n"}
    paths = {name: file_of(tmp_path / name, text) for name, text in files.items()}
    for name, path in paths.items():
        flags = [flag.replace(name, str(path)) for flag in flags]
    assert told in refusal(capsys, program.main, ["score", f"--out-dir={folder}", *flags])


def test_others_names_of_the_command_lead_to_it(capsys):
    for flag in ("--eval-only", "--do-eval", "--evaluate"):
        assert "use `minigpt score --out-dir DIR --data" in refusal(capsys, train.main, [flag])
    assert "use --beam N" in refusal(capsys, program.main, ["sample", "--num-beams=2"])


def test_several_files_and_standard_input(pair_run, numbers, tmp_path, monkeypatch):
    data = pair_run.parent / "p.tsv"
    half = [file_of(tmp_path / name, "".join(map("%s\t%s\n".__mod__, rows)))
            for name, rows in (("1.tsv", ROWS[:200]), ("2.tsv", ROWS[200:]))]  # fmt: skip
    _, whole, _ = numbers(pair_run, data)
    _, found, _ = numbers(pair_run, half[0], f"--data={half[1]}")
    assert {**found, "data": 0} == {**whole, "data": 0}
    monkeypatch.setattr(sys, "stdin", data.open())
    _, found, _ = numbers(pair_run, "-")
    assert {**found, "data": 0} == {**whole, "data": 0} and found["data"] == "standard input"


def test_it_shows_how_far_it_is_and_ends_cleanly(pair_run, score, capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    shown = []
    monkeypatch.setattr(progress.Progress, "show", lambda self, text: shown.append(text))
    data = pair_run.parent / "p.tsv"
    score(pair_run, data)
    assert shown[-1] == "answer 400 of 400"
    assert [text for text in shown if "loss" in text][-1] == "loss of 800 of 800 tokens"

    def interrupt(self, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "show", interrupt)
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: program.main(["score", f"--out-dir={pair_run}", f"--data={data}"]))
    assert leaving.value.code == 130 and capsys.readouterr().err == ""


@pytest.mark.cupy
def test_the_backends_give_the_same_score(text_run, pair_run, numbers, xp):
    for folder, data in ((text_run, "text.txt"), (pair_run, "p.tsv")):
        scores = [
            numbers(folder, folder.parent / data, f"--backend={backend}")[1]
            for backend in ("numpy", xp.__name__)
        ]
        losses = [score.pop("loss") for score in scores]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert [score["tokens"] for score in scores] == [scores[0]["tokens"]] * 2


def test_a_model_that_is_of_no_use_is_refused(pair_run):
    model = minigpt.load(pair_run)
    model.params.flat[:] = np.inf
    with pytest.raises(UserError, match="the loss is (nan|inf)"):
        model.score(pair_run.parent / "p.tsv")


def test_the_score_does_not_depend_on_threads(pair_run, monkeypatch):
    losses = []
    for n in (1, 3):
        monkeypatch.setattr(scoring, "usable_cores", lambda n=n: n)
        losses.append(minigpt.load(pair_run).score(pair_run.parent / "p.tsv")["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert load(pair_run / LAST).config.block_size == 8


@pytest.mark.report("11")
def test_a_missing_file_is_called_what_it_should_be(pair_run, text_run, capsys, tmp_path):
    for folder, what in ((pair_run, "file of pairs"), (text_run, "text file")):
        given = ["score", f"--checkpoint={folder / LAST}", f"--data={tmp_path / 'nofile'}"]
        told = refusal(capsys, program.main, given)
        assert told.endswith(f"nofile cannot be read: No such file or directory; name a {what}")
