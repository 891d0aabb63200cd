"""The shell of a page to look at: one HTML file that needs nothing else, no network and no server.

A page is a list of sections. Whoever has something to show returns Sections; `write_page` puts them
together with page.css and page.js, and with the plotting library (Vega, of the extra `report`)
where a section has a chart.

    Section(id, title, html)               what stands under a heading; the id is its anchor
    Section(id, title, html, data, script) a section that does something: `script` is a file of this
                                           folder, `data` whatever JSON can hold. The script says
                                           page.section("id", (element, data) => {...}).
    write_page(path, title, sections)      writes the file, whole or not at all

What HTML is made of:

    escape(text)                           text as HTML; the others do this to what they get
    paragraph(text), note(text)            a paragraph; a note, of what was left out or went wrong
    facts({name: value})                   a list of names and values
    table(head, rows, caption)             a table of text and numbers
    matrix(values, caption, rows, columns) a table of coloured numbers
    chart(spec, caption)                   a chart, from a Vega-Lite spec without size and colours

For scripts, page.js has: page.keep(name, value) and page.kept(name, fallback), a choice of the user
that a reload does not lose; page.say(text), for those who hear the page; page.shade(cell, weight),
the colour of a cell of `matrix`.

Colours are CSS variables of page.css: no section names any, so that light and dark follow the
reader's system. There is no inline event handler, and no request: the page's policy forbids them.
"""

import html
import json
import math
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.cli.characters import visible
from minigpt.errors import UserError
from minigpt.files import write_atomically, writing
from minigpt.report.vega import library

POLICY = (  # no request can leave the page; Vega compiles its expressions
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)
GENERATOR = '<meta name="generator" content="minigpt">'
# Nothing to be seen, or the direction of what follows; a line feed and a tab stay.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CHART = '<figure class="chart"'


class Section(NamedTuple):
    """A part of a page under a heading of its own.

    Attributes
    ----------
    id : str
        Letters, digits and dashes.
    title : str
        Text, not HTML.
    html : str
    data : object, optional
        For `script`: whatever JSON can hold, without NaN.
    script : str
        A file of this folder, or "".
    """

    id: str
    title: str
    html: str
    data: Any = None
    script: str = ""


def check_place(where, path, example, force):
    """Raise a UserError if no page may be written to `path`, before the work for it is done.

    Parameters
    ----------
    where : str
        The flag that named it; errors begin with it.
    path : str or path
    example : str
        Of the name of a file, for one who names a folder.
    force : bool
        Whether to replace a file.
    """
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{where} {path} is a folder; name a file, such as {example}")
    if not file.parent.is_dir():
        raise UserError(f"{where} {path}: there is no folder {file.parent}; make it first")
    if os.path.lexists(file) and not force:
        raise UserError(f"{where} {path} is there already; name another file, or add --force")


def write_page(path, title, sections, lead="", refresh=None):
    """Write a page to a file, whole or not at all; return its size in bytes.

    Parameters
    ----------
    path : Path
    title : str
    sections : list of Section
    lead : str
        HTML between the title and the first section.
    refresh : int, optional
        Seconds after which a browser reads the page again; it keeps the reader's place and choices.

    Raises
    ------
    NoLibrary
    UserError
        If the file cannot be written.
    """
    raw = page(title, sections, lead, refresh).encode("utf-8")
    with writing(path):
        write_atomically(path, [raw])
    return len(raw)


def page(title, sections, lead="", refresh=None):
    """Return a page as HTML; parameters as of `write_page`."""
    scripts = ["page.js", *dict.fromkeys(s.script for s in sections if s.script)]
    charts = any(CHART in section.html for section in sections)
    links = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in sections)
    vega = [library()] if charts else []
    code = [*vega, *map(own_file, scripts), "page.start();"]
    refreshed = f' data-refresh="{refresh}"' if refresh else ""
    return "\n".join(
        (
            f'<!DOCTYPE html>\n<html lang="en"{refreshed}>\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'{GENERATOR}\n<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>\n<style>\n{own_file('page.css')}</style>",
            '</head>\n<body>\n<a class="skip" href="#main">Skip to the content</a>',
            f"<header>\n<h1>{escape(title)}</h1>\n{lead}",
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main id="main">',
            *map(section_html, sections),
            '</main>\n<p id="said" class="unseen" aria-live="polite"></p>',
            *(f"<script>\n{text}\n</script>" for text in code),
            "</body>\n</html>\n",
        )
    )


def section_html(section):
    """Return a section as HTML, with its data."""
    data = "" if section.data is None else json_script(section.data)
    return (
        f'<section id="{section.id}" aria-labelledby="{section.id}-title">\n'
        f'<h2 id="{section.id}-title">{escape(section.title)}</h2>\n{section.html}\n'
        f"{data}</section>"
    )


def own_file(name):
    """Return the text of a file of this folder."""
    return (resources.files(__package__) / name).read_text("utf-8")


