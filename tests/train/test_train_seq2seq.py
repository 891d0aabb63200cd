"""Training an encoder-decoder, from the command line to its checkpoints."""

import dataclasses
import itertools
import json
import os
import signal
from typing import NamedTuple

import numpy as np
import pytest

from minigpt.data import datasets
from minigpt.data.datasets import PairData
from minigpt.data.dates import date_pairs
from minigpt.data.pairs import Pairs, padded, random_pairs, split_by_source
from minigpt.data.tokenizers import PairTokenizer
from minigpt.errors import UserError
from minigpt.files import BEST, LAST
from minigpt.model import count_parameters
from minigpt.model.checkpoint import load, save
from minigpt.model.encoder_decoder import Seq2SeqConfig, loss_backward, loss_forward
from minigpt.model.init import init_params
from minigpt.ops.dropout import Rng
from minigpt.params import leaves
from minigpt.sample import __main__ as sample
from minigpt.sample import answers
from minigpt.sample.tasks import TASKS, task_of
from minigpt.train import __main__ as train
from minigpt.train.config import resolve
from minigpt.train.presets import DEFAULTS, FINETUNE, PRESETS
from minigpt.train.progress import format_measures
from minigpt.train.resume import resume_run
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers
from tests.tools.options import train_config
from tests.tools.training import metrics, refusal, resume

pytestmark = pytest.mark.usefixtures("no_picture")

WORDS = ["".join(word) for n in (2, 3, 7) for word in itertools.product("abc", repeat=n)]
# Of each length there is one at every tenth place.
WORDS = [*WORDS[:8], "c", "a", *WORDS[9:18], WORDS[8], *WORDS[18:36], *WORDS[36::40]]
PAIRS = [(word, word[::-1]) for word in WORDS]
FLAGS = (
    *("--task=seq2seq", "--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8"),
    *("--batch-size=6", "--threads=2", "--max-iters=8", "--eval-interval=4", "--log-interval=2"),
    *("--warmup-iters=2", "--dropout=0.1", "--gradient-accumulation-steps=2"),
)
CONFIG = Seq2SeqConfig(4, 8, 1, 2, 8, source_vocab_size=3, dropout=0.2)
TRAIN = train_config(task="seq2seq", batch_size=5, max_iters=20, warmup_iters=2)


class Hypothesis(NamedTuple):
    """What a search finds, as far as exact match looks at it."""

    ids: list
    ended: bool


