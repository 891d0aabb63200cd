"""The pictures of attention: what they show, and the command."""

import sys

import numpy as np
import pytest

from minigpt import cli
from minigpt.backend import is_plain
from minigpt.cli.characters import display_width
from minigpt.errors import UserError
from minigpt.model.blocks import block_weights, cross_block_forward
from minigpt.model.checkpoint import load
from minigpt.model.gpt import gpt_forward
from minigpt.ops.attention import attention_forward
from minigpt.report.attention import (
    MAX_DPI,
    AttentionConfig,
    as_text,
    draw_maps,
    grid_columns,
    main,
    put_side_by_side,
)
from minigpt.sample.answers import START
from minigpt.sample.tasks import task_of
from tests.model.test_blocks import MASK, N_HEAD, C, cross_block
from tests.sample.test_sample import write_checkpoint
from tests.sample.test_sample_seq2seq import checkpoint as seq2seq_checkpoint  # noqa: F401
from tests.tools.training import refusal


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
    *_, cache = cross_block_forward(x, h, None, memory, p, N_HEAD, "gelu", key_mask=MASK)
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


WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.35, 0.65, 0.0], [0.009, 0.011, 0.98]])


def test_a_map_as_text():
    assert as_text(WEIGHTS, ["a", " ", "end"], ["a", " ", "end"], "title", 80) == [
        "title  ",
        "    a ?",
        "  a @  ",
        "' ' +% ",
        "end  .@",
    ]
    assert as_text(WEIGHTS, "abc", "abc", "title", 4) == [
        "title",
        "(5 columns wide: too wide for text)",
    ]


@pytest.mark.report("14")
def test_names_stand_above_their_shades_whatever_their_width():
    assert as_text(WEIGHTS, ["漢", "b", "\n"], ["漢", "b", "\n"], "title", 80) == [
        "title   ",
        "   漢b\\n",
        "漢 @@   ",
        " b ++%  ",
        "\\n   .@@",
    ]
    tokens = ["天", "😀", "\u0301", "\u1161", "\U0001f3fd", "\U0001f1e9", "ｱ", "\t"]
    lines = as_text(np.ones((8, 8)), tokens, tokens, "t", 80)
    margin = len(r"\U0001f3fd ")
    assert [display_width(line) for line in lines] == [margin + 2 + 2 + 4 + 1 + 2] * 10
    assert lines[1] == " " * margin + r"天😀????ｱ\t"
    assert all(line.endswith(" " + "@" * 11) for line in lines[2:])