def json_script(data):
    """Return data as a script element that only holds them."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    text = text.encode("utf-8", "backslashreplace").decode()  # half a pair has no UTF-8
    text = text.replace("<", "\\u003c")  # nothing in it ends the element
    return f'<script type="application/json">{text}</script>\n'


def escape(text):
    """Return text as HTML, with escapes for controls other than a line feed and a tab."""
    text = CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def paragraph(text):
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>\n"


def note(text):
    """Return a note: what was thinned out, left out, or is damaged."""
    return f'<p class="note">{escape(text)}</p>\n'


def facts(pairs):
    """Return a list of names and values, from a dict."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n"
        for name, value in pairs.items()
    )
    return f'<dl class="facts">\n{rows}</dl>\n'


def scrolled(inner, label, kind):
    """Return HTML that may be wider than the page in a box of its own, which keys can scroll."""
    return (
        f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"{inner}</div>\n"
    )


def table(head, rows, caption):
    """Return a table.

    Parameters
    ----------
    head : list of str
    rows : list of lists of str or numbers
        Columns of numbers stand at the right; the first cell is the row's heading.
    caption : str
    """
    numbers = [all(map(is_number, column)) for column in zip(*rows, strict=True)]
    numbers = [False, *numbers[1:]] if rows else [False] * len(head)
    top = "".join(
        f'<th scope="col"{" class=number" * right}>{escape(name)}</th>'
        for name, right in zip(head, numbers, strict=True)
    )
    lines = []
    for first, *others in rows:
        cells = (
            f"<td{' class=number' * right}>{escape(shown(x))}</td>"
            for x, right in zip(others, numbers[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(shown(first))}</th>{"".join(cells)}</tr>')
    inner = (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>\n<tbody>"
        + "\n".join(lines)
        + "</tbody></table>"
    )
    return scrolled(inner, caption, "table")


def is_number(x):
    """Tell whether a cell is a number, or a text that is one or a percentage."""
    return not isinstance(x, str) or re.fullmatch(r"[-−]?[\d,]*\.?\d+%?", x) is not None


def shown(x):
    """Return a number as text, with separators or four digits; other values as they are."""
    if isinstance(x, int) and not isinstance(x, bool):
        return f"{x:,}"
    return f"{x:.4g}" if isinstance(x, float) else x


def matrix(values, caption, rows=None, columns=None, kind="signed", digits=2, texts=None):
    """Return a table of coloured numbers: each cell shows its value.

    Parameters
    ----------
    values : (n, m) float
        -inf is what a mask hides.
    caption : str
    rows, columns : lists of str, optional
        Labels; numbers if left out.
    kind : str
        signed: two colours, none at 0, strongest at the largest magnitude; weights: one colour,
        from 0 to 1.
    digits : int
        Behind the point.
    texts : lists of str, optional
        What the cells show in place of their values.
    """
    values = [[float(x) for x in row] for row in values]
    finite = [abs(x) for row in values for x in row if math.isfinite(x)]
    if texts is None:
        texts = [[number_text(x, digits) for x in row] for row in values]
    most = 1.0 if kind == "weights" else max(finite, default=0.0) or 1.0
    rows = [visible(str(x)) for x in (range(len(values)) if rows is None else rows)]
    width = len(values[0]) if values else 0
    columns = [visible(str(x)) for x in (range(width) if columns is None else columns)]
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(matrix_cell(x, x / most, text) for x, text in zip(row, shown, strict=True))
        + "</tr>"
        for name, row, shown in zip(rows, values, texts, strict=True)
    ]
    inner = (
        f"<table><caption>{escape(caption)}</caption><thead><tr><td></td>{top}</tr></thead>\n"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return scrolled(inner, caption, f"matrix {kind}")


def number_text(x, digits):
    """Return a number with so many digits behind the point."""
    if not math.isfinite(x):
        return "−∞" if x < 0 else f"{x}"
    return f"{x:.{digits}f}".replace("-", "−")


def matrix_cell(x, share, text):
    """Return a cell of a matrix; `share` is the value as a part of the largest, -1 to 1."""
    if not math.isfinite(x):
        return f'<td class="masked">{escape(text)}</td>'
    weight = min(abs(share), 1.0)
    sign = ' class="less"' * (share < 0)
    return f'<td{sign} style="--w:{weight:.3f}">{escape(text)}</td>'


def chart(spec, caption):
    """Return a chart.

    Parameters
    ----------
    spec : dict
        Of Vega-Lite, with data inside, a height in pixels, no width, colours or schema. If it has
        parameters "from" and "to", the ends of the horizontal scale, the page zooms by them and
        has buttons for it; `curve` in curves.py makes such specs.
    caption : str
        What it shows, for all readers; also its name for those who hear the page.
    """
    height = spec.get("height", 260)  # kept free until it is drawn, so that nothing moves
    return (
        f'{CHART} role="group" aria-label="{escape(caption)}">'
        f'<div class="plot" style="min-height:{height}px"></div>\n'
        f"<figcaption>{escape(caption)}</figcaption>{json_script(spec)}</figure>\n"
    )
