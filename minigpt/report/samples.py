"""The samples that a run has kept at its evaluations: how its text got better."""

from minigpt.report.page import Section, escape, note, table
from minigpt.sample.evaluation import some_of

MOST, LONGEST = 12, 600  # samples on a page, and characters of one


def samples_of(lines):
    """Return [(title, sample)] of the metrics, at most MOST, evenly.

    Parameters
    ----------
    lines : list of dict
        Of the metrics; those of older runs, and of a run with `--sample-tokens 0`, have none.
    """
    found = [(title_of(line), line["sample"]) for line in lines if line.get("sample")]
    if len(found) <= MOST:
        return found
    return [*some_of(found[:-1], MOST - 1), found[-1]]


def samples_section(lines):
    """Return the Section of samples by step, from the lines of the metrics.

    Without a sample it says how a run keeps some.
    """
    found = samples_of(lines)
    if not found:
        html = note(
            "This run has kept no samples: runs of earlier versions have none, nor have those with "
            "--sample-tokens 0."
        )
        return Section("samples", "Samples by step", html)
    parts = []
    for title, sample in found:
        parts.append(f"<h3>{escape(title)}</h3>\n{sample_html(sample, title)}")
    return Section("samples", "Samples by step", "".join(parts))


def title_of(line):
    """Return what stands over the sample of a line of metrics, or of one made for the page."""
    if line.get("made"):
        return "of the best checkpoint, made for this page"
    loss = line.get("val_loss")
    return f"step {line['step']:,}" + (f", validation loss {loss:.4f}" if loss is not None else "")


def sample_html(sample, title):
    """Return a sample, a text or answers, as HTML."""
    if isinstance(sample, str):
        return f'<pre class="sample">{escape(begin(sample))}</pre>\n'
    keys = "source", "expected", "answer"
    rows = [[begin(str(one.get(key, ""))) for key in keys] for one in sample]
    return table([*keys], rows, f"Answers at {title}")


def begin(text):
    """Return a text, of a long one its begin and a sign that there is more."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
