"""The vocabulary of a run as tables: ids, tokens, and how often they come in its data."""

import numpy as np

from minigpt.backend import to_host
from minigpt.cli.characters import visible
from minigpt.report.page import Section, facts, note, table
from minigpt.sample.answers import END
from minigpt.sample.evaluation import spread

FEW, FIRST = 12, 300  # tokens in a table of extremes, and in that of the whole vocabulary
COUNTED, PART = 20_000_000, 1 << 18  # tokens of the data that are counted, and at a time


def count_tokens(arrays, vocab_size, most=COUNTED):
    """Return (counts, counted, total): how often each token comes in some arrays of ids.

    Of more than `most` ids, parts at even distances are counted.

    Parameters
    ----------
    arrays : list of (N,) int
    vocab_size : int
    most : int

    Returns
    -------
    counts : (vocab_size,) int64
    counted, total : int
    """
    parts = [(x, i) for x in arrays for i in range(0, len(x), PART)]
    total = sum(map(len, arrays))
    enough = len(parts) if total <= most else max(1, most // PART)
    counts = np.zeros(vocab_size, np.int64)
    for k in spread(len(parts), enough).tolist():
        x, start = parts[k]
        counts += np.bincount(to_host(x[start : start + PART]), minlength=vocab_size)
    return counts, int(counts.sum()), total


def vocabularies(checkpoint, data):
    """Return [(name, labels, arrays of ids or None)] of each vocabulary of a model.

    Parameters
    ----------
    checkpoint : Checkpoint
    data : TextData or PairData, or None
    """
    tokenizer = checkpoint.tokenizer
    if not hasattr(checkpoint.config, "source_vocab_size"):
        arrays = None if data is None else [data.train, data.val]
        return [("", [*map(tokenizer.label, range(tokenizer.vocab_size))], arrays)]
    found = []
    for side in ("source", "target"):
        own = getattr(tokenizer, side)
        labels = [*map(own.label, range(own.vocab_size))] + [END] * (side == "target")
        parts = None if data is None else [data.train, data.val]
        found.append((f"{side}s", labels, parts and [getattr(part, side).ids for part in parts]))
    return found


def token_rows(labels, counts, which):
    """Return rows of a table: id, token, and where counts are known how often it comes."""
    return [
        [int(i), visible(labels[i]), *([] if counts is None else [int(counts[i])])] for i in which
    ]


def tokens_section(checkpoint, data):
    """Return the Section of the token table, or None of a model without a tokenizer.

    Parameters
    ----------
    checkpoint : Checkpoint
    data : TextData or PairData, or None
        Without them there are no counts.
    """
    if checkpoint.tokenizer is None:
        return None
    html, part = [], "" if data is None else data.part
    if data is None:
        html.append(note("How often tokens come is not known without the run's data."))
    if part:
        html.append(note(f"Counted in a part of the data: {part}."))
    for name, labels, arrays in vocabularies(checkpoint, data):
        html += [f"<h3>{name.capitalize()}</h3>\n"] * bool(name)
        html.append(vocabulary_html(name, labels, arrays, bool(part)))
    return Section("tokens", "Tokens", "".join(html))


def vocabulary_html(name, labels, arrays, part=False):
    """Return one vocabulary as HTML; parameters as from `vocabularies`, `part`: not of all data."""
    of, head, counts, html = f" of {name}" if name else "", ["id", "token"], None, ""
    sizes = {f"tokens in the vocabulary{of}": f"{len(labels):,}"}
    if arrays is not None:
        counts, counted, total = count_tokens(arrays, len(labels))
        sizes[f"tokens in {'that part' if part else 'the data'}{of}"] = f"{total:,}"
        sizes["that never come"] = f"{int((counts == 0).sum()):,}"
        head.append("count")
        if counted < total:
            html = note(f"Counted in {counted:,} of {total:,} tokens, at even distances.")
        order = np.argsort(-counts, kind="stable")
        if len(labels) > 2 * FEW:
            html += table(head, token_rows(labels, counts, order[:FEW]), f"The most frequent{of}")
            rare = order[::-1][:FEW][::-1]
            html += table(head, token_rows(labels, counts, rare), f"The rarest{of}")
    shown = range(min(len(labels), FIRST))
    which = "All tokens" if len(labels) <= FIRST else f"The first {FIRST} of {len(labels):,} tokens"
    rows = table(head, token_rows(labels, counts, shown), f"{which}{of}, by id")
    return facts(sizes) + html + f"<details><summary>{which}{of}</summary>\n{rows}</details>\n"
