"""A walk from a text to the examples that a GPT learns from: `python -m minigpt.data`."""

import collections
import dataclasses
import math
import re
import textwrap

import numpy as np

from minigpt import cli
from minigpt.cli.characters import (
    display_width,
    quoted,
    token_table,
    visible,
    visible_char,
    wrap,
)
from minigpt.data.characters import CharTokenizer
from minigpt.data.datasets import TextData
from minigpt.data.sources import read_parts
from minigpt.errors import SMALLER_DATA, UserError, memory_for

WIDTH = 76  # columns of a section
HEAD = 1 << 22  # characters of a text that are cut into words
ALL_TOKENS, SOME_TOKENS = 240, 120  # of a vocabulary: all are shown, or so many of a larger one
EXAMPLES, CONTEXT = 16, 28  # of the first block; columns for the ids of one
CUT = 50  # columns of a text or of ids
MERGES = 12  # merges that are shown, of the first and of the last
ANSWERS = {"--step": "`minigpt data --step` walks through a training step"}
PRIOR = 10.0  # tokens of a simpler model's that a count is mixed with


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
    tokenizer: str = cli.option(
        "char",
        "char; bpe: byte-level BPE of --vocab-size tokens that is trained on the training part; or "
        "a folder or tokenizer.json with one, or a name on the hub such as gpt2",
        metavar="NAME",
        path=True,
    )
    vocab_size: int | None = cli.option(
        None, "tokens of bpe (default: 1024)", min=1, below=2**31, metavar="N"
    )
    block_size: int = cli.option(8, "tokens of context for a prediction", min=1)
    encode: str | None = cli.option(None, "text to turn into ids (default: the first word)")
    decode: str | None = cli.option(
        None, 'ids to turn into text, such as "14 43 43 9" (default: those of --encode)'
    )

    def read(self):
        """Return the text, a TextData."""
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise UserError("--vocab-size is for --tokenizer bpe")
        return TextData(self.data, kind=self.tokenizer, vocab_size=self.vocab_size)


def main(argv=None, prog="python -m minigpt.data"):
    """Walk from a text to the examples that a GPT learns from, and print each step."""
    parser = cli.parser(prog, main.__doc__, ANSWERS)
    cli.add_flags(parser, WalkConfig)
    walk_text(cli.build(WalkConfig, vars(parser.parse_args(argv))))


