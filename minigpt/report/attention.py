"""Attention maps of a trained model: `minigpt attention --out-dir DIR --prompt TEXT`.

One map per layer and head, as text in the terminal and as a picture. Rows are queries, columns are
keys, and each row of weights sums to 1. Of a GPT it is causal self-attention over the prompt. Of an
encoder-decoder it is, by --kind,

    cross      the answer (rows) aligned with the prompt (columns)
    encoder    self-attention over the prompt
    decoder    causal self-attention over the answer
"""

import shutil
import sys
import warnings
from dataclasses import dataclass

from minigpt import backend, cli
from minigpt.data.tokenizers import display_width, pad, visible
from minigpt.errors import UserError
from minigpt.sample.answers import END, MAP_KINDS
from minigpt.sample.command import CheckpointConfig
from minigpt.sample.tasks import task_of

SHADES = " .:-=+*#%@"  # by the square root of the weight: a blank is below 0.01, @ from 0.81
CELL, PANEL, FIGURE = 0.17, 2.0, 60.0  # inches: of a weight, at least a head, at most all


@dataclass(frozen=True)
class AttentionConfig(CheckpointConfig):
    """Attention maps."""

    prompt: str = cli.option("", "text that the model reads")
    kind: str = cli.option("cross", "which attention of an encoder-decoder", MAP_KINDS)
    layer: int | None = cli.option(None, "show this layer only, counted from 0")
    head: int | None = cli.option(None, "show this head only, counted from 0")
    picture: str = cli.option("attention.png", "file for the picture", metavar="FILE", path=True)


def as_text(weights, rows, columns, title, width):
    """Return a map as lines of text: a character per weight, and the columns' tokens above.

    A token that takes more than one column of the terminal is a ? there.

    Parameters
    ----------
    weights : (Tq, Tk) float
    rows, columns : lists of str
        Labels of tokens.
    title : str
    width : int
        Characters in a line; where they are too few, one line says so.
    """
    names = [visible(label) for label in rows]
    margin = max(map(display_width, names))
    size = margin + 1 + len(columns)
    if size > width:
        return [title, f"({size} characters wide: too wide for text)"]
    top = "".join(c if c == " " or display_width(visible(c)) == 1 else "?" for c in columns)
    lines = [f"{title:{size}}", " " * (margin + 1) + top]
    for name, row in zip(names, weights.tolist(), strict=True):
        shades = "".join(SHADES[min(int(len(SHADES) * w**0.5), len(SHADES) - 1)] for w in row)
        lines.append(" " * (margin - display_width(name)) + f"{name} {shades}")
    return lines


def put_side_by_side(texts, width):
    """Return texts, lists of lines, beside each other as far as the width allows."""
    size = max(display_width(line) for text in texts for line in text) + 3
    n, lines = max(1, width // size), []
    for start in range(0, len(texts), n):
        group = zip(*texts[start : start + n], strict=True)
        lines += ["".join(pad(line, size) for line in row).rstrip() for row in group]
        lines.append("")
    return "\n".join(lines)


def draw_maps(panels, rows, columns, path):
    """Draw the maps as a grid, a row per layer, into a PNG file; False without matplotlib.

    Parameters
    ----------
    panels : list of lists of (title, weights (Tq, Tk))
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    size = [max(PANEL, CELL * n + 1) for n in (len(columns), len(rows))]
    scale = min(1.0, FIGURE / (size[0] * len(panels[0])), FIGURE / (size[1] * len(panels)))
    size = (scale * size[0] * len(panels[0]), scale * size[1] * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    labels = [["␣" if label == " " else visible(label) for label in x] for x in (rows, columns)]
    for axes, (title, weights) in zip(grid.flat, sum(panels, []), strict=True):
        axes.imshow(weights, cmap="viridis", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(rows)), labels[0], fontsize=8)
        axes.set_xticks(range(len(columns)), labels[1], fontsize=8)
    figure.supylabel("queries")
    figure.supxlabel("keys")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a character that the font lacks is a box
        try:
            figure.savefig(path, dpi=120, format="png")
        except OSError as error:
            raise UserError(f"--picture {path} cannot be written: {error.strerror}") from None
    return True


def select(number, count, name):
    """Return the layers or heads that an option stands for, all if it is None."""
    if number is None:
        return range(count)
    if not 0 <= number < count:
        raise UserError(f"--{name} is {number}, but the model has {name}s 0 to {count - 1}")
    return [number]


def main(argv=None, prog="minigpt attention"):
    """Show the attention weights of a trained model on a prompt."""
    parser = cli.parser(prog, main.__doc__)
    cli.add_flags(parser, AttentionConfig)
    cli.add_plain(parser)
    given = vars(parser.parse_args(argv))
    plain = given.pop("plain")
    parser.allow_one(given, "checkpoint", "out_dir")
    options = cli.build(AttentionConfig, given)
    checkpoint = options.load()
    task = task_of(checkpoint.config)
    if "kind" in given and not task.map_kinds:
        raise UserError(f"--kind is for an encoder-decoder, but this checkpoint is of {task.kind}")
    layers = select(options.layer, checkpoint.config.n_layer, "layer")
    heads = select(options.head, checkpoint.config.n_head, "head")
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    with backend.plain(plain):
        weights, rows, columns = task.maps(*model, options.prompt, options.kind, "--prompt")
    if task.map_kinds and options.kind != "encoder" and rows[-1] != END:
        unit = f"{len(rows)} {checkpoint.tokenizer.target.unit}"
        print(f"note: the answer was cut off at {unit}", file=sys.stderr)
    panels = [[(f"layer {i}, head {j}", weights[i][j]) for j in heads] for i in layers]
    width = shutil.get_terminal_size().columns
    for row in panels:
        texts = [as_text(w, rows, columns, title, width) for title, w in row]
        print(put_side_by_side(texts, width))
    if draw_maps(panels, rows, columns, options.picture):
        print(f"picture: {options.picture}")
    else:
        install = "pip install 'minigpt[plot]'"
        print(f"matplotlib is not installed, no picture: {install}", file=sys.stderr)
