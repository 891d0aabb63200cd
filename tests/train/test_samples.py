"""The short samples that a run keeps in its metrics."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.data.characters import CharTokenizer
from minigpt.data.datasets import PairData
from minigpt.data.tokenizers import PairTokenizer
from minigpt.errors import UserError
from minigpt.model.checkpoint import load
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.init import init_params
from minigpt.sample import answers, text
from minigpt.sample.tasks import TASKS
from minigpt.train import samples
from minigpt.train.samples import Samples
from tests.tools.training import begin, metrics, same

pytestmark = pytest.mark.usefixtures("no_picture")
PAIRS = [("abc"[i % 3] * (1 + i // 3 % 4), "xyz"[i % 3]) for i in range(12)]


def sampled(folder):
    """The samples of a run by step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return {line["step"]: line["sample"] for line in lines if "sample" in line}


def test_a_run_with_samples_is_the_same_run_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "FRACTION", 1e6)  # no text ends by the clock
    for name, n in (("none", 0), ("some", 20), ("again", 20)):
        assert begin(tmp_path / name, "--dropout=0.2", f"--sample-tokens={n}") == 0
    assert metrics(tmp_path / "some") == metrics(tmp_path / "none")
    weights = [load(tmp_path / name / "last.safetensors").params.flat for name in ("none", "some")]
    np.testing.assert_array_equal(*weights)
    same(tmp_path / "some", tmp_path / "again", "last.safetensors")
    found = sampled(tmp_path / "some")
    assert found == sampled(tmp_path / "again") and not sampled(tmp_path / "none")
    assert [*found] == [4, 8, 12] and all(1 <= len(text) <= 20 for text in found.values())
    assert len({*found.values()}) > 1  # weights alone make them different


def fake_run(seconds, step=1, work=None):
    """A run so many seconds old, whose samples take a second a token by the fake clock."""
    task = SimpleNamespace(sample=work)
    state = SimpleNamespace(seconds=seconds, step=step)
    return SimpleNamespace(
        state=state, task=task, data=None, trainer=SimpleNamespace(tree=None), config=None
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(samples.time, "perf_counter", lambda: now.s)
    return now


def test_all_samples_together_take_a_hundredth_of_a_run(clock):
    def work(data, tree, config, tokens, enough):
        made = 0
        while made < tokens:
            clock.s, made = clock.s + 1, made + 1
            if enough():
                break
        return "x" * made

    stop, some = SimpleNamespace(signal=None), Samples(4)
    assert some.take(fake_run(1000, work=work), stop) == "xxxx" and some.spent_s == 4
    assert some.take(fake_run(1000, work=work), stop) == "xxxx"
    assert some.take(fake_run(1000, work=work), stop) == "xxx"  # the third is beyond the 10 s
    assert some.take(fake_run(1000, work=work), stop) is None
    assert some.take(fake_run(2000, work=work), stop) == "xxxx"
    assert Samples(0).take(fake_run(1000, work=work), stop) is None
    first = Samples(4)
    assert first.take(fake_run(0, step=0, work=work), stop) == "xx"  # before the first step
    assert first.take(fake_run(1000, work=work), stop) == "xxxx"
    stop.signal = 2
    assert Samples(4).take(fake_run(1000, work=work), stop) == "x"


def test_a_sample_that_cannot_be_taken_ends_nothing(clock):
    def work(*_):
        raise UserError("the model's logits are not finite")

    assert Samples(4).take(fake_run(1000, work=work), SimpleNamespace(signal=None)) is None


@pytest.fixture
def pairs(monkeypatch):
    """A data set of pairs and a random model for it."""
    tokenizer = PairTokenizer.from_pairs(PAIRS)
    data = SimpleNamespace(val_pairs=PAIRS, tokenizer=tokenizer)
    sizes = tokenizer.vocab_size, 8, 1, 2, 8
    config = Seq2SeqConfig(*sizes, source_vocab_size=tokenizer.source.vocab_size)
    params = init_params(config, 1)
    params.flat[...] = np.random.default_rng(0).standard_normal(params.size) / 2
    return data, params, config


def test_a_run_takes_its_text_on_the_thread_that_it_has(monkeypatch):
    seen = []
    monkeypatch.setattr(text, "generate", lambda *_, **given: seen.append(given) or iter(()))
    data = SimpleNamespace(tokenizer=CharTokenizer.from_text("ab\n"))
    assert text.short_text(data, {}, None, 9, lambda: False) == ""
    assert seen[0]["threads"] == 1


def test_answers_amid_training_are_those_of_the_search(pairs):
    data, params, config = pairs
    found = TASKS["seq2seq"].sample(data, params.tree, config, 10**6, lambda: False)
    assert len(found) == answers.SAMPLED == len({one["source"] for one in found})
    asked = [one["source"] for one in found]
    for one, (best,) in zip(
        found, answers.answer_lines(params, config, data.tokenizer, asked), strict=True
    ):
        assert one["answer"] == best.text + " ..." * (not best.ended)
        assert (one["source"], one["expected"]) in PAIRS


def test_answers_end_with_their_tokens_and_their_time(pairs):
    data, params, config = pairs
    asked, work = [], TASKS["seq2seq"].sample
    whole = work(data, params.tree, config, 10**6, lambda: False)
    short = work(data, params.tree, config, 1, lambda: False)
    assert len(short) == 1 and len(short[0]["answer"].removesuffix(" ...")) <= 1
    cut = work(data, params.tree, config, 10**6, lambda: asked.append(0) or len(asked) > 1)
    assert len(cut) == 1 and len(cut[0]["answer"]) <= len(whole[0]["answer"]) + len(" ...")


def test_a_run_on_pairs_keeps_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "FRACTION", 1e6)
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{'abcde'[i % 5] * (i // 5 + 1)}\t{i}\n" for i in range(30)), "utf-8")
    flags = "--task=seq2seq", "--sampler=uniform", "--max-iters=4", "--sample-tokens=50"
    assert begin(tmp_path / "run", *flags) == 0
    (found,) = sampled(tmp_path / "run").values()
    asked = PairData(str(path)).val_pairs
    assert [(one["source"], one["expected"]) for one in found] == asked[:3]
