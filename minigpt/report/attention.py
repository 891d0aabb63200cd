"""Attention maps of a trained model: `minigpt attention --out-dir DIR --prompt TEXT`.

One map per layer and head, as text in the terminal and as a picture. Rows are queries, columns are
keys, and each row of weights sums to 1. Of a GPT it is causal self-attention over the prompt. Of an
encoder-decoder it is, by --kind,

    cross      the answer (rows) aligned with the prompt (columns)
    encoder    self-attention over the prompt
    decoder    causal self-attention over the answer
"""

import math
import shutil
from dataclasses import dataclass

from minigpt import backend, cli
from minigpt.cli.characters import display_width, pad, visible
from minigpt.errors import UserError
from minigpt.interchange.command import CheckpointConfig, parse
from minigpt.report.picture import NoPicture, check_picture, drawing, fonts_for, save
from minigpt.sample.answers import END, MAP_KINDS
from minigpt.sample.tasks import task_of

SHADES = " .:-=+*#%@"  # by the square root of the weight: a blank is below 0.01, @ from 0.81
CELL, PANEL, PAGE = 0.17, 2.0, (16.0, 12.0)  # inches: of a weight, at least a head, at most all
LABEL, SMALLEST = 8, 2  # points: of a label, and in a picture that was made smaller to fit the page
DPI, MAX_DPI = 120, 300
FEW = 20  # characters that a note lists


@dataclass(frozen=True)
class AttentionConfig(CheckpointConfig):
    """Attention maps."""

    prompt: str = cli.option("", "text that the model reads")
    kind: str = cli.option("cross", "which attention of an encoder-decoder", MAP_KINDS)
    layer: int | None = cli.option(None, "show this layer only, counted from 0")
    head: int | None = cli.option(None, "show this head only, counted from 0")
    picture: str = cli.option(
        "attention.png", "file for the picture: .png, .svg or .pdf", metavar="FILE", path=True
    )


def as_text(weights, rows, columns, title, width):
    """Return a map as lines of text: a character per weight, and the columns' tokens above.

    A token that is wide, as Chinese is, has a column as wide. One that is wider is a ? there.

    Parameters
    ----------
    weights : (Tq, Tk) float
    rows, columns : lists of str
        Labels of tokens.
    title : str
    width : int
        Columns of the terminal; where they are too few, one line says so.
    """
    names = [visible(label) for label in rows]
    tops = [c if c == " " else visible(c) for c in columns]
    tops = [top if display_width(top) <= 2 else "?" for top in tops]
    widths = [*map(display_width, tops)]
    margin = max(map(display_width, names)) + 1
    size = margin + sum(widths)
    if size > width:
        return [title, f"({size} columns wide: too wide for text)"]
    lines = [pad(title, size), " " * margin + "".join(tops)]
    for name, row in zip(names, weights.tolist(), strict=True):
        shades = (SHADES[min(int(len(SHADES) * w**0.5), len(SHADES) - 1)] for w in row)
        cells = "".join(shade * n for shade, n in zip(shades, widths, strict=True))
        lines.append(" " * (margin - 1 - display_width(name)) + f"{name} {cells}")
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


def show_maps(panels, rows, columns):
    """Print the maps, a list of layers with a list of (title, weights) of heads each."""
    width = shutil.get_terminal_size().columns
    for heads in panels:
        texts = [as_text(weights, rows, columns, title, width) for title, weights in heads]
        print(put_side_by_side(texts, width))


