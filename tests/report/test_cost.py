"""What a run has cost, and the time by op."""

import itertools
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.model import gpt
from minigpt.model.flops import count_flops
from minigpt.model.gpt import GPTConfig
from minigpt.model.lora import Lora, adapter_shapes
from minigpt.params import Params
from minigpt.report import cost
from minigpt.report.cost import UPDATE, cost_section, of_a_step, recorded
from minigpt.report.op_times import by_op, clocks, timed_names
from minigpt.report.passes import run_passes
from tests.report.test_contents import pairs, random_model, text  # noqa: F401

OPTIONS = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "momentum": 0.9, "optimizer": "muon"}


def test_what_is_recorded_is_the_runs_own():
    lines = [
        {"step": 10, "tokens": 100, "seconds": 1.5, "tokens_per_second": 90},
        {"step": 20, "tokens": 200, "seconds": 3.0, "tokens_per_second": 70, "val_loss": 1.0},
        {"step": 30, "tokens": 300, "seconds": 4.5, "tokens_per_second": 80},
        {"step": 30, "whole_val_loss": 1.0},
    ]
    assert recorded(lines) == {"steps": 30, "tokens": 300, "seconds": 4.5, "tokens_per_second": 80}
    assert recorded([]) == {}


def test_ops_are_timed_in_both_models_and_put_back(text, pairs):  # noqa: F811
    before = {(m, n): getattr(m, n) for m, n in timed_names()}
    for checkpoint, data in (text, pairs):
        passes = run_passes(checkpoint, data, 1e6, 0.01)
        records, flops = passes.records, passes.flops
        ops = {r["op"]: r for r in records}
        names = {"cross_entropy_both", "embedding_forward", "add_norm_backward", "the rest"}
        assert names <= ops.keys() and flops > 0
        assert sum(r["share"] for r in records) == pytest.approx(1)
        assert min(r["seconds"] for r in records) >= 0
    assert {(m, n): getattr(m, n) for m, n in timed_names()} == before
    with pytest.raises(RuntimeError), clocks():
        raise RuntimeError
    assert {(m, n): getattr(m, n) for m, n in timed_names()} == before


def test_calls_of_other_threads_are_not_timed():
    x = np.ones((2, 4), np.float32)
    with clocks() as spent:
        gpt.add_norm_forward(None, x, np.ones(4, "f"))
        other = threading.Thread(target=gpt.add_norm_forward, args=(None, x, np.ones(4, "f")))
        other.start(), other.join()
    assert spent["add_norm_forward"][1] == 1


def test_a_step_has_the_time_of_its_tokens_and_its_update():
    records = [{"op": "a", "seconds": 1.0}, {"op": "b", "seconds": 3.0}]
    options = {"batch_size": 4, "gradient_accumulation_steps": 2, "block_size": 16}
    step = of_a_step(records, 4.0, (2, 8), options)
    assert [r["op"] for r in step] == ["b", "a", UPDATE]
    assert [r["seconds"] for r in step] == [24, 8, 4]
    assert sum(r["share"] for r in step) == pytest.approx(1)
    step = of_a_step(records, None, (2, 8), options | {"task": "seq2seq"})
    assert [r["seconds"] for r in step] == [12, 4]
    assert cost.time_text(12.0) == "12 s" and cost.time_text(0.0123) == "12.3 ms"


def test_the_work_of_pairs_is_that_of_their_lengths():
    from minigpt.model.encoder_decoder import Seq2SeqConfig

    config = Seq2SeqConfig(11, 9, 2, 2, 4, source_vocab_size=7)
    S, T, C = 3, 5, 4
    blocks = 2 * (12 * C * C * (S + T) + 2 * C * C * (S + T))
    seen = 2 * (T * (T + 1) + 2 * S * S + 2 * S * T) * C
    assert count_flops(config, 3, T, S) == 2 * 3 * (blocks + seen + 11 * C * T) * 3


def test_the_update_is_timed_of_all_weights(text, pairs, monkeypatch):  # noqa: F811
    adamw = {**OPTIONS, "optimizer": "adamw", "weight_decay": None}
    lora = Params(adapter_shapes(GPTConfig(11, 8, 2, 2, 8), Lora(2, 2.0)), np, "float32")
    models = text[0].params, pairs[0].params
    for params, options in ((lora, adamw), *itertools.product(models, (OPTIONS, adamw))):
        assert cost.time_update(params, options) > 0
        with monkeypatch.context() as patch:
            patch.setattr(cost, "time_steps", lambda optimizer: optimizer.params.size)
            assert cost.time_update(params, options) == params.size
            patch.setattr(cost, "STEPPED", 7)
            assert cost.time_update(params, options) == pytest.approx(params.size)


def test_a_long_update_is_not_timed(monkeypatch):
    monkeypatch.setattr(cost, "time_steps", lambda optimizer: 1.0)
    params = SimpleNamespace(shapes=GPTConfig(65, 8, 2, 2, 1024).shapes(), size=26_000_000)
    assert cost.time_update(params, OPTIONS) is None
    assert cost.time_update(params, {**OPTIONS, "optimizer": "adamw"}) == pytest.approx(6.5)


def test_the_section_says_what_was_measured_where(text, pairs, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cost, "PEAK_S", 0.01)
    monkeypatch.setattr(cost, "processor", lambda: "Abacus <2>")
    line = {"step": 10, "tokens": 100, "seconds": 1.5, "tokens_per_second": 90}
    for checkpoint, data in (text, pairs):
        state = {"train": {**OPTIONS, "batch_size": 3, "gradient_accumulation_steps": 1}}
        passes = run_passes(checkpoint, data, 1e6, 0.0)
        html = cost_section(checkpoint._replace(state=state), passes, [line]).html
        assert "Abacus &lt;2&gt;" in html and "share of the peak" in html and UPDATE in html
        assert "90 t" in html and "1.5 s" in html
        assert "what is timed has not" not in html
        config = replace(checkpoint.config, dropout=0.1)
        state["train"]["recompute"] = True
        html = cost_section(checkpoint._replace(state=state, config=config), passes, [line]).html
        assert "The run had --dropout and --recompute; what is timed has not." in html
        html = cost_section(checkpoint, None, []).html
        assert "left out" in html and "Abacus" not in html


def test_a_step_is_called_once_before_its_time_is_taken():
    calls = []
    records = by_op(lambda: calls.append(0), 0.0, least=3)
    assert len(calls) == 4 and [r["op"] for r in records] == ["the rest"]
