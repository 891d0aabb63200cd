"""The walk through a step as text: 80 columns, numbers that can be checked, shades or colours."""

from minigpt.cli import plural
from minigpt.cli.characters import display_width, pad, wrap
from minigpt.report.attention import SHADES
from minigpt.report.step.numbers import aligned, digits, scale_of, share

WIDTH = 80
ROOM = 8  # rows and columns of a matrix that are shown
GAP = 1  # columns between matrices side by side, which are indented
LEGENDS = {
    True: "Blue is above 0, orange below; the deeper, the larger in its matrix.",
    False: f"Signs beside a matrix, from '{SHADES[0]}' to '{SHADES[-1]}', show how large its "
    "numbers are; a minus stands in the digits alone.",
}
# Of xterm's 256: by size, of negative and of positive numbers; black on them. As in the page.
COLOURS = {-1: (223, 216, 209, 202), 1: (153, 111, 75, 39)}


def lines_of(stage, way, number, colours):
    """Return a stage's forward or backward pass as lines.

    Parameters
    ----------
    stage : Stage
    way : str
        "forward", "backward", or "" where there is one way only.
    number : str
        Of the stage.
    colours : bool
        Whether the terminal has some.
    """
    shown = stage.backward if way == "backward" else stage.forward
    head = f"{number}. {stage.title}"
    line = f"{head} {'-' * (WIDTH - display_width(head) - len(way) - 2)} {way}".rstrip()
    lines = [f"\x1b[1m{line}\x1b[0m" if colours else line]
    place = f"{shown.place}  {shown.call.name}"
    lines += [f"  {place}", *(f"  {formula}" for formula in shown.formulas)]
    lines += fill(shown.shapes)
    for text in shown.notes:
        lines += fill(text)
    lines.append("")
    lines += side_by_side([matrix_lines(p, colours) for p in shown.pictures])
    if shown.example:
        lines += fill(f"by hand: {shown.example}")
    return [*lines, ""] if lines[-1] else lines


def fill(text, first="  ", rest="    "):
    """Return a text as lines, with what the first and the others begin with.

    As textwrap's, but that a wide character takes two columns.
    """
    lines, line = [], first
    for word in text.split():
        for part in wrap(word, WIDTH - 1 - len(rest)):
            if line.strip() and display_width(f"{line} {part}") >= WIDTH:
                lines.append(line)
                line = rest
            line += " " * bool(line.strip()) + part
    return [*lines, line]


def side_by_side(blocks):
    """Return blocks, (lines above, lines) each, beside each other as far as there is room."""
    rows, room = [], 0
    for block in blocks:
        width = max(map(seen_width, sum(block, [])))
        if not rows or width > room:
            rows.append([])
            room = WIDTH
        rows[-1].append((width, *block))
        room -= width + GAP
    lines = []
    for row in rows:
        above, below = (max(len(block[i]) for block in row) for i in (1, 2))
        parts = [(width, filled(a, above) + filled(b, below)) for width, a, b in row]
        for i in range(above + below):
            line = (" " * GAP).join(x[i] + " " * (width - seen_width(x[i])) for width, x in parts)
            lines.append(line.rstrip())
        lines.append("")
    return lines


def filled(lines, n):
    """Return lines with empty ones below, n in all."""
    return lines + [""] * (n - len(lines))