@pytest.mark.report("14")
@pytest.mark.parametrize("columns", ["0", "1", "5", "20", "10000"])
def test_a_terminal_of_any_width(gpt, tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setenv("COLUMNS", columns)
    main(["--checkpoint", str(gpt), "--prompt", "ab"])
    out = capsys.readouterr().out
    assert out.count("head 1") == 2
    assert ("too wide" in out) == (columns == "1")
    lines = out.splitlines()
    if columns in ("5", "20"):
        assert {len(line) for line in lines if not line.startswith("layer")} <= {0, 3, 4}


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
            "note: no picture: matplotlib is not installed: pip install 'minigpt[plot]'\n"
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


@pytest.mark.report("31")
@pytest.mark.parametrize(
    "name, head", [("a.png", PNG), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.PNG", PNG)]
)
def test_a_picture_has_the_format_of_its_ending(gpt, tmp_path, capsys, name, head):
    pytest.importorskip("matplotlib")
    picture = tmp_path / name
    main(["--checkpoint", str(gpt), "--prompt", "a", "--picture", str(picture)])
    assert picture.read_bytes().startswith(head)
    assert [path.name for path in tmp_path.glob("a.*")] == [name]


@pytest.mark.report("31")
@pytest.mark.parametrize("name", ["", "map.gif", "no/such/map.png"])
def test_a_bad_name_is_told_before_the_work(gpt, capsys, name):
    pytest.importorskip("matplotlib")
    error = refusal(capsys, main, ["--checkpoint", str(gpt), "--prompt", "a", "--picture", name])
    assert error.startswith("error: --picture ")


@pytest.mark.report("2")
@pytest.mark.parametrize("early", [True, False])
def test_a_picture_that_fails_costs_the_exit_code_only_if_it_was_asked_for(
    gpt, tmp_path, capsys, monkeypatch, early
):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)

    def fail(*args, **kwargs):
        raise AttributeError("_ARRAY_API not found")

    where = "import_figure" if early else "save"
    monkeypatch.setattr(f"minigpt.report.{'picture' if early else 'attention'}.{where}", fail)
    flags = ["--checkpoint", str(gpt), "--prompt", "a"]
    assert main(flags) is None
    out, err = capsys.readouterr()
    assert "layer 1, head 1" in out and "picture" not in out
    assert err == "note: no picture: AttributeError: _ARRAY_API not found\n"
    with pytest.raises(UserError, match="^--picture map.png: AttributeError: _ARRAY_API not f"):
        main([*flags, "--picture", "map.png"])
    assert ("layer" in capsys.readouterr().out) == (not early)
    assert not [*tmp_path.glob("*.png")]


def drawn_labels(monkeypatch, tokens):
    """The column labels of a picture, and the characters that it says no font has."""
    figures = []
    monkeypatch.setattr(
        "minigpt.report.attention.save", lambda figure, *_, dpi: figures.append(figure)
    )
    missing = draw_maps([("t", np.eye(len(tokens)))], 1, tokens, tokens, "a.png")
    (figure,) = figures
    figure.draw_without_rendering()
    return [label.get_text() for label in figure.axes[0].get_xticklabels()], missing


@pytest.mark.report("2")
@pytest.mark.filterwarnings("error")
def test_what_no_font_has_is_an_escape_in_the_picture(monkeypatch):
    pytest.importorskip("matplotlib")
    labels, missing = drawn_labels(monkeypatch, ["a", " ", "$", "\u0301", "\U00012000"])
    assert labels == ["a", "␣", "$", r"\u0301", r"\U00012000"]
    assert missing == {"\U00012000"}


@pytest.mark.report("2")
def test_characters_that_no_font_has_are_told(gpt, capsys, monkeypatch):
    for missing, told in (
        ({"天", "地"}, "地 天: esc"),
        ({*map(chr, range(0x4E00, 0x4E20))}, "others: "),
    ):
        monkeypatch.setattr("minigpt.report.attention.draw_maps", lambda *_, found=missing: found)
        main(["--checkpoint", str(gpt), "--prompt", "a"])
        err = capsys.readouterr().err
        assert err.startswith("note: no font here has ") and told in err and err.count("\n") == 1


@pytest.mark.report("2")
@pytest.mark.filterwarnings("error")
def test_a_font_that_has_a_character_is_found(monkeypatch, tmp_path):
    font_manager = pytest.importorskip("matplotlib.font_manager")
    make_font(tmp_path / "cuneiform.ttf", 0x12000)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    font_manager.fontManager.addfont(tmp_path / "cuneiform.ttf")
    assert drawn_labels(monkeypatch, ["a", "\U00012000"]) == (["a", "\U00012000"], set())


def make_font(path, code):
    """Write a font with one character, a square, of the family Test."""
    pens, builder = (pytest.importorskip(f"fontTools.{name}") for name in PARTS)
    pen = pens.TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(point)
    pen.closePath()
    font = builder.FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({code: "square"})
    font.setupGlyf({".notdef": pen.glyph(), "square": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (600, 0), "square": (600, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


PARTS = "pens.ttGlyphPen", "fontBuilder"


@pytest.mark.parametrize(
    "count, heads, panel, columns",
    [
        (4, 2, (2, 2), 2),
        (36, 6, (2, 2), 6),
        (8, 4, (2, 11.2), 8),  # tall panels beside each other
        (8, 4, (11.2, 2), 1),
        (4, 4, (2, 2), 2),  # a layer in two rows
        (7, 7, (2, 2), 7),
        (1, 1, (2, 2), 1),
    ],
)
def test_the_grid_fits_a_page(count, heads, panel, columns):
    assert grid_columns(count, heads, panel) == columns


def test_a_large_picture_is_a_page(monkeypatch):
    pytest.importorskip("matplotlib")
    sizes = []
    monkeypatch.setattr(
        "minigpt.report.attention.save",
        lambda figure, path, dpi: sizes.append((*figure.get_size_inches(), dpi)),
    )
    panels = [(str(i), np.ones((60, 60))) for i in range(8)]
    draw_maps(panels, 4, ["a"] * 60, ["a"] * 60, "a.png")
    ((width, height, dpi),) = sizes
    assert (width, height) == pytest.approx((16, 8)) and dpi == MAX_DPI


def test_every_option_is_explained():
    assert cli.build(AttentionConfig, {}) == AttentionConfig()
    assert all(field.metadata["help"] for field in AttentionConfig.__dataclass_fields__.values())
