"""The passages that surprise a model most, and those that it predicts best, as a page shows them.

Each token is coloured by its loss; what the model expected in its place stands below the passage
while the pointer or the focus is on it (passages.js).
"""

import math

from minigpt.cli.characters import visible
from minigpt.report.page import Section, escape, note, paragraph
from minigpt.report.token_losses import rank_pairs, rank_passages
from minigpt.sample.answers import answer_lines, on_one_line
from minigpt.sample.tasks import task_of

LONGEST = 400  # characters of a text before a passage
SCRIPT = "passages.js"
KEYS = (
    "Point at a token, or focus a passage and move with the arrow keys, to see its loss and what "
    "the model expected."
)


def passages_section(checkpoint, data, why=None):
    """Return the Section of passages by their loss, of a text or of pairs.

    Parameters
    ----------
    checkpoint : Checkpoint
        As of load_plain.
    data : TextData or PairData, or None
    why : str, optional
        Why there are no data: then the section only says so.
    """
    pairs = task_of(checkpoint.config).name == "seq2seq"
    title = "Worst and best answers" if pairs else "Most surprising and best predicted passages"
    if data is None:
        return Section(
            "passages", title, note(f"Left out: the run's data are not at hand ({why}).")
        )
    ranking = (rank_pairs if pairs else rank_passages)(checkpoint, data)
    guess = math.log(checkpoint.config.vocab_size)
    html = paragraph(
        f"By the mean loss of their tokens, of {ranking.scored:,} tokens that were looked at. "
        f"The stronger the colour, the higher the loss: from 0 to {guess:.2f} nats and more, as of "
        f"a random guess. {KEYS}"
    )
    if ranking.scored < ranking.total:
        of = " of the part that was read" if data.part else ""
        html += note(
            f"Looked at: {ranking.scored:,} of {ranking.total:,} validation tokens{of}, at even "
            "distances, to bound the time."
        )
    if data.part:
        html += note(f"Read for this page: {data.part}.")
    words = ("Worst", "Best") if pairs else ("Most surprising", "Best predicted")
    for word, passages in zip(words, (ranking.worst, ranking.best), strict=True):
        answers = answers_to(checkpoint, passages) if pairs else [None] * len(passages)
        both = zip(passages, answers, strict=True)
        html += f"<h3>{word}</h3>\n" + "".join(passage_html(*each, guess) for each in both)
    return Section("passages", title, html, {}, SCRIPT)


def answers_to(checkpoint, passages):
    """Return what the model answers to the sources of pairs, a str each."""
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    found = answer_lines(*model, [passage.before for passage in passages], errors="none")
    return [
        "" if ranked is None else ranked[0].text + " ..." * (not ranked[0].ended)
        for ranked in found
    ]


def passage_html(passage, answer, guess):
    """Return a Passage as HTML; of a pair with the answer of the model, else with None.

    Parameters
    ----------
    passage : Passage
    answer : str or None
    guess : float
        The loss from which on the colour of a token is strongest.
    """
    before, head = passage.before[-LONGEST:], f"{passage.loss:.3f} nats per token"
    tokens = "".join(token_html(token, guess) for token in passage.tokens)
    if answer is None:
        lead = f'<span class="before">{escape(before)}</span>'
    else:
        head = f"source: {on_one_line(before)}; answer: {on_one_line(answer)}; {head}"
        lead = '<span class="before">expected: </span>'
    return (
        f'<figure class="passage"><figcaption>{escape(head)}</figcaption>\n'
        f'<p class="tokens" tabindex="0" role="group" aria-label="{escape(head)}">'
        f'{lead}{tokens}</p>\n<p class="told" aria-live="polite"></p></figure>\n'
    )


def token_html(token, guess):
    """Return a Token as a span whose title says its loss and what was expected."""
    expected = ", ".join(f"{visible(label)} {p:.0%}" for label, p in token.expected)
    title = f"{visible(token.text)}: {token.loss:.2f} nats; expected {expected}"
    weight = min(token.loss / guess, 1.0) if guess else 0.0
    return f'<span style="--w:{weight:.2f}" title="{escape(title)}">{escape(token.text)}</span>'
