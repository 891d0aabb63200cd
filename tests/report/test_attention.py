"""The pictures of attention: what they show, and the command."""

import sys

import numpy as np
import pytest

from minigpt import cli
from minigpt.backend import is_plain
from minigpt.errors import UserError
from minigpt.model.blocks import block_weights, cross_block_forward
from minigpt.model.checkpoint import load
from minigpt.model.gpt import gpt_forward
from minigpt.ops.attention import attention_forward
from minigpt.report.attention import AttentionConfig, as_text, main, put_side_by_side
from minigpt.sample.answers import START
from minigpt.sample.tasks import task_of
from tests.model.test_blocks import MASK, N_HEAD, C, cross_block
from tests.sample.test_sample import write_checkpoint
from tests.sample.test_sample_seq2seq import checkpoint as seq2seq_checkpoint  # noqa: F401


def attention_maps(checkpoint, prompt, *kind):
    """The maps of whichever task the checkpoint is of."""
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    return task_of(checkpoint.config).maps(*model, prompt, *kind)


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def gpt(tmp_path):
    """Path of a GPT of 2 layers, 2 heads, block_size 8."""
    write_checkpoint(tmp_path / "best.safetensors")
    return tmp_path / "best.safetensors"


@pytest.fixture
def seq2seq(seq2seq_checkpoint):  # noqa: F811
    return seq2seq_checkpoint[0]


@pytest.mark.parametrize("T", [5, 150])
def test_weights_of_the_op(rng, T):
    q, k, v = rng.standard_normal((3, 2, 2, T, 4))
    y, cache = attention_forward(q, k, v, causal=True)
    w = cache.w
    assert w.shape == (2, 2, T, T) and not np.triu(w, 1).any()
    np.testing.assert_allclose(w.sum(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(w @ v, y, atol=1e-12)


def test_weights_of_a_block(rng):
    (x, h), memory = rng.standard_normal((2, 2, 4, C)), rng.standard_normal((2, 3, C))
    p = cross_block(rng)
    _, _, cache = cross_block_forward(x, h, memory, p, N_HEAD, "gelu", key_mask=MASK)
    weights = block_weights(cache)
    assert weights["self"].shape == (2, N_HEAD, 4, 4)
    assert weights["cross"].shape == (2, N_HEAD, 4, 3)
    assert not weights["cross"].swapaxes(1, 3)[~MASK].any()


def test_maps_of_a_gpt(gpt):
    weights, rows, columns = attention_maps(load(gpt), "ab cd")
    assert rows == columns == ["a", "b", " ", "c", "d"]
    assert [w.shape for w in weights] == [(2, 5, 5)] * 2
    for w in weights:
        assert not np.triu(w, 1).any() and np.tril(w).any(axis=-1).all()
        np.testing.assert_allclose(w.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["cross", "encoder", "decoder"])
def test_maps_of_an_encoder_decoder(seq2seq, kind):
    ((w,), rows, columns) = attention_maps(load(seq2seq), "ab c", kind)
    prompt = ["a", "b", " ", "c"]
    assert w.shape == (2, len(rows), len(columns))
    np.testing.assert_allclose(w.sum(axis=-1), 1, rtol=1e-5)
    assert (rows == prompt) == (kind == "encoder")
    assert columns == ([START, *rows[:-1]] if kind == "decoder" else prompt)
    assert np.triu(w, 1).any() == (kind != "decoder")


@pytest.mark.cupy
def test_maps_on_the_backend(gpt, seq2seq, xp):
    for path in (gpt, seq2seq):
        found, expected = (attention_maps(load(path, module), "ab c")[0] for module in (xp, np))
        assert all(isinstance(w, np.ndarray) for w in found)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_map_as_text():
    weights = np.array([[1.0, 0.0, 0.0], [0.35, 0.65, 0.0], [0.009, 0.011, 0.98]])
    assert as_text(weights, ["a", " ", "end"], ["a", " ", "\n"], "title", 80) == [
        "title  ",
        "    a ?",
        "  a @  ",
        "' ' +% ",
        "end  .@",
    ]
    # 漢 takes two columns of a terminal, and has none above.
    assert as_text(weights, ["漢", "b", "c"], ["漢", "b", "c"], "title", 80) == [
        "title ",
        "   ?bc",
        "漢 @  ",
        " b +% ",
        " c  .@",
    ]
    assert as_text(weights, "abc", "abc", "title", 4) == [
        "title",
        "(5 characters wide: too wide for text)",
    ]


def test_texts_stand_put_side_by_side():
    texts = [[f"{i}a", f"{i}b"] for i in range(3)]
    assert put_side_by_side(texts, 12) == "0a   1a\n0b   1b\n\n2a\n2b\n"
    assert put_side_by_side(texts, 1) == "0a\n0b\n\n1a\n1b\n\n2a\n2b\n"


def test_the_command_prints_and_draws(gpt, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.png"
    main(["--checkpoint", str(gpt), "--prompt", "ab cd", "--picture", str(picture)])
    out = capsys.readouterr().out
    assert picture.read_bytes()[:8] == PNG
    assert [f"layer {i}, head {j}" in out for i in range(3) for j in range(3)] == (
        [True, True, False] * 2 + [False] * 3
    )
    assert out.endswith(f"picture: {picture}\n")
    one = ["--layer", "1", "--head", "0", "--picture", str(picture)]
    main(["--out-dir", str(gpt.parent), "--prompt", "a\nb", *one])
    out = capsys.readouterr().out
    assert "layer 1, head 0" in out and "layer 0" not in out and "head 1" not in out


def test_with_plain_the_ops_run_as_they_are_written(gpt, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    seen = []

    def record(*args):
        seen.append(is_plain())
        return gpt_forward(*args)

    monkeypatch.setattr("minigpt.sample.text.gpt_forward", record)
    for flags in (["--plain"], []):
        main(["--checkpoint", str(gpt), "--prompt", "ab", *flags])
    assert seen == [True, False]


def test_the_command_on_an_encoder_decoder(seq2seq, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for kind in ("cross", "encoder", "decoder"):
        main(["--checkpoint", str(seq2seq), "--prompt", "ab", "--kind", kind])
        out, err = capsys.readouterr()
        assert "layer 0, head 1" in out and "picture" not in out
        assert err.endswith(
            "matplotlib is not installed, no picture: pip install 'minigpt[plot]'\n"
        )
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--layer", "2"), "--layer is 2, but the model has layers 0 to 1"),
        (("--head", "-1"), "--head is -1, but the model has heads 0 to 1"),
        (("--kind", "cross"), "--kind is for an encoder-decoder, but this checkpoint is of a GPT"),
        (("--prompt", ""), "--prompt has 0 characters, but the model reads 1 to 8"),
        (("--prompt", "a" * 9), "--prompt has 9 characters"),
        (("--prompt", "aX"), "--prompt: 'X' at position 1"),
    ],
)
def test_bad_input(gpt, flags, message):
    with pytest.raises(UserError, match=message) as error:
        main(["--checkpoint", str(gpt), "--prompt", "a", *flags])
    assert "\n" not in str(error.value)


def test_a_picture_that_cannot_be_written(gpt):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="--picture no/such/folder.png cannot be written: No"):
        main(["--checkpoint", str(gpt), "--prompt", "a", "--picture", "no/such/folder.png"])


def test_every_option_is_explained():
    assert cli.build(AttentionConfig, {}) == AttentionConfig()
    assert all(field.metadata["help"] for field in AttentionConfig.__dataclass_fields__.values())
