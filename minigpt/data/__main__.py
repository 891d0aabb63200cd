"""A walk from a text to the examples that a GPT learns from: `python -m minigpt.data`."""

import collections
import dataclasses
import math
import re
import textwrap

from minigpt import cli
from minigpt.cli.characters import display_width, quoted, token_table, visible, wrap
from minigpt.data.datasets import TextData
from minigpt.data.sources import read_parts
from minigpt.errors import SMALLER_DATA, UserError, memory_for

WIDTH = 76  # columns of a section
HEAD = 1 << 22  # characters of a text that are cut into words
ALL_TOKENS, SOME_TOKENS = 240, 120  # of a vocabulary: all are shown, or so many of a larger one
EXAMPLES, CONTEXT = 16, 28  # of the first block; columns for the ids of one
CUT = 50  # columns of a text or of ids


@dataclasses.dataclass(frozen=True)
class WalkConfig(cli.Config):
    """The walk."""

    data: str | None = cli.option(
        None,
        "text in UTF-8: one file or several, folders, globs in quotes, or - for standard input "
        "(default: tiny Shakespeare)",
        metavar="FILE",
        path=True,
        several=True,
    )
    block_size: int = cli.option(8, "tokens of context for a prediction", min=1)
    encode: str | None = cli.option(None, "text to turn into ids (default: the first word)")
    decode: str | None = cli.option(
        None, 'ids to turn into text, such as "14 43 43 9" (default: those of --encode)'
    )


@memory_for("while the text was read", SMALLER_DATA)
def main(argv=None, prog="python -m minigpt.data"):
    """Walk from a text to the examples that a GPT learns from, and print each step."""
    parser = cli.parser(prog, main.__doc__)
    cli.add_flags(parser, WalkConfig)
    config = cli.build(WalkConfig, vars(parser.parse_args(argv)))
    data = TextData(config.data)
    data.check(config.block_size)
    text = head(data.sources)
    sections = (
        *describe_text(text, data),
        describe_codec(text, data.tokenizer, config),
        *describe_ids(data, config.block_size),
        describe_tradeoff(text, data, config.block_size),
    )
    print(cli.printable("\n\n".join(sections)))
    for note in data.notes:
        cli.note(note)


def head(sources):
    """Return the first HEAD characters of a text."""
    parts, length = [], 0
    for _, part in read_parts(sources):
        parts.append(part)
        length += len(part)
        if length >= HEAD:
            break
    return "".join(parts)[:HEAD]


def describe_text(text, data):
    """Sections on the text, its vocabulary and the token table."""
    start = "".join(c if c == "\n" else quoted(c)[1:-1] for c in text[:100]).rstrip("\n")
    lines = [part for line in start.split("\n") for part in wrap(line, WIDTH)]
    n, label = data.tokenizer.vocab_size, data.tokenizer.label
    shown = n if n <= ALL_TOKENS else SOME_TOKENS
    labels = [label(i) for i in range(shown)]
    more = f"\n... and {n - shown:,} more, up to {n - 1} {visible(label(n - 1))}" * (n > shown)
    return (
        _section(
            f"Text: {data.name}, {data.length:,} characters. The first 100:", "\n".join(lines)
        ),
        _section(
            f"Vocabulary: {n:,} different characters, sorted",
            "\n".join(map(quoted, groups(labels, WIDTH - 4))) + more,
        ),
        _section("Token table: id and character", token_table(labels) + more),
    )


def groups(labels, width):
    """Return the labels joined to texts, each of `width` columns as `visible`, or a label."""
    lines, room = [""], width
    for label in labels:
        columns = display_width(quoted(label)) - 2
        if columns > room and lines[-1]:
            lines.append("")
            room = width
        lines[-1] += label
        room -= columns
    return lines


def describe_codec(text, tokenizer, config):
    """Section that shows encode and decode at work."""
    sample = config.encode
    if sample is None:
        sample = (re.search(r"\w+", text) or re.search(".", text, re.DOTALL))[0]
    ids = tokenizer.encode(sample).tolist()
    shown = ids if config.decode is None else _parse_ids(config.decode)
    text, decoded = cut_text(sample), cut_text(tokenizer.decode(shown))
    lines = [(f"encode({text}) =", cut_ids(ids)), (f"decode({cut_ids(shown)}) =", decoded)]
    body = []
    for call, result in lines:
        long = display_width(call) + display_width(result) >= WIDTH
        body.append(call + ("\n    " if long else " ") + result)
    return _section("Encode and decode", "\n".join(body))