@pytest.fixture
def tsv(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    return path


@pytest.fixture
def begin(tsv):
    return lambda folder, *flags: train.main(
        [f"--data={tsv}", f"--out-dir={folder}", *FLAGS, *flags]
    )


def test_a_run_in_all_its_parts(begin, tmp_path, tsv, capsys):
    assert begin(tmp_path / "run") == 0
    out = capsys.readouterr().out
    train_part, val = split_by_source(PAIRS)
    assert f"{tsv}: {len(train_part)} pairs, {len(val)} more for validation; sources are" in out
    assert out.count(", exact match ") == 3  # two evaluations and the end
    assert out.count(f"% of {len(val)}") == 3
    shown = out.split(f"{'-' * 15} a sample {'-' * 15}\n")[1].splitlines()
    assert [val[i * len(val) // 5][0] for i in range(5)] == shown[:10:2]
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [{"val_loss", "exact_match", "measured_pairs"} <= line.keys() for line in lines] == [
        *(False, True) * 2
    ]
    checkpoint = load(tmp_path / "run" / LAST)
    assert isinstance(checkpoint.config, Seq2SeqConfig)
    assert (checkpoint.tokenizer.source.chars, checkpoint.tokenizer.target.chars) == ("abc", "abc")
    sample.main(["--out-dir", str(tmp_path / "run"), "--prompt", "ab\nc", "--beam", "2"])
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("times", [1, 2], ids=["after a step", "amid a step"])
def test_interrupted_and_resumed_is_uninterrupted(begin, tmp_path, monkeypatch, times):
    assert begin(tmp_path / "whole") == 0
    original = Trainer.step

    def interrupted(self, split, i, *args):
        for _ in range(times if i == 5 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, split, i, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert begin(tmp_path / "parts") == 130
    assert resume(tmp_path / "parts") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for name in (BEST, LAST):
        one, other = (load(tmp_path / run / name) for run in ("parts", "whole"))
        np.testing.assert_array_equal(one.params.flat, other.params.flat)
        assert one.state["val_loss"] == other.state["val_loss"]
        assert one.state["measures"] == other.state["measures"]


@pytest.mark.slow
def test_the_built_in_task(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        datasets, "date_pairs", lambda seed: [part[:150] for part in date_pairs(seed, 150, 1)]
    )
    flags = [flag for flag in FLAGS if "block" not in flag and "accum" not in flag]
    folder = f"--out-dir={tmp_path / 'run'}"
    assert train.main([*flags, folder, "--max-iters=2", "--seed=3"]) == 0
    assert "dates, seed 3: 150 pairs, 150 more for validation" in capsys.readouterr().out
    assert resume(tmp_path / "run", "--max-iters=3") == 0
    told = refusal(capsys, resume, tmp_path / "run", "--max-iters=4", "--seed=4")
    assert "the run was trained on dates, seed 3, but" in told


def test_shared_embeddings_mean_one_vocabulary(begin, tmp_path, tsv):
    tsv.write_text("".join(f"a{source}\tx{target}\n" for source, target in PAIRS))
    assert begin(tmp_path / "run", "--share-embedding", "--max-iters=2", "--block-size=9") == 0
    checkpoint = load(tmp_path / "run" / BEST)
    assert [side.chars for side in checkpoint.tokenizer] == ["abcx", "abcx"]
    assert (checkpoint.config.vocab_size, checkpoint.config.source_vocab_size) == (5, 4)


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--block-size=7"], "pairs are longer than --block-size 7: the longest needs 8"),
        (["--vocab-size=9"], "vocab_size is 9, but the pairs need 4: leave it out"),
        (["--task=text", "--share-embedding"], "share_embedding is for --task seq2seq"),
        (["--task=images"], "--task is 'images'; choose from text, seq2seq"),
        (["--preset=date"], "preset is 'date'; choose from .*; did you mean 'dates'?"),
    ],
)
def test_flags_that_cannot_be(begin, tmp_path, capsys, flags, told):
    error = refusal(capsys, begin, tmp_path / "run", *flags)
    assert told.replace(".*", "") in error or all(part in error for part in told.split(".*"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text, told",
    [
        ("a b\n", "pairs.tsv, line 1 has 0 TABs"),
        ("a\tb\n" * 9, "--data holds 1 different source;"),
        ("a\t\n" * 10, "pairs.tsv, line 1 has an empty target"),
        ("", "pairs.tsv is empty"),
    ],
)
def test_a_file_that_is_no_good(begin, tmp_path, tsv, capsys, text, told):
    tsv.write_text(text)
    assert told in refusal(capsys, begin, tmp_path / "run")


def test_what_resume_refuses(begin, tmp_path, tsv, capsys):
    assert begin(tmp_path / "run", "--max-iters=2") == 0
    folder = tmp_path / "run"
    assert "task is seq2seq in" in refusal(capsys, resume, folder, "--task=text", "--max-iters=3")
    assert "share_embedding is False" in refusal(capsys, resume, folder, "--share-embedding")
    tsv.write_text("é\tb\n" * 10)
    assert "trained on" in refusal(capsys, resume, folder, "--max-iters=3")


def test_presets_of_the_tasks():
    assert DEFAULTS == {"text": "quick", "seq2seq": "dates"}
    config, recipe = resolve(PRESETS["dates"], {"vocab_size": 12, "source_vocab_size": 62})
    assert (type(config), config.vocab_size, config.source_vocab_size) == (Seq2SeqConfig, 12, 62)
    assert (recipe.task, recipe.batch_size) == ("seq2seq", 32)
    assert count_parameters(config) == sum(w.size for _, w in init_params(config, 0, np).leaves())


def test_a_dry_run(tmp_path, tsv, capsys, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    train.main(["--dry-run", f"--data={tsv}", *FLAGS])
    assert "vocabulary 4" in capsys.readouterr().out and not list(folder.iterdir())


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {FINETUNE}))
def test_every_preset_has_a_size_for_pairs(tsv, capsys, preset):
    train.main(["--dry-run", f"--data={tsv}", "--task=seq2seq", f"--preset={preset}"])
    assert "vocabulary 4" in capsys.readouterr().out


def batches(n, size):
    data = Pairs(PAIRS, PairTokenizer.from_pairs(PAIRS))
    return data, [random_pairs(data, TRAIN.seed, i, size) for i in range(n)]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_step_is_the_mean_over_all_targets_of_all_its_batches(threads):
    recipe = dataclasses.replace(TRAIN, gradient_accumulation_steps=3, grad_clip=0.0)
    data, drawn = batches(3, recipe.batch_size)
    params = init_params(CONFIG, 0, np, "float64")
    count = sum((targets >= 0).sum() for _, targets in drawn)
    assert count < sum(targets.size for _, targets in drawn)  # there is padding
    expected, losses = params.zeros_like(), 0.0
    for i, batch in enumerate(drawn):
        rng = Rng.of(TRAIN.seed, 0, i)
        loss, cache = loss_forward(*batch, params.tree, CONFIG, rng, count=count)
        losses += loss
        grads = dict(leaves(loss_backward(1.0, cache)))
        for name, into in expected.leaves():
            into += grads[name]
    with Workers(threads) as workers:
        trainer = Trainer(init_params(CONFIG, 0, np, "float64"), CONFIG, recipe, np, workers)
        loss, norm, _ = trainer.step(data, 0)
    assert trainer.count == count
    np.testing.assert_allclose(loss, losses, rtol=1e-12)
    np.testing.assert_allclose(trainer.grads.flat, expected.flat, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(norm, np.linalg.norm(expected.flat), rtol=1e-10)


def test_the_validation_loss_is_the_mean_over_all_targets():
    data, _ = batches(0, 1)
    params = init_params(CONFIG, 0, np, "float64")
    whole = data.rows(np.arange(len(PAIRS)))
    with Workers(2) as workers:
        loss = Trainer(params, CONFIG, TRAIN, np, workers).evaluate(data)
    np.testing.assert_allclose(loss, loss_forward(*whole, params.tree, CONFIG)[0], rtol=1e-12)


def test_exact_match_counts_what_is_right_from_the_first_character_to_the_end(tsv, monkeypatch):
    data = PairData(str(tsv), split="position")
    right = dict(PAIRS)

    def search(source, p, config):
        for row in source:
            text = data.tokenizer.source.decode(row[row >= 0])
            answers = {1: ("", True), 2: (right[text], False), 3: (right[text] + "a", True)}
            answer, ended = answers.get(len(text), (right[text], True))
            yield [Hypothesis(data.tokenizer.target.encode(answer).tolist(), ended)]

    monkeypatch.setattr(answers, "search", search)
    with Workers(2) as workers:
        params = init_params(CONFIG, 0, np)
        measured = TASKS["seq2seq"].measure(data, params, CONFIG, workers.map)
    val = PAIRS[9::10]
    assert {len(source) for source, _ in val} == {1, 2, 3, 7}
    expected = sum(len(source) == 7 for source, _ in val) / len(val)
    assert measured == {"exact_match": expected, "measured_pairs": len(val)}


@pytest.mark.report("10b")
def test_exact_match_is_of_pairs_spread_over_the_whole_validation_part(tmp_path, monkeypatch):
    rows = [f"{i:05d}\t{'easy' if i < 15000 else 'hard'}\n" for i in range(30000)]
    (tmp_path / "half.tsv").write_text("".join(rows))
    data = PairData(str(tmp_path / "half.tsv"))
    config = Seq2SeqConfig(data.tokenizer.vocab_size, 8, 1, 2, 8, source_vocab_size=10)
    easy = data.tokenizer.target.encode("easy").tolist()

    def search(source, p, config):
        for _ in source:
            yield [Hypothesis(easy, True)]

    monkeypatch.setattr(answers, "search", search)
    measured = TASKS["seq2seq"].measure(data, init_params(config, 0, np), config, map)
    truth = sum(target == "easy" for _, target in data.val_pairs) / len(data.val_pairs)
    assert measured["measured_pairs"] == 2000 < len(data.val_pairs) == 3000
    assert measured["exact_match"] == pytest.approx(truth, abs=0.001) and 0.4 < truth < 0.6
    assert format_measures(measured) == f", exact match {measured['exact_match']:.2%} of 2,000"
    assert format_measures({"exact_match": 0.5}) == ", exact match 50.00%"  # of an old checkpoint
    shown = TASKS["seq2seq"].show(data)["prompt"].split("\n")
    assert {dict(data.val_pairs)[source] for source in shown} == {"easy", "hard"}


@pytest.mark.report("10")
def test_a_source_of_several_lines_is_not_among_the_answers_that_are_shown(tmp_path):
    rows = "".join(f'"{i}\nx",{i}\n' if i % 2 else f"{i},{i}\n" for i in range(400))
    (tmp_path / "p.csv").write_text(rows)
    shown = TASKS["seq2seq"].show(PairData(str(tmp_path / "p.csv")))["prompt"].split("\n")
    assert len(shown) == 5 and all(int(line) % 2 == 0 for line in shown)


@pytest.mark.parametrize("kind", TASKS)
def test_both_kinds_of_models_come_back_from_a_checkpoint(tmp_path, kind):
    model = TASKS[kind]
    tokenizer = PairTokenizer.from_pairs(PAIRS)
    tokenizer = tokenizer if kind == "seq2seq" else tokenizer.source
    config = model.config(tokenizer.vocab_size, 4, 1, 1, 4)
    if kind == "seq2seq":
        config = dataclasses.replace(config, source_vocab_size=3)
    params = init_params(config, 0, np)
    save(tmp_path / "a", params, config, tokenizer=tokenizer, state={})
    found = load(tmp_path / "a")
    assert found.config == config and task_of(found.config) is model
    assert found.tokenizer.to_json() == tokenizer.to_json()
    np.testing.assert_array_equal(found.params.flat, params.flat)
    ids = padded([[0, 1, 2], [2]])
    losses = [model.loss_forward(ids, ids, p.tree, config)[0] for p in (params, found.params)]
    assert losses[0] == losses[1]


def test_a_checkpoint_of_an_unknown_kind(tmp_path, monkeypatch):
    from minigpt.model import checkpoint

    params = init_params(CONFIG, 0, np)
    tokenizer = PairTokenizer.from_pairs(PAIRS)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "CONFIGS", {"seq2sec": type(CONFIG)})
        save(tmp_path / "a", params, CONFIG, tokenizer=tokenizer, state={})
    with pytest.raises(UserError, match="model is 'seq2sec'; .*; did you mean 'seq2seq'?"):
        load(tmp_path / "a")


def test_the_metrics_are_json_with_the_share(begin, tmp_path):
    begin(tmp_path / "run", "--max-iters=4")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= line["exact_match"] <= 1 and line["tokens"] > 0


@pytest.mark.report("10")
def test_a_run_keeps_its_split_when_it_is_resumed(begin, tmp_path):
    assert begin(tmp_path / "run", "--max-iters=2") == 0
    run = resume_run({"out_dir": str(tmp_path / "run"), "max_iters": 3})
    assert run.state.split == run.data.split == "source"
    assert run.data.val_pairs == split_by_source(PAIRS)[1]


@pytest.mark.report("8b", "10b")
def test_exact_match_keeps_to_its_time_and_says_of_how_many(monkeypatch):
    rows = [(f"{i:04d}", "ab"[i % 2] * (1 + i % 7)) for i in range(3000)]
    data = PairData.__new__(PairData)
    data.val_pairs, data.tokenizer = rows, PairTokenizer.from_pairs(rows)
    asked = []

    def count(source, targets, params, config):
        asked.extend((targets >= 0).sum(1).tolist())
        return len(source)

    monkeypatch.setattr("minigpt.sample.answers.count_solved", count)
    found = TASKS["seq2seq"].measure(data, None, None, map, 0.0)
    assert found == {"exact_match": 1.0, "measured_pairs": 4 * 64} and len(asked) == 4 * 64
    assert np.mean(asked) == pytest.approx(5, abs=1)  # short and long ones
    asked.clear()
    assert TASKS["seq2seq"].measure(data, None, None, map)["measured_pairs"] == 2000
    assert len(asked) == 2000
