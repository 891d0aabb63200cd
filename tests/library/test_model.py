"""A model from Python gives what the commands and the functions give."""

import dataclasses
import threading

import numpy as np
import pytest

import minigpt
from minigpt.model import encoder_decoder, gpt
from minigpt.params import leaves
from minigpt.sample import __main__ as sample
from tests.library.runs import PAIRS, assert_equal, blas, weights


def test_a_model_shows_its_sizes_and_cannot_be_changed(model, reverser):
    assert repr(model) == (
        "<minigpt.Model: a GPT of 1,072 parameters, 1 layer, 2 heads, 8 channels, context 8, "
        "vocabulary 27, on numpy>"
    )
    assert repr(reverser).startswith("<minigpt.Model: an encoder-decoder of 2,")
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config = reverser.config


def test_a_model_that_is_saved_is_loaded_as_it_was(tmp_path, model, reverser):
    for one, prompt in ((model, "Line"), (reverser, "12")):
        one.save(tmp_path / "here")
        other = minigpt.load(str(tmp_path / "here"))
        assert (other.config, other.history) == (one.config, [])
        assert other.tokenizer.to_json() == one.tokenizer.to_json()
        assert_equal(one, other)
        assert np.array_equal(one.attention(prompt).weights, other.attention(prompt).weights)


def test_generate_writes_what_the_command_writes(tmp_path, capsys, model):
    model.save(tmp_path / "m")
    settings = {"max_new_tokens": 30, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    for prompt, stop in (("", ""), ("Line 4", ""), ("Line 4", "e")):
        capsys.readouterr()
        flags_of_text = [f"--prompt={prompt}", f"--stop={stop}"]
        sample.main([f"--checkpoint={tmp_path / 'm'}", *flags, *flags_of_text])
        text = model.generate(prompt, stop=stop, **settings)
        assert capsys.readouterr().out == prompt + text + "\n"
        assert "".join(model.stream(prompt, stop=stop, **settings)) == text
    assert model.generate("Line", 10) == model.generate("Line", 10)
    assert model.generate("Line", 10, seed=1) != model.generate("Line", 10, seed=2)


def test_stream_yields_pieces_as_they_are_made_and_checks_at_once(model):
    pieces = list(model.stream("Line", 9, temperature=1.0))
    assert all(isinstance(piece, str) and piece for piece in pieces)
    assert len("".join(pieces)) == len(pieces) == 9
    before, stream = blas(), model.stream("Line", 5)
    next(stream)
    assert blas() == before  # in between, the caller's own
    with pytest.raises(minigpt.UserError):
        model.stream("é")  # not at the first piece
    assert model.generate("Line", 0) == "" == "".join(model.stream("Line", 0))


def test_answer_gives_what_the_command_gives(tmp_path, capsys, reverser):
    reverser.save(tmp_path / "m")
    lines = [source for source, _ in PAIRS[::3]]
    for beam in (1, 3):
        capsys.readouterr()
        sample.main(
            [f"--checkpoint={tmp_path / 'm'}", f"--beam={beam}", "--prompt=" + "\n".join(lines)]
        )
        answers = reverser.answer(lines, beam=beam)
        assert "\n".join(answers) + "\n" == capsys.readouterr().out
    assert reverser.answer("12") == reverser.answer(["12"])[0] and reverser.answer([]) == []
    assert len(reverser.answer(["1"] * 200)) == 200


@pytest.mark.report("12")
def test_candidates_say_whether_they_were_cut_off(reverser):
    found = reverser.candidates("12", beam=3)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].text == reverser.answer("12", beam=3)
    of_many = reverser.candidates(["12", "3"], beam=3)[0]
    assert [one.text for one in of_many] == [one.text for one in found]
    many, full = reverser.candidates("12", beam=40), reverser.config.block_size
    assert {len(one.text) == full for one in many} == {True, False}
    assert all(one.ended == (len(one.text) < full) for one in many)


@pytest.mark.report("11")
def test_a_text_that_cannot_be_read_spoils_no_other(reverser):
    texts = ["12", "", "x", "1" * 90, "34"]
    expected = [reverser.answer("12"), None, None, None, reverser.answer("34")]
    assert reverser.answer(texts, errors="none") == expected
    assert reverser.answer("x", errors="none") is None
    assert reverser.candidates(["12", "x"], errors="none")[1] is None
    with pytest.raises(minigpt.UserError, match="^text 1 has 0 characters"):
        reverser.answer(texts)


