"""What a page says of a run, against the passes themselves: metrics, data, gradients, tokens."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt.data.datasets import PairData, TextData
from minigpt.files import METRICS
from minigpt.model.checkpoint import Checkpoint, find_checkpoint, load
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.model.init import init_params
from minigpt.model.lora import Lora, init_adapter, join, merge
from minigpt.params import leaves
from minigpt.report import passes as passes_of
from minigpt.report import run_data
from minigpt.report.cost import UPDATE, cost_section
from minigpt.report.gradients import gradient_norms, gradients_section
from minigpt.report.metrics import read_run, thin
from minigpt.report.passages import passages_section
from minigpt.report.passes import run_passes, validation_batch
from minigpt.report.run_data import open_run_data
from minigpt.report.samples import LONGEST, MOST, samples_section
from minigpt.report.tokens import PART, count_tokens, tokens_section
from minigpt.sample.tasks import task_of
from tests.tools.training import TEXT as TRAINED
from tests.tools.training import begin

TEXT = "".join(f"{i} squared is {i * i}; " for i in range(120))
PAIRS = "".join(f"{'abcde'[i % 5] * (1 + i // 5)}\t{i}\n" for i in range(40))


def random_model(config, data, seed=3):
    """A Checkpoint of random weights, large enough for losses to differ."""
    params = init_params(config, seed)
    params.flat[...] = np.random.default_rng(seed).standard_normal(params.size) / 4
    return Checkpoint(config, data.tokenizer, params, None, {})


@pytest.fixture
def text(tmp_path):
    """A GPT and its data."""
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    data = TextData(str(tmp_path / "text.txt"))
    return random_model(GPTConfig(data.sizes["vocab_size"], 16, 2, 2, 8), data), data


@pytest.fixture
def pairs(tmp_path):
    """An encoder-decoder and its data."""
    (tmp_path / "pairs.tsv").write_text(PAIRS, "utf-8")
    data = PairData(str(tmp_path / "pairs.tsv"))
    sizes = data.sizes
    config = Seq2SeqConfig(
        sizes["vocab_size"], 16, 1, 2, 8, source_vocab_size=sizes["source_vocab_size"]
    )
    return random_model(config, data), data


def write_metrics(folder, lines):
    (folder / METRICS).write_text("".join(line + "\n" for line in lines), "utf-8")


def test_damaged_lines_amid_the_metrics_are_named_and_a_torn_last_one_is_not(tmp_path):
    good = [json.dumps({"step": i, "train_loss": 1.0}) for i in range(6)]
    bad = [good[0], "{torn", good[1], "3", '{"step": "x"}', good[2], "[" * 100_000]
    write_metrics(tmp_path, bad)
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 7, "tr')
    found = read_run(tmp_path)
    assert [line["step"] for line in found.lines] == [0, 1, 2] and found.total == 3
    (note,) = found.notes
    assert note.endswith("4 lines left out as damaged: line 2, line 4, line 5, line 7")
    write_metrics(tmp_path, good)
    assert read_run(tmp_path) == ([json.loads(line) for line in good], 6, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 2, "val_loss": "x"}',
        '{"step": 2, "val_loss": [1]}',
        '{"step": 2, "train_loss": NaN}',
        '{"step": 2, "train_loss": 1e400}',
        '{"step": 2, "tokens": "many"}',
        '{"step": 2, "seconds": true}',
        '{"step": 2, "sample": {"a": 1}}',
        '{"step": 2, "sample": [1]}',
        '{"step": 2, "sample": [{"answer": "b"}]}',
        f'{{"step": {10**400}}}',
    ],
)
def test_a_line_with_a_value_that_no_metric_has_is_damaged(tmp_path, text):
    sound = {"step": 1, "val_loss": None, "tokens": 3, "sample": [{"source": "a", "answer": "b"}]}
    write_metrics(tmp_path, [json.dumps(sound), text])
    found = read_run(tmp_path)
    assert found.lines == [sound]
    assert found.notes == [f"{METRICS}: 1 line left out as damaged: line 2"]


def test_many_lines_are_thinned_out_and_extremes_and_evaluations_stay(tmp_path):
    rng, n = np.random.default_rng(0), 20_000
    lines = [{"step": i, "train_loss": 2 + float(rng.random())} for i in range(n)]
    for i in range(99, n, 100):
        lines[i] |= {"val_loss": 2 + float(rng.random())}
    lines[7654]["train_loss"], lines[1234]["train_loss"] = 99.0, 0.5
    lines[777]["train_loss"] = None
    write_metrics(tmp_path, map(json.dumps, lines))
    found = read_run(tmp_path, most=1000)
    steps = [line["step"] for line in found.lines]
    assert 700 < len(steps) <= 1002 and steps == sorted(set(steps))
    assert {0, n - 1, 7654, 1234, *range(99, n, 100)} <= {*steps}
    gaps = np.diff(steps)
    assert gaps.max() < 4 * n / 400 and found.total == n
    assert f"{len(steps):,} of 20,000 lines" in found.notes[0]
    assert thin(lines[:1000], 1000) == lines[:1000]
    every = [{"step": i, "val_loss": float(i == 5000)} for i in range(n)]
    steps = [line["step"] for line in thin(every, 1000)]
    assert len(steps) <= 1002 and 5000 in steps


def direct_norms(checkpoint, data, tree=None):
    """Squares of the norms of the gradients by name, from the passes."""
    batch, config = validation_batch(checkpoint, data, 1e6), checkpoint.config
    tree = checkpoint.params.tree if tree is None else tree
    _, grads = task_of(config).loss_and_gradients(*batch, tree, config)
    return {name: float((g.astype(float) ** 2).sum()) for name, g in leaves(grads)}


def norms_of(checkpoint, data):
    """What a page shows of the gradients."""
    return gradient_norms(checkpoint, run_passes(checkpoint, data, 1e6, 0.0).gradients)


def test_gradient_norms_are_those_of_the_backward_pass(text):
    checkpoint, data = text
    rows, squares = norms_of(checkpoint, data), direct_norms(checkpoint, data)
    found = {(row["layer"], row["part"]): row["norm"] for row in rows}
    assert [row["layer"] for row in rows][0] == "embedding" and rows[-1]["layer"] == "end"
    assert sum(norm**2 for norm in found.values()) == pytest.approx(sum(squares.values()), rel=1e-5)
    own = {n: s for n, s in squares.items() if n.startswith("h.1.mlp.")}
    assert found["layer 1", "MLP"] == pytest.approx(sum(own.values()) ** 0.5, rel=1e-5)
    norms = {n: s for n, s in squares.items() if n.startswith("h.0.ln")}
    assert found["layer 0", "norms"] == pytest.approx(sum(norms.values()) ** 0.5, rel=1e-5)
    assert sum(row["parameters"] for row in rows) == checkpoint.params.size
    passes = run_passes(checkpoint, data, 1e6, 0.0)
    html = gradients_section(checkpoint, passes).html
    assert "layer 1" in html and f"over {passes.count:,} tokens" in html
    assert gradients_section(checkpoint, None) is None


def test_gradient_norms_of_pairs_are_by_encoder_and_decoder(pairs):
    rows, squares = norms_of(*pairs), direct_norms(*pairs)
    layers = [*dict.fromkeys(row["layer"] for row in rows)]
    assert layers == [
        *("encoder embedding", "encoder layer 0", "encoder end"),
        *("decoder embedding", "decoder layer 0", "decoder end"),
    ]
    found = {(row["layer"], row["part"]): row["norm"] for row in rows}
    cross = sum(s for n, s in squares.items() if ".cross." in n)
    assert found["decoder layer 0", "cross attention"] == pytest.approx(cross**0.5, rel=1e-5)
    assert sum(norm**2 for norm in found.values()) == pytest.approx(sum(squares.values()), rel=1e-5)


def test_gradient_norms_of_an_adapter_are_those_that_training_would_have(text):
    base, data = text
    lora = Lora(2, 6.0, targets=("c_attn", "mlp.c_proj"))
    adapter = init_adapter(base.config, lora, 1)
    adapter.flat[...] = np.random.default_rng(5).standard_normal(adapter.size) / 4
    merged = base._replace(
        params=merge(base.params, adapter, lora),
        adapter=Checkpoint(base.config, None, adapter, None, {}, lora),
    )
    rows = norms_of(merged, data)
    squares = direct_norms(merged, data, join(base.params, adapter, lora))
    own = {n: s for n, s in squares.items() if n.rpartition(".")[2] in ("lora_a", "lora_b")}
    found = {(row["layer"], row["part"]): row["norm"] for row in rows}
    assert {part for _, part in found} == {"attention", "MLP"}
    for layer, part, keys in (("layer 0", "attention", "h.0.attn."), ("layer 1", "MLP", "h.1.mlp")):
        square = sum(s for n, s in own.items() if n.startswith(keys))
        assert found[layer, part] == pytest.approx(square**0.5, rel=1e-4)
    assert "frozen" in gradients_section(merged, run_passes(merged, data, 1e6, 0.0)).html


def test_a_batch_is_as_large_as_its_work_may_be(text, pairs, monkeypatch):
    monkeypatch.setattr(passes_of, "LEAST_TOKENS", 5)  # less than a window
    for checkpoint, data in (text, pairs):
        few, many = (validation_batch(checkpoint, data, flops)[1] for flops in (0, 1e12))
        few, many = ((x >= 0).sum() for x in (few, many))
        assert few < many and few <= 6
    assert validation_batch(*text, 0)[1].shape == (1, 5)


def test_the_data_of_a_run_are_found_again_or_it_is_said_why_not(tmp_path, no_picture, monkeypatch):
    assert begin(tmp_path / "run", "--max-iters=1") == 0
    checkpoint = load(find_checkpoint(tmp_path / "run"), with_optimizer=False)
    data, why = open_run_data(checkpoint, tmp_path / "run")
    assert why is None and data.sha256 == checkpoint.state["data_sha256"]
    with monkeypatch.context() as patch:
        patch.setattr(run_data, "LARGEST", 10)
        why = open_run_data(checkpoint, tmp_path / "run")[1]
        assert "take too long to read for a page" in why
    (tmp_path / "text.txt").write_text("abc\n" * 600, "utf-8")
    data, why = open_run_data(checkpoint, tmp_path / "run")
    assert data is None and "'b'" in why  # which the model does not know
    (tmp_path / "text.txt").write_text(TRAINED[::-1], "utf-8")
    data, why = open_run_data(checkpoint, tmp_path / "run")
    assert data is None and why.endswith("has changed since the run was trained on it")
    (tmp_path / "text.txt").unlink()
    assert "is not to be found" in open_run_data(checkpoint, tmp_path / "run")[1]
    assert open_run_data(checkpoint._replace(state={}), tmp_path)[1].startswith("the checkpoint")


def test_tokens_are_counted_in_all_of_the_data_or_in_parts_that_are_said(text, pairs):
    checkpoint, data = text
    counts, counted, total = count_tokens([data.train, data.val], data.sizes["vocab_size"])
    for i, n in enumerate(counts):
        assert n == TEXT.count(data.tokenizer.decode([i]))
    assert counted == total == len(TEXT)
    many = [np.repeat(np.arange(4, dtype=np.uint8), PART)]
    counts, counted, total = count_tokens(many, 5, most=2 * PART)
    assert counts.tolist() == [PART, 0, PART, 0, 0] and (counted, total) == (2 * PART, 4 * PART)
    html = tokens_section(checkpoint, data).html
    assert "The most frequent" in html or len(counts) <= 24
    assert f"{len(TEXT):,}" in html
    assert "not known" in tokens_section(checkpoint, None).html
    assert ">end<" in tokens_section(*pairs).html
    assert tokens_section(checkpoint._replace(tokenizer=None), None) is None


def test_of_a_large_vocabulary_the_first_are_shown_and_it_is_said():
    n = 1000
    tokenizer = SimpleNamespace(vocab_size=n, label=lambda i: f"<{i}>")
    checkpoint = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace())
    ids = np.repeat(np.arange(n, dtype=np.uint16), np.arange(n))
    html = tokens_section(checkpoint, SimpleNamespace(train=ids, val=ids[:0], part="")).html
    assert "The first 300 of 1,000 tokens" in html and "&lt;299&gt;" in html
    assert "&lt;999&gt;" in html and "&lt;500&gt;" not in html  # among the most frequent


def test_samples_stand_by_step_the_last_among_them():
    lines = [{"step": i, "val_loss": 1.0 + i, "sample": f"<text {i}>"} for i in range(40)]
    html = samples_section([{"step": 0, "train_loss": 1.0}, *lines]).html
    assert html.count("<pre") == MOST and "&lt;text 39&gt;" in html and "&lt;text 0&gt;" in html
    assert f"{'x' * LONGEST} ...</pre>" in samples_section([{"step": 1, "sample": "x" * 999}]).html
    answer = {"source": "a", "expected": "b", "answer": "c ..."}
    html = samples_section([{"step": 1, "sample": [answer]}]).html
    assert "c ..." in html and "<table" in html
    assert "no samples" in samples_section([{"step": 1, "train_loss": 1.0}]).html


def computed_sections(folder):
    """The Sections of a run, by id."""
    checkpoint = load(find_checkpoint(folder), with_optimizer=False)
    (data, why), lines = open_run_data(checkpoint, folder), read_run(folder).lines
    passes = None if data is None else run_passes(checkpoint, data, 1e6, 0.0)
    found = (
        samples_section(lines),
        gradients_section(checkpoint, passes),
        tokens_section(checkpoint, data),
        passages_section(checkpoint, data, why),
        cost_section(checkpoint, passes, lines),
    )
    return {section.id: section for section in found if section is not None}


def test_a_runs_sections_are_there_and_without_its_data_those_that_need_none(tmp_path, no_picture):
    assert begin(tmp_path / "run", "--max-iters=4", "--sample-tokens=5") == 0
    found = computed_sections(tmp_path / "run")
    assert [*found] == ["samples", "gradients", "tokens", "passages", "cost"]
    assert UPDATE in found["cost"].html and "passage" in found["passages"].html
    (tmp_path / "text.txt").unlink()
    found = computed_sections(tmp_path / "run")
    assert [*found] == ["samples", "tokens", "passages", "cost"]
    assert "is not to be found" in found["passages"].html and "left out" in found["cost"].html


def test_a_run_on_pairs_has_its_sections(tmp_path, no_picture):
    (tmp_path / "text.txt").write_text(PAIRS, "utf-8")
    flags = "--task=seq2seq", "--sampler=uniform", "--max-iters=4", "--sample-tokens=50"
    assert begin(tmp_path / "run", *flags) == 0
    found = computed_sections(tmp_path / "run")
    assert [*found] == ["samples", "gradients", "tokens", "passages", "cost"]
    assert found["passages"].title == "Worst and best answers"