def draw_maps(panels, heads, rows, columns, path):
    """Draw the maps as a grid that fits a page; return the characters that no font has.

    Labels are left out where they would be too small to read.

    Parameters
    ----------
    panels : list of (title, weights (Tq, Tk))
        By layer, then by head.
    heads : int
        Of each layer.
    rows, columns : lists of str
        Labels of tokens.
    path : str

    Raises
    ------
    NoPicture
    """
    labels = [["␣" if label == " " else visible(label) for label in x] for x in (rows, columns)]
    with drawing() as Figure:
        families, missing = fonts_for(set("".join(map("".join, labels))))
        labels = [
            ["".join(ascii(c)[1:-1] if c in missing else c for c in s) for s in x] for x in labels
        ]
        panel = [max(PANEL, CELL * n + 1) for n in (len(columns), len(rows))]
        n = grid_columns(len(panels), heads, panel)
        size = panel[0] * n, panel[1] * math.ceil(len(panels) / n)
        scale = min(1.0, PAGE[0] / size[0], PAGE[1] / size[1])
        figure = Figure(figsize=[scale * x for x in size], layout="constrained")
        grid = figure.subplots(math.ceil(len(panels) / n), n, squeeze=False)
        style = {"fontsize": LABEL * scale, "fontfamily": families, "parse_math": False}
        for axes, (title, weights) in zip(grid.flat, panels, strict=False):
            axes.imshow(weights, cmap="viridis", vmin=0, vmax=1)
            axes.set_title(title, fontsize=max(SMALLEST, 9 * scale))
            if style["fontsize"] >= SMALLEST:
                axes.set_yticks(range(len(rows)), labels[0], **style)
                turned = 90 if max(map(len, labels[1])) > 2 else 0
                axes.set_xticks(range(len(columns)), labels[1], rotation=turned, **style)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.supylabel("queries")
        figure.supxlabel("keys")
        save(figure, path, dpi=min(DPI / scale, MAX_DPI))
    return missing


def grid_columns(count, heads, panel):
    """Return how many panels a row of the grid has: the grid is nearest to the page's shape.

    A row holds whole layers, or a layer whole rows.

    Parameters
    ----------
    count : int
        Panels.
    heads : int
        Panels of a layer.
    panel : (width, height)
    """
    whole = [n for n in range(1, count + 1) if n % heads == 0 or heads % n == 0]
    shape = PAGE[0] / PAGE[1]

    def distance(n):
        return abs(math.log(panel[0] * n / (panel[1] * math.ceil(count / n)) / shape))

    return min(whole, key=distance)


def select(number, count, name):
    """Return the layers or heads that an option stands for, all if it is None."""
    if number is None:
        return range(count)
    if not 0 <= number < count:
        raise UserError(f"--{name} is {number}, but the model has {name}s 0 to {count - 1}")
    return [number]


def note_end(written, unit):
    """Say so if an answer, labels of its tokens, has no end."""
    if written[-1] != END:
        cli.note(f"the answer was cut off at {len(written)} {unit}")


def main(argv=None, prog="minigpt attention"):
    """Show the attention weights of a trained model on a prompt.

    Rows are queries and columns are keys. The signs " .:-=+*#%@" stand for weights from 0 to 1, the
    last for the largest. A ? above a column is a token that is too wide for it.
    """
    parser = cli.parser(prog, main.__doc__)
    given, plain = parse(parser, argv, AttentionConfig)
    options = cli.build(AttentionConfig, given)
    asked = "picture" in given
    if asked:  # what is wrong with it is said before the work
        check_picture(options.picture)
    checkpoint = options.load()
    task = task_of(checkpoint.config)
    if "kind" in given and not task.map_kinds:
        raise UserError(f"--kind is for an encoder-decoder, but this checkpoint is of {task.kind}")
    layers = select(options.layer, checkpoint.config.n_layer, "layer")
    heads = select(options.head, checkpoint.config.n_head, "head")
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    with backend.plain(plain):
        weights, rows, columns = task.maps(*model, options.prompt, options.kind, "--prompt")
    if task.map_kinds and options.kind != "encoder":
        note_end(rows, checkpoint.tokenizer.target.unit)
    panels = [[(f"layer {i}, head {j}", weights[i][j]) for j in heads] for i in layers]
    show_maps(panels, rows, columns)
    try:
        missing = draw_maps(sum(panels, []), len(heads), rows, columns, options.picture)
    except NoPicture as why:
        if asked:
            raise UserError(f"--picture {options.picture}: {why}") from None
        cli.note(f"no picture: {why}")
        return
    print(f"picture: {cli.printable(options.picture)}")
    if missing:
        chars = " ".join(sorted(missing)[:FEW])
        cli.note(
            f"no font here has {chars}{' and others' * (len(missing) > FEW)}: escapes in the "
            "picture; install one, such as Noto Sans CJK"
        )