def test_logits_are_those_of_the_functions(model):
    ids = model.tokenizer.encode("Line 12:")
    x, _ = gpt.gpt_forward(np.array([ids]), model.params.tree, model.config)
    expected = gpt.logits(x, model.params.tree)
    assert expected.shape == (1, 8, 27)
    batches = ("Line 12:", ids, np.array(ids, np.uint8), [ids], np.array([ids], np.int64))
    for form in batches:
        z = model.logits(form)
        assert type(z) is np.ndarray and z.dtype == np.float32
        np.testing.assert_array_equal(z, expected)
    assert model.logits([ids, ids, ids]).shape == (3, 8, 27)


def test_losses_and_gradients_are_those_of_the_functions(model):
    ids = np.array([model.tokenizer.encode(text) for text in ("Line 12:", "Line 13:")])
    targets = np.where(np.arange(7) == 3, -1, ids[:, 1:])
    p, config = model.params.tree, model.config
    loss, grads = gpt.loss_and_gradients(ids[:, :-1], targets, p, config)
    mine = model.loss_and_gradients(ids[:, :-1], targets)
    assert type(mine[0]) is float and mine[0] == loss == model.loss(ids[:, :-1], targets)
    assert mine[1]["h"][0]["attn"]["c_attn"]["w"].shape == (8, 24)
    expected = dict(leaves(grads))
    assert dict(leaves(mine[1])).keys() == expected.keys() == weights(model).keys()
    for name, gradient in leaves(mine[1]):
        assert type(gradient) is np.ndarray and gradient.shape == weights(model)[name].shape
        np.testing.assert_array_equal(gradient, expected[name])
    assert model.loss("Line 1", "ine 12") == model.loss(
        *(model.tokenizer.encode(t) for t in ("Line 1", "ine 12"))
    )


def test_gradients_stay_when_others_are_made(model):
    _, first = model.loss_and_gradients("Line 1", "ine 12")
    copies = {name: gradient.copy() for name, gradient in leaves(first)}
    for _ in range(3):
        model.loss_and_gradients("is 123", "s 1234")
    for name, gradient in leaves(first):
        np.testing.assert_array_equal(gradient, copies[name])


def test_losses_of_pairs_are_those_of_the_functions(reverser):
    source, targets = np.array([[1, 2, -1], [3, 4, 5]]), np.array([[2, 1, 10, -1], [5, 4, 3, 10]])
    loss, _ = encoder_decoder.loss_forward(source, targets, reverser.params.tree, reverser.config)
    assert reverser.loss(source, targets) == reverser.loss_and_gradients(source, targets)[0] == loss
    text = reverser.tokenizer.source.encode("12"), [*reverser.tokenizer.target.encode("21"), 10]
    assert reverser.loss("12", "21") == reverser.loss(*text)
    assert reverser.loss_and_gradients("12", "21")[1]["encoder"]["h"][0]["attn"]


def test_attention_is_by_layer_and_head_with_names(model, reverser):
    weights, rows, columns = model.attention("Line 1")
    assert weights.shape == (1, 2, 6, 6) and rows == columns == list("Line 1")
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert not weights[..., np.triu(np.ones((6, 6), bool), 1)].any()
    cross, encoder = (reverser.attention("12", kind) for kind in (None, "encoder"))
    assert cross.columns == encoder.rows == encoder.columns == ["1", "2"]
    assert cross.weights.shape == (1, 2, len(cross.rows), 2)