def cut_text(text):
    """Return a text in quotes; of a long one its begin, and its length."""
    line = groups(text[: CUT + 1], CUT)[0]
    return quoted(text) if line == text else f"{quoted(line)}... ({len(text):,} characters)"


def cut_ids(ids):
    """Return ids as a list; of a long one its begin, and its length."""
    shown = str(ids[:CUT])
    if len(ids) <= CUT and len(shown) <= CUT:
        return shown
    return f"{shown[:CUT].rpartition(', ')[0]}, ...] ({len(ids):,} ids)"


def _parse_ids(words):
    try:
        return [int(word) for word in re.split(r"[\s,\[\]]+", words) if word]
    except ValueError:
        raise UserError(
            f'--decode {cut_text(words)} is not a list of ids such as "14 43 43 9"'
        ) from None


def describe_ids(data, block_size):
    """Sections on the encoded text, the split and the examples in its first block."""
    n, n_val, decode = len(data.train), len(data.val), data.tokenizer.decode
    block = data.train[: block_size + 1]
    rows = []
    for t in range(min(block_size, EXAMPLES)):
        context, target = block[: t + 1].tolist(), block[t + 1 : t + 2].tolist()
        while len(" ".join(map(str, context))) > CONTEXT:
            del context[0]
        dots = "... " * (len(context) <= t)
        ids = (dots + " ".join(map(str, context)), str(target[0]))
        rows.append([*ids, dots + quoted(decode(context)), quoted(decode(target))])
    left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
    examples = [f"{a:{left}} -> {b:{right}}   {c} -> {d}" for a, b, c, d in rows]
    if block_size > EXAMPLES:
        examples.append(f"... and {block_size - EXAMPLES:,} more")
    return (
        _section("Encoded text", f"shape ({n + n_val},), dtype {data.train.dtype}"),
        _section(
            f"Split: n = int(0.9 * {n + n_val})",
            f"train       ids[:n]  {n:>13,} tokens\nvalidation  ids[n:]  {n_val:>13,} tokens",
        ),
        _section(
            f"First block: train[:{block_size + 1}] holds {block_size} examples, context -> next",
            "\n".join(examples),
        ),
    )


def pieces(text):
    """Cut text into words, runs of punctuation and runs of white space: crude subwords.

    A space in front of a word or of punctuation belongs to it, as in GPT-2's tokenizer.
    """
    return (found[0] for found in re.finditer(r" ?\w+| ?[^\w\s]+|\s+", text))


def describe_tradeoff(text, data, block_size, n_embd=384):
    """Section that weighs characters against subwords by the numbers of this text."""
    words = collections.Counter(pieces(text))
    n, v, n_words, v_words = len(text), data.tokenizer.vocab_size, words.total(), len(words)
    ratio = n / n_words
    once = sum(count == 1 for count in words.values()) / v_words
    bits, bits_words = math.log2(v), math.log2(v_words)
    whole = "the text is" if n == data.length else f"the first {n:,} characters are"
    return _section(
        "Characters or subwords?",
        textwrap.fill(
            f"Cut into characters, {whole} a sequence of {n:,} tokens from a table of {v:,}. "
            f"Cut into words and punctuation, a crude kind of subwords, it is {n_words:,} tokens, "
            f"{ratio:.1f} times fewer, from a table of {v_words:,}. A character is a choice of "
            f"{bits:.1f} bits, a word of {bits_words:.1f}, so that plain codes of the text take "
            f"{n * bits:,.0f} bits against {n_words * bits_words:,.0f}. A block of {block_size} "
            f"tokens reaches back {block_size} characters against about "
            f"{block_size * ratio:.0f}. The price is the table: with {n_embd} numbers per token "
            f"the embedding has {v * n_embd:,} parameters for characters and "
            f"{v_words * n_embd:,} for words, {once:.0%} of which occur only once, too seldom to "
            "be learnt; and a word that is not in the table cannot be written at all, so that "
            "true subword tokenizers spell rare words in smaller pieces. In short: characters "
            "mean a small table and long sequences, subwords a large table and short ones.",
            WIDTH,
        ),
    )


def _section(title, body):
    return f"{title}\n{textwrap.indent(body, '  ')}"


if __name__ == "__main__":
    cli.run(main)
