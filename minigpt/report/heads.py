"""Attention to look into: every layer and head of a model on a text, packed for a page.

A weight becomes a byte, to 1/255. What would make the page too large is cut off: the first tokens
of the text are kept, and the page says so.
"""

import base64
import math

import numpy as np

from minigpt.backend import to_host
from minigpt.cli.characters import visible
from minigpt.errors import UserError
from minigpt.report.page import Section, note, paragraph

ROOM = 320_000  # bytes of weights in a page, before base64 makes them a third more
MOST = 64  # tokens, which a map can show
FEW = 16  # characters that a text should have, to be worth a look
PLAIN = "Once upon a time there was a king who had three daughters, and"
BROKEN = "\ufffd"  # in the place of bytes that are no character
KINDS = {
    "cross": "cross attention: the answer (queries) looks at the prompt (keys)",
    "encoder": "encoder: the prompt looks at itself",
    "decoder": "decoder: the answer looks at what is before it",
    "self": "causal self-attention: each token looks at itself and at those before it",
}
HELP = (
    "Choose a head in the table (arrow keys: layer and head) and a token (pointer, or arrow keys "
    "left and right): the text shows what it looks at, the stronger the more."
)


def attention_section(run):
    """Return the Section of attention of a Shown run, over its prompt or a text that is found.

    Raises
    ------
    UserError
        If the prompt cannot be read.
    """
    title, task = "Attention", run.task
    if run.checkpoint.tokenizer is None:
        return None
    chosen = find_prompt(run) if run.prompt is None else run.prompt
    if chosen is None:
        return Section("attention", title, note("Give a text to look at: --prompt TEXT."))
    model = run.checkpoint.params, run.checkpoint.config, run.checkpoint.tokenizer
    maps, cut = [], 0
    kinds = task.map_kinds or ("self",)
    for kind in kinds:
        weights, rows, columns = task.maps(*model, chosen, kind, "--prompt")
        packed = pack(weights, rows, columns, len(kinds), causal=kind in ("self", "decoder"))
        cut = max(
            cut, max(len(rows), len(columns)) - max(map(len, (packed["rows"], packed["columns"])))
        )
        maps.append({"kind": kind, "title": KINDS[kind], **packed})
    parts = [paragraph(HELP), '<div class="view"></div>\n']
    if cut:
        parts.append(note(f"The last {cut:,} tokens are left out, so that the page stays small."))
    if run.prompt is None:
        parts.append(note("Another text: minigpt report --prompt TEXT."))
    return Section("attention", title, "".join(parts), {"maps": maps}, "heads.js")


def pack(weights, rows, columns, kinds, causal):
    """Return the weights of all layers and heads as JSON can hold them.

    Parameters
    ----------
    weights : list of n_layer arrays (H, Tq, Tk)
    rows, columns : lists of str
    kinds : int
        How many such go into a page.
    causal : bool
        Whether only the lower triangle is to be kept.
    """
    heads = len(weights) * len(weights[0])
    room = ROOM // (kinds * heads)  # n (n + 1) / 2 weights of a triangle, n n of a square
    most = (math.isqrt(8 * room + 1) - 1) // 2 if causal else math.isqrt(room)
    most = max(2, min(MOST, most))
    cut = len(columns) > most
    rows, columns = rows[:most], columns[:most]
    w = np.stack([layer[:, : len(rows), : len(columns)] for layer in weights])
    w = np.rint(255 * w).astype(np.uint8)
    if causal:
        w = w[..., np.tri(len(rows), len(columns), dtype=bool)]
    return {
        "most": most,
        "layers": len(weights),
        "heads": len(weights[0]),
        "rows": [*map(shown, rows)],
        "columns": [*map(shown, columns)],
        "causal": causal,
        "cut": cut,
        "weights": base64.b64encode(w.tobytes()).decode(),
    }


def shown(label):
    """Return a token as the page shows it: an escape where it cannot be seen, a sign for spaces."""
    if not label.strip(" "):
        return "␣" * len(label)
    inner = label.strip(" ")
    return label.replace(inner, visible(inner))


def find_prompt(run):
    """Return a text for a Shown run that its tokenizer can read, or None.

    The last sample; where it is too short or broken, the begin of the validation part.
    """
    if run.task.map_kinds:
        answers = [line["sample"] for line in run.sampled if isinstance(line.get("sample"), list)]
        return answers[-1][0]["source"] if answers and answers[-1] else first_source(run)
    texts = [line["sample"] for line in run.sampled if isinstance(line.get("sample"), str)][-1:]
    tokenizer = run.checkpoint.tokenizer
    most = min(run.checkpoint.config.block_size, MOST)
    if run.data is not None:
        texts.append(tokenizer.decode(to_host(run.data.val[:most]).tolist()))
    for own in (texts, [PLAIN]):
        found = [*filter(None, (readable(text, tokenizer, most) for text in own))]
        if found:
            return next((text for text in found if len(text) >= FEW), max(found, key=len))
    return None


def readable(text, tokenizer, most):
    """Return the begin of a text, of at most `most` tokens; None where there is none that fits."""
    try:
        text = tokenizer.decode(tokenizer.encode(text.strip())[:most]).strip(BROKEN)  # by the cut
        return text if BROKEN not in text and len(tokenizer.encode(text)) <= most else None
    except UserError:  # the tokenizer lacks a character
        return None


def first_source(run):
    """Return the first validation source of a Shown run of an encoder-decoder, or None."""
    return None if run.data is None else run.data.val_pairs[0][0]