def test_models_work_side_by_side_in_threads(model, reverser):
    expected = model.generate("Line", 20), reverser.answer("12"), model.loss("Line 1", "ine 12")
    before, found = blas(), [None] * 6

    def work(i):
        found[i] = (
            model.generate("Line", 20),
            reverser.answer("12"),
            model.loss_and_gradients("Line 1", "ine 12")[0],
        )

    threads = [threading.Thread(target=work, args=[i]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 6 and blas() == before


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda m, r: r.generate("1"), "this model is an encoder-decoder: use answer"),
        (lambda m, r: r.stream("1"), "this model is an encoder-decoder: use answer"),
        (lambda m, r: r.logits("1"), "this model is an encoder-decoder: use answer, loss or"),
        (lambda m, r: m.answer("1"), "this model is a GPT: use generate"),
        (
            lambda m, r: m.generate("aé"),
            r"'é' \(U\+00E9 .*\) at position 1, counted from 0, is",
        ),
        (lambda m, r: m.generate(stop="é"), r"stop: 'é' \(.*\) at position 0"),
        (lambda m, r: m.generate(7), "prompt is 7; it must be a string"),
        (lambda m, r: m.generate(top_p=1.5), "top.p is 1.5"),
        (lambda m, r: m.generate(temperature=-1), "temperature is -1"),
        (lambda m, r: m.generate(max_new_tokens=2.5), "max_new_tokens is 2.5"),
        (lambda m, r: m.logits("Line 1234"), "ids: found 9 tokens, but the model reads at most 8"),
        (lambda m, r: m.logits("é"), r"'é' \(.*\) at position 0"),
        (lambda m, r: m.logits(""), "a model reads a text, or whole numbers"),
        (lambda m, r: m.logits([]), "a model reads a text, or whole numbers"),
        (lambda m, r: m.logits([1.5]), r"found float64 \(1,\), but a model reads"),
        (lambda m, r: m.logits([[1], [1, 2]]), "all rows of one length"),
        (lambda m, r: m.logits(np.zeros((1, 1, 1), int)), r"found int64 \(1, 1, 1\)"),
        (lambda m, r: m.logits([27]), "token id 27 is out of range: the 27 tokens have ids 0 to"),
        (lambda m, r: m.logits([0, -1]), "token id -1 is out of range"),
        (
            lambda m, r: m.loss([1, 2], [1]),
            r"shape \(1, 1\), which does not fit the shape \(1, 2\)",
        ),
        (lambda m, r: m.loss([1, 2], [-1, -1]), "targets: all are -1"),
        (lambda m, r: m.loss([1, 2], [-2, 1]), "targets: token id -2 is out of range"),
        (lambda m, r: m.attention(""), "has 0 characters, but the model reads 1 to 8"),
        (lambda m, r: m.attention("Line", "cross"), "kind is for an encoder-decoder"),
        (lambda m, r: m.attention(3), "text is 3; it must be a string"),
        (lambda m, r: r.attention("1", "across"), "kind is 'across'; choose from cross, encoder"),
        (lambda m, r: r.answer(""), "text has 0 characters, but the model reads 1 to 8"),
        (lambda m, r: r.answer("123456789"), "text has 9 characters, but the model reads 1 to 8"),
        (lambda m, r: r.answer(["1", "x"]), "text 1: 'x' at position 0"),
        (lambda m, r: r.answer(["1", 2]), "text 1 is 2; it must be a string"),
        (lambda m, r: r.answer("1", beam=0), "beam is 0"),
        (lambda m, r: r.answer("1", errors="skip"), "errors is 'skip'; choose from raise, none"),
        (lambda m, r: r.loss([-1, 1], [1]), "source: -1 is padding"),
        (lambda m, r: r.loss([1, -1, 1], [1]), "source: -1 is padding"),
        (lambda m, r: r.loss([[1], [-1]], [[1], [1]]), "source: -1 is padding"),
        (lambda m, r: r.loss([[1], [1]], [1]), "does not fit"),
        (lambda m, r: m.to("torch"), "'torch'"),
        (lambda m, r: m.save("no/such/folder/m"), "cannot save the checkpoint"),
        (lambda m, r: minigpt.load("no"), "no: there is no such file"),
        (lambda m, r: minigpt.load("."), r"no best.safetensors or last.safetensors there"),
    ],
)
def test_what_a_model_cannot_do_is_said_in_one_line(
    tmp_path, monkeypatch, model, reverser, call, sentence
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(minigpt.UserError, match=sentence) as caught:
        call(model, reverser)
    assert "\n" not in str(caught.value)


@pytest.mark.cupy
def test_a_model_moves_to_another_backend_and_back(xp, model, reverser):
    for one in (model, reverser):
        there = one.to(xp.__name__)
        assert there.backend == xp.__name__ and one.backend == "numpy"
        assert f"on {xp.__name__}" in repr(there)
        assert_equal(there.to("numpy"), one)
    ids, targets = "Line 1", "ine 12"
    there = model.to(xp.__name__)
    np.testing.assert_allclose(there.logits(ids), model.logits(ids), rtol=1e-4, atol=1e-5)
    loss, grads = there.loss_and_gradients(ids, targets)
    expected, _ = model.loss_and_gradients(ids, targets)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert all(type(gradient) is np.ndarray for _, gradient in leaves(grads))
    assert reverser.to(xp.__name__).answer("12") == reverser.answer("12")
    assert type(there.attention("Line").weights) is np.ndarray