def matrix_lines(picture, colours):
    """Return the lines above a matrix, and those of its labels and numbers."""
    scale, values = scale_of(picture.values), picture.values
    rows, room = range(min(ROOM, len(picture.rows))), ROOM + 1
    margin = 2 + max(display_width(picture.rows[i]) for i in rows)
    size = WIDTH + 1
    while size > WIDTH:  # of escapes as labels fewer fit
        room -= 1
        columns = picture.columns_within(room)
        texts = [[aligned(digits(values[i, j], scale), scale) for j in columns] for i in rows]
        names = [picture.columns[j] for j in columns]
        cell = 1 + max(map(display_width, [*names, *sum(texts, [])]))
        size = margin + cell * len(columns)
    shades = not colours and len(columns) > 1 and size + 2 + len(columns) <= WIDTH
    above, lines = heading(picture, scale, size + shades * (2 + len(columns))), []
    if any(names):
        lines.append(" " * margin + "".join(" " * (cell - display_width(n)) + n for n in names))
    for i, row in zip(rows, texts, strict=True):
        parts = [share(values[i, j], values) for j in columns]
        cells = [
            painted(f"{x:>{cell - 1}}", colours * part) for x, part in zip(row, parts, strict=True)
        ]
        line = "".join([pad("  " + picture.rows[i], margin), *(f" {text}" for text in cells)])
        lines.append(line + shades * ("  " + "".join(map(shade, parts))))
    left = {"rows": len(picture.rows) - len(rows), "columns": len(picture.columns) - len(columns)}
    more = [plural(n, f"more {what}") for what, n in left.items() if n]
    lines += [f"    ... {' and '.join(more)}"] * bool(more)
    return above, lines


def heading(picture, scale, width):
    """Return the lines above a matrix: its name, its shape and what it is; two if it is narrow."""
    shape = " x ".join(map(str, picture.values.shape))
    first = f"  {picture.name} ({shape})" + f" {scale.factor}" * bool(scale.power)
    both = f"{first}  {picture.note}"
    if not picture.note or display_width(both) <= width:
        return [both.rstrip()]
    return [first, f"  {picture.note}"]


def painted(text, part):
    """Return a text on the colour for a size from -1 to 1; the smallest have none."""
    level = int(abs(part) * (len(COLOURS[1]) + 0.999))
    if not level:
        return text
    return f"\x1b[38;5;16;48;5;{COLOURS[1 if part > 0 else -1][level - 1]}m{text}\x1b[0m"


def shade(part):
    """Return the sign for a size from 0 to 1: its square root, as in attention maps."""
    return SHADES[min(int(len(SHADES) * abs(part) ** 0.5), len(SHADES) - 1)]


def seen_width(line):
    """Return the columns that a line takes in a terminal, which does not show colours' codes."""
    seen = "".join(
        part.partition("m")[2] if i else part for i, part in enumerate(line.split("\x1b["))
    )
    return display_width(seen)


def walk_lines(walk, colours):
    """Return the whole walk as lines: what goes in, forward, backward, the step.

    Parameters
    ----------
    walk : Walk
    colours : bool
        Whether the terminal has some.
    """
    lines = [*intro_lines(walk), *fill(LEGENDS[colours], "", ""), ""]
    lines += banner("FORWARD, downwards")
    numbered = [(f"{n}", stage) for n, stage in enumerate(walk.stages, 1)]
    for number, stage in numbered:
        lines += lines_of(stage, "forward", number, colours)
    lines += banner("BACKWARD, upwards through the same pictures")
    for number, stage in reversed(numbered):
        if stage.backward is not None:
            lines += lines_of(stage, "backward", number, colours)
    lines += banner("THE STEP")
    for n, stage in enumerate(walk.closing, len(numbered) + 1):
        lines += lines_of(stage, "", f"{n}", colours)
    return lines


def banner(text):
    """Return the lines that begin a part of the walk."""
    return ["=" * WIDTH, text, "=" * WIDTH, ""]


def intro_lines(walk):
    """Return the lines on the sentence, its ids and what is to be predicted, and the model."""
    lines = []
    for paragraph in walk.intro:
        lines += fill(paragraph, "", "")
    shown = walk.examples[:ROOM]
    cells = [[*map(str, row)] for row in shown]
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    lines += ["", "  context -> target: token ids, and the text that they stand for"]
    for row in cells:
        a, b, c, d = map(pad, row, widths)
        lines.append(f"    {a} -> {b}   {c} -> {d}".rstrip())
    left = len(walk.examples) - len(shown)
    lines += [f"    ... and {left:,} more"] * bool(left)
    return [*lines, ""]