@memory_for("while the text was read", SMALLER_DATA)
def walk_text(config):
    """Print the walk that a WalkConfig asks for."""
    data = config.read()
    data.check(config.block_size)
    text = head(data.sources)
    chars = data.tokenizer.kind == "char"
    tradeoff = describe_tradeoff if chars else describe_subword_tradeoff
    sections = (
        *describe_text(text, data),
        *([] if chars else describe_merges(data.tokenizer)),
        describe_codec(text, data.tokenizer, config),
        *describe_ids(data, config.block_size),
        tradeoff(text, data, config.block_size),
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
    first = _section(
        f"Text: {data.name}, {data.length:,} characters. The first 100:", "\n".join(lines)
    )
    if data.tokenizer.kind != "char":
        table = token_table(labels) + more
        return first, describe_lengths(data.tokenizer), _section("Token table: id and token", table)
    return (
        first,
        _section(
            f"Vocabulary: {n:,} different characters, sorted",
            "\n".join(map(quoted, groups(labels, WIDTH - 4))) + more,
        ),
        _section("Token table: id and character", token_table(labels) + more),
    )


def describe_lengths(tokenizer):
    """Section on how many bytes the tokens of a table have, with some of the longest."""
    lengths = tokenizer.byte_lengths
    counts = np.bincount(lengths)
    rows = [
        f"{size:>3} {'byte ' if size == 1 else 'bytes'} {count:>9,}"
        for size, count in enumerate(counts.tolist())
        if count and size
    ]
    special = f"\nspecial   {counts[0]:>9,}" * bool(counts[0])
    if len(rows) > MERGES:
        rest = f"... and longer ones, up to {len(counts) - 1} bytes"
        rows = [*rows[: MERGES - 1], rest]
    longest = np.argsort(-lengths, kind="stable")[:MERGES].tolist()
    shown = [marked(tokenizer.label(i)).replace(" ", "\0") for i in longest if lengths[i] > 1]
    body = "\n".join(rows) + special
    if shown:
        text = textwrap.fill(" ".join(["the longest:", *shown]), WIDTH)
        body += "\n" + text.replace("\0", " ")  # no line ends within a token
    title = f"Vocabulary: {tokenizer.vocab_size:,} {tokenizer.unit}, by their length"
    return _section(title, body)


def marked(label):
    """Return the label of a token in quotes; bytes that are no character are escapes already."""
    return f"'{''.join(map(visible_char, label))}'"


def describe_merges(tokenizer):
    """Sections, one or none, on the merges in the order in which they were learnt."""
    merges = tokenizer.merges
    if not merges:
        return ()
    parts = [[tokenizer.vocab[token] for token in pair] for pair in merges]
    first = [*enumerate(parts[:MERGES], 1)]
    last = [*enumerate(parts, 1)][max(len(first), len(parts) - MERGES) :]
    rows = [
        f"{number:>6,}  {' + '.join(marked(tokenizer.label(i)) for i in pair)}"
        for number, pair in [*first, *last]
    ]
    if len(merges) > 2 * MERGES:
        rows.insert(MERGES, "   ...")
    title = f"{len(merges):,} merges, in the order in which they were learnt"
    return (_section(title, "\n".join(rows)),)


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
        word = r"\w+" if tokenizer.kind == "char" else r"\S[^\n]{0,59}(?!\w)"
        sample = (re.search(word, text) or re.search(".", text, re.DOTALL))[0]
    ids = tokenizer.encode(sample).tolist()
    shown = ids if config.decode is None else _parse_ids(config.decode)
    text, decoded = cut_text(sample), cut_text(tokenizer.decode(shown))
    lines = [(f"encode({text}) =", cut_ids(ids)), (f"decode({cut_ids(shown)}) =", decoded)]
    body = []
    for call, result in lines:
        long = display_width(call) + display_width(result) >= WIDTH
        body.append(call + ("\n    " if long else " ") + result)
    if tokenizer.kind != "char":
        cut = "|".join(marked(tokenizer.label(i))[1:-1] for i in ids[:CUT])
        body.append(f"its {len(ids):,} tokens:")
        body += [f"    {line}" for line in wrap(cut, WIDTH - 4)]
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
    of, unit = ("ids", "") if data.tokenizer.kind == "char" else ("text", " characters, encoded")
    return (
        _section("Encoded text", f"shape ({n + n_val},), dtype {data.train.dtype}"),
        _section(
            f"Split: n = int(0.9 * {data.length}){unit}",
            f"train       {of}[:n] {n:>14,} tokens\nvalidation  {of}[n:] {n_val:>14,} tokens",
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


def describe_subword_tradeoff(text, data, block_size, n_embd=384):
    """Section that weighs characters against the subwords at hand by the numbers of this text."""
    both = CharTokenizer.from_text(text), data.tokenizer
    columns = [weigh(text, tokenizer, block_size, n_embd) for tokenizer in both]
    table = [f"{'':<38}{'characters':>16}{'subwords':>16}"]
    for name in columns[0]:
        table.append(f"{name:<38}" + "".join(f"{column[name]:>16}" for column in columns))
    why = (
        "Subwords mean short sequences, so that a block reaches further back, and a larger table, "
        "whose rare tokens are seen too seldom to be learnt. Losses per token do not compare, bits "
        "per byte do: the last two lines are of the last tenth of the text, by how often tokens, "
        "and tokens after one another, come in the rest. minigpt.train prints a model's."
    )
    whole = "" if len(text) == data.length else f", its first {len(text):,} characters"
    return _section(
        f"Characters or subwords, by this text's numbers{whole}",
        "\n".join(table) + "\n\n" + textwrap.fill(why, WIDTH),
    )


def weigh(text, tokenizer, block_size, n_embd):
    """Return {name: text} of what a tokenizer makes of a text, in numbers."""
    cut = int(0.9 * len(text))
    train, val = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
    n, v = len(train) + len(val), tokenizer.vocab_size
    size = max(int(tokenizer.byte_lengths[val[1:]].sum()), 1)
    return {
        "tokens in the table": f"{v:,}",
        "tokens of the text": f"{n:,}",
        "characters per token": f"{len(text) / n:.2f}",
        f"characters in a block of {block_size}": f"{block_size * len(text) / n:,.0f}",
        "bits of a plain code of the text": f"{n * math.log2(v):,.0f}",
        f"embedding, {n_embd} numbers per token": f"{v * n_embd:,}",
        "bits per byte, counts of tokens": f"{count_bits(train, val, v) / size:.3f}",
        "bits per byte, counts of neighbours": f"{count_bits(train, val, v, True) / size:.3f}",
    }


def count_bits(train, val, v, pairs=False):
    """Return the bits that ids take in a code by the counts of others; the first id is free.

    p(b) = (count(b) + 1) / (N + V); after an id a, with `pairs`, that is mixed with what followed
    it (a Dirichlet prior): p(b | a) = (count(a, b) + PRIOR p(b)) / (count(a) + PRIOR).

    Parameters
    ----------
    train, val : (N,) int, (M,) int
    v : int
        Of the vocabulary.
    pairs : bool
        Whether the id before counts.
    """
    counts = np.bincount(train, minlength=v)
    p = ((counts + 1) / (len(train) + v))[val[1:]]
    if pairs:
        before, after = (ids.astype(np.int64) * v for ids in (train[:-1], val[:-1]))
        found, times = np.unique(before + train[1:], return_counts=True)
        wanted = after + val[1:]
        place = np.minimum(np.searchsorted(found, wanted), len(found) - 1)
        both = np.where(found[place] == wanted, times[place], 0)
        firsts = np.bincount(train[:-1], minlength=v)[val[:-1]]
        p = (both + PRIOR * p) / (firsts + PRIOR)
    return float(-np.log2(p).sum())


def _section(title, body):
    return f"{title}\n{textwrap.indent(body, '  ')}"


if __name__ == "__main__":
    cli.run(main)
