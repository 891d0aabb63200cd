"""What is shown of a step: the numbers of the passes, ops that exist, formulas of theirs."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minigpt.errors import UserError
from minigpt.report.step.record import TINY, record_step
from minigpt.report.step.stages import stages_of
from minigpt.report.step.walk import walk_of
from tests.report.step.oracle import matrices

ROOT = Path(__file__).parents[3]


def test_every_matrix_is_what_plain_numpy_makes_of_the_weights(step, passes):
    expected = matrices(step, head=1)
    for (stage, way), shown in passes.items():
        for picture in shown.pictures:
            matrix = expected.pop((stage, way, picture.name))
            top = np.abs(matrix[np.isfinite(matrix)]).max()
            np.testing.assert_allclose(
                *(picture.values, matrix),
                rtol=0,
                atol=2e-5 * top,
                err_msg=f"{stage} {picture.name}",
            )
            assert matrix.shape == (len(picture.rows), len(picture.columns))
    assert expected == {}


def test_gradients_of_weights_are_the_models_to_the_last_bit(step, passes):
    attn, part = step.grads["h"][0]["attn"], slice(4, 8)
    shown = {key: {p.name: p.values for p in x.pictures} for key, x in passes.items()}
    assert (shown["qkv", "backward"]["dw"] == attn["c_attn"]["w"][:, part]).all()
    assert (shown["update", "forward"]["g"] == attn["c_attn"]["w"][:, part]).all()
    after = step.after["h"][0]["attn"]["c_attn"]["w"][:, part]
    assert (shown["update", "forward"]["p'"] == after).all()
    assert (shown["c_proj", "backward"]["dw"] == attn["c_proj"]["w"]).all()
    rows = np.unique(step.targets)
    assert (shown["logits", "backward"]["dw"] == step.grads["lm_head"]["w"][rows]).all()
    rows = np.unique(step.ids)
    assert (shown["embedding", "backward"]["dwte"] == step.grads["wte"][rows]).all()


def test_the_future_gets_no_weight_and_no_gradient_at_all(step, passes):
    future = np.triu(np.ones((step.ids.size,) * 2, bool), 1)
    (s,), (w,) = passes["mask", "forward"].pictures, passes["softmax", "forward"].pictures
    (ds,) = passes["mask", "backward"].pictures
    assert (s.values[future] == -np.inf).all() and (w.values[future] == 0).all()
    assert (ds.values[future] == 0).all()


def test_every_op_is_where_the_walk_says(passes):
    for shown in passes.values():
        file, _, line = shown.place.partition(":")
        text = (ROOT / file).read_text("utf-8").splitlines()[int(line) - 1]
        assert text.startswith(f"def {shown.call.name}("), shown.place


def test_every_formula_stands_in_the_file_of_its_op(passes):
    for shown in passes.values():
        text = " ".join((ROOT / shown.call.file).read_text("utf-8").split())
        for formula in shown.formulas:
            assert formula in text, formula


def test_every_example_is_right(passes):
    """What stands right of the first "=" can be pasted into Python."""
    names = {"exp": math.exp, "sqrt": math.sqrt}
    examples = [x.example for x in passes.values() if x.example]
    assert len(examples) > 20
    for example in examples:
        _, sums, result = example.split(" = ")
        found, x = eval(sums, names), float(result)
        assert found == pytest.approx(x, rel=5e-3, abs=5e-4), example


def test_every_origin_is_a_matrix_with_these_rows_and_columns(passes):
    pictures = [(f"{key}.{p.name}", p) for (key, _), x in passes.items() for p in x.pictures]
    shown, links = dict(pictures), 0
    assert len(shown) == len(pictures)
    for picture in shown.values():
        for key, spec in picture.origins.items():
            source, links = shown[key], links + 1
            for size, where in zip(source.values.shape, spec, strict=True):
                if where in ("i", "j"):
                    assert size == picture.values.shape["ij".index(where)], (picture.name, key)
                elif where != "all":
                    assert len(where) == picture.values.shape[0]
                    assert max(map(max, where)) < size, (picture.name, key)
    assert links > 40


def test_blocks_have_stages_of_their_own(tokenizer):
    step = record_step("Beer", tokenizer, config=replace(TINY, n_layer=2, n_head=1, n_embd=4))
    stages = stages_of(step)
    keys = [stage.key for stage in stages]
    assert len(set(keys)) == len(keys) and {"h.0.softmax", "h.1.softmax"} < {*keys}
    first, last = (s for s in stages if s.key.endswith("softmax"))
    w = [call["w"][0, 0] for call in step.both.all("attention_forward")]
    assert (first.forward.pictures[0].values == w[0]).all()
    assert (last.forward.pictures[0].values == w[1]).all()
    ds = [call.result[0, 0] for call in step.both.all("softmax_backward")]  # the last block first
    assert (last.backward.pictures[0].values == ds[0]).all()
    assert (first.backward.pictures[0].values == ds[1]).all()


def test_a_head_that_is_not_there(step):
    with pytest.raises(UserError, match="head is 2, but the model has heads 0 to 1"):
        walk_of(step, "a text", head=2)


def test_contexts_and_targets_are_those_of_the_sentence(walk, step):
    ids = step.tokens
    assert len(walk.examples) == len(ids) - 1
    context, target, text, next_text = walk.examples[2]
    assert (context, target) == (" ".join(map(str, ids[:3])), str(ids[3]))
    assert (text, next_text) == ("'Bee'", "'3'")
    assert re.search(r"encode\('Bee3 we'\) = \[.*\] +minigpt/data/characters.py:\d+", walk.intro[1])
