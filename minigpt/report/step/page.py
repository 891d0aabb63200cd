"""The walk through a step as a page: both passes side by side, and where a number is from."""

import ast
import functools
from pathlib import Path

from minigpt.cli import plural
from minigpt.report.page import Section, escape, matrix, note, paragraph, table, write_page
from minigpt.report.step.numbers import aligned, digits, scale_of
from minigpt.report.step.pictures import line_of
from minigpt.report.step.recorder import PACKAGE

ROWS, COLUMNS = 32, 72  # of a matrix that are shown
POINT, DIGIT = "\u2008", "\u2007"  # spaces as wide as a point, as a digit
HOW = (
    "Point at a number, or go to a matrix with Tab and to its numbers with the arrow keys: the "
    "numbers that it is made of are marked. Blue is above 0, orange below; strong is large."
)


def write_walk(path, walk):
    """Write the page of a Walk to a file, whole or not at all; return its size in bytes.

    Raises
    ------
    UserError
        If it cannot be written.
    """
    sections = [sentence_section(walk)]
    for n, stage in enumerate((*walk.stages, *walk.closing), 1):
        sections.append(Section(f"step-{n}", f"{n}. {stage.title}", stage_html(stage)))
    return write_page(Path(path), "One training step", sections, paragraph(walk.intro[0]))


def sentence_section(walk):
    """Return the first section: ids, contexts and targets, the model, how the page is read."""
    head = "context", "target", "reads", "and is to say"
    rows = [[*row] for row in walk.examples]
    parts = [*map(paragraph, walk.intro[1:]), table(head, rows, "contexts and targets")]
    data = {}
    for stage in (*walk.stages, *walk.closing):
        for shown in filter(None, (stage.forward, stage.backward)):
            for picture in shown.pictures:
                factor = scale_of(picture.values).factor
                data[f"{stage.key}.{picture.name}"] = {
                    "name": picture.name,
                    "factor": f" {factor}" * bool(factor),
                    "columns": picture.first_columns(COLUMNS),
                    "from": {key: [*spec] for key, spec in picture.origins.items()},
                }
    html = "".join(parts) + paragraph(HOW)
    return Section("sentence", "The sentence", html, data, "step.js")


def stage_html(stage):
    """Return a stage: its passes side by side, where there is room."""
    if stage.backward is None:
        return pass_html(stage, stage.forward, "")
    ways = ("Forward", stage.forward), ("Backward", stage.backward)
    both = "".join(pass_html(stage, shown, heading) for heading, shown in ways)
    return f'<div class="passes">{both}</div>\n'


def pass_html(stage, shown, heading):
    """Return a pass: the op with its file, formulas, shapes, matrices, an example, and the code."""
    formulas = escape("\n".join(shown.formulas))
    pictures = "".join(picture_html(f"{stage.key}.{p.name}", p) for p in shown.pictures)
    return "".join(
        (
            '<div class="pass">',
            f"<h3>{heading}</h3>" * bool(heading),
            f"<p><code>{escape(shown.call.name)}</code> in <code>{escape(shown.place)}</code></p>",
            f'<pre class="formula">{formulas}</pre>',
            f'<p class="quiet">{escape(shown.shapes)}</p>',
            *map(paragraph, shown.notes),
            f'<div class="pictures">{pictures}</div>',
            f'<p class="example mono">{escape(shown.example)}</p>' * bool(shown.example),
            f"<details><summary>The code of {escape(shown.call.name)}</summary>"
            f"<pre>{escape(code_of(shown.call.file, line_of(shown.call)))}</pre></details>",
            "</div>\n",
        )
    )


def picture_html(key, picture):
    """Return a matrix whose digits are those of the terminal."""
    scale, columns = scale_of(picture.values), picture.first_columns(COLUMNS)
    values = picture.values[:ROWS, columns]
    texts = [[as_html(aligned(digits(x, scale), scale)) for x in row] for row in values]
    shape = " x ".join(map(str, picture.values.shape))
    facts = ", ".join(filter(None, (f"{picture.name} ({shape})", scale.factor, picture.note)))
    rows = picture.rows[:ROWS]
    shown = matrix(values, facts, rows, [picture.columns[j] for j in columns], texts=texts)
    left = {"rows": len(picture.rows) - len(rows), "columns": len(picture.columns) - len(columns)}
    more = " and ".join(plural(n, f"more {what}") for what, n in left.items() if n)
    return f'<div data-picture="{escape(key)}">{shown}{note(more) * bool(more)}</div>'


def as_html(text):
    """Return digits as they stand in a page: a true minus, spaces of the digits' width."""
    text = text.replace("-inf", "-\u221e").replace("-", "\u2212")
    whole = text.rstrip(" ")
    spaces = len(text) - len(whole)
    return whole + (POINT + DIGIT * (spaces - 1) if spaces else "")


@functools.cache
def code_of(file, line):
    """Return the source of the function that begins in that line, without its docstring."""
    text = (PACKAGE.parent / file).read_text("utf-8")
    lines = text.splitlines()
    function = next(
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.lineno == line
    )
    first = function.body[1] if ast.get_docstring(function) else function.body[0]
    head = lines[line - 1 : function.body[0].lineno - 1]
    comment = first.lineno - 1
    while lines[comment - 1].lstrip().startswith("#"):
        comment -= 1
    return "\n".join([*head, *lines[comment : function.end_lineno]])
