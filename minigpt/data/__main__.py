"""A walk from a text to the examples that a GPT learns from: `python -m minigpt.data`."""

import collections
import dataclasses
import math
import re
import textwrap

from minigpt import cli
from minigpt.cli.characters import quoted, token_table, wrap
from minigpt.data.batches import check_length, split
from minigpt.data.corpus import load_text
from minigpt.data.tokenizers import CharTokenizer
from minigpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class WalkConfig(cli.Config):
    """The walk."""

    data: str | None = cli.option(
        None,
        "text in UTF-8: one file or several, folders, globs in quotes, or - for standard input; "
        "tiny Shakespeare if left out",
        metavar="FILE",
        path=True,
        several=True,
    )
    block_size: int = cli.option(8, "tokens of context for a prediction", min=1)
    encode: str | None = cli.option(None, "text to turn into ids; the first word if left out")
    decode: str | None = cli.option(
        None, 'ids to turn into text, such as "14 43 43 9"; those of --encode if left out'
    )


def main(argv=None, prog="python -m minigpt.data"):
    """Walk from a text to the examples that a GPT learns from, and print each step."""
    parser = cli.parser(prog, main.__doc__)
    cli.add_flags(parser, WalkConfig)
    config = cli.build(WalkConfig, vars(parser.parse_args(argv)))
    text, name = load_text(config.data)
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    check_length(*split(ids), config.block_size)
    sections = (
        *describe_text(text, name, tokenizer),
        describe_codec(text, tokenizer, config),
        *describe_ids(ids, tokenizer, config.block_size),
        describe_tradeoff(text, tokenizer, config.block_size),
    )
    print(cli.printable("\n\n".join(sections)))


def describe_text(text, name, tokenizer):
    """Sections on the text, its vocabulary and the token table."""
    start = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text[:100])
    chars = tokenizer.chars
    lines = "\n".join(map(quoted, wrap(chars, 72)))
    return (
        _section(f"Text: {name}, {len(text):,} characters. The first 100:", start.rstrip("\n")),
        _section(f"Vocabulary: {len(chars)} different characters, sorted", lines),
        _section(
            "Token table: id and character",
            token_table([tokenizer.label(i) for i in range(tokenizer.vocab_size)]),
        ),
    )


def describe_codec(text, tokenizer, config):
    """Section that shows encode and decode at work."""
    sample = config.encode
    if sample is None:
        sample = (re.search(r"\w+", text) or re.search(".", text, re.DOTALL))[0]
    ids = tokenizer.encode(sample).tolist()
    shown = ids if config.decode is None else _parse_ids(config.decode)
    return _section(
        "Encode and decode",
        f"encode({quoted(sample)}) = {ids}\ndecode({shown}) = {quoted(tokenizer.decode(shown))}",
    )


def _parse_ids(words):
    try:
        return [int(word) for word in re.split(r"[\s,\[\]]+", words) if word]
    except ValueError:
        raise UserError(f'--decode {words!r} is not a list of ids such as "14 43 43 9"') from None


def describe_ids(ids, tokenizer, block_size):
    """Sections on the encoded text, the split and the examples in its first block."""
    train, val = split(ids)
    block = train[: block_size + 1]
    rows = []
    for t in range(block_size):
        context, target = block[: t + 1], block[t + 1 : t + 2]
        pair = [" ".join(map(str, part)) for part in (context, target)]
        rows.append([*pair, quoted(tokenizer.decode(context)), quoted(tokenizer.decode(target))])
    left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
    examples = [f"{a:{left}} -> {b:{right}}   {c} -> {d}" for a, b, c, d in rows]
    return (
        _section("Encoded text", f"shape {ids.shape}, dtype {ids.dtype}"),
        _section(
            f"Split: n = int(0.9 * {len(ids)})",
            f"train       ids[:n]  {len(train):>13,} tokens\n"
            f"validation  ids[n:]  {len(val):>13,} tokens",
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
    return re.findall(r" ?\w+| ?[^\w\s]+|\s+", text)


def describe_tradeoff(text, tokenizer, block_size, n_embd=384):
    """Section that weighs characters against subwords by the numbers of this text."""
    words = collections.Counter(pieces(text))
    n, v, n_words, v_words = len(text), tokenizer.vocab_size, words.total(), len(words)
    ratio = n / n_words
    once = sum(count == 1 for count in words.values()) / v_words
    bits, bits_words = math.log2(v), math.log2(v_words)
    return _section(
        "Characters or subwords?",
        textwrap.fill(
            f"Cut into characters, the text is a sequence of {n:,} tokens from a table of {v:,}. "
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
            76,
        ),
    )


def _section(title, body):
    return f"{title}\n{textwrap.indent(body, '  ')}"


if __name__ == "__main__":
    cli.run(main)
