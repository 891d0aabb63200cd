"""From a text to batches of token ids: the split, batches for training, consecutive windows.

Run `python -m minigpt.data` for a walk from a text to the examples that a GPT learns from.
"""

import collections
import dataclasses
import math
import re
import textwrap

import numpy as np

from minigpt import UserError, cli
from minigpt.backend import array_module, to_device
from minigpt.corpus import load_text
from minigpt.tokenizer import CharTokenizer, token_table


def split(ids):
    """Cut token ids into the first nine tenths, for training, and the rest, for validation."""
    n = int(0.9 * len(ids))
    return ids[:n], ids[n:]


def check_length(train, val, block_size):
    """Make sure that both parts hold a block and the token that follows it.

    Raises
    ------
    UserError
        If not, or if block_size is below 1.
    """
    if block_size < 1:
        raise UserError(f"--block-size is {block_size}, but must be at least 1")
    name, part = ("train", train) if len(train) < len(val) else ("validation", val)
    needed = block_size + 1
    if len(part) < needed:
        largest = len(part) - 1
        smaller = f" or --block-size {largest} or less" if largest > 0 else ""
        raise UserError(
            f"the text is too short: its {name} part has {len(part)} of {len(train) + len(val)} "
            f"tokens, but --block-size {block_size} needs {needed}; give --data with "
            f"{10 * block_size + 1} tokens or more{smaller}"
        )


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def random_places(n, seed, step, batch_size):
    """Draw (batch_size,) int64, each of 0 .. n - 1 as likely as any other, at every draw."""
    # Philox numbers its output by a counter. The step is in the second 64-bit word of it, which
    # the draws of one step never reach. Raw bits: the one stream that NumPy promises to keep.
    bits = np.random.Philox(key=seed, counter=step << 64).random_raw(batch_size)
    return (bits % np.uint64(n)).astype(np.int64)


def even_places(n, seed, step, batch_size):
    """Return (batch_size,) int64 that fill 0 .. n - 1 evenly from step to step.

    Each place is a golden ratio of the whole behind the one before it, round and round, from one
    that the seed draws: a Weyl sequence. As far as it has come, its gaps have three lengths at
    most, none longer than 2.62 times the shortest (Knuth, The Art of Computer Programming, volume
    3, section 6.4, theorem S). After as many windows as fit a text side by side, nearly nine
    tenths of it have been seen; by random places it is 1 - 1/e, not two thirds.
    """
    first = np.random.Philox(key=seed).random_raw(1)
    i = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)
    turned = (first + i * GOLDEN) >> np.uint64(32)  # of 2^32; the product wraps around as it should
    return (turned * np.uint64(n) >> np.uint64(32)).astype(np.int64)


PLACES = {"random": random_places, "even": even_places}


def random_batch(ids, seed, step, batch_size, block_size, places="random"):
    """Take windows of the ids from here and there: the batch of a training step.

    The same arguments always give the same batch, so that the step is all that a run has to know
    to go on where it was.

    Parameters
    ----------
    ids : (N,) int32, block_size < N <= 2**32
        On a device the windows are gathered there; the places are the same.
    seed, step : int, not negative
    batch_size, block_size : int
    places : str
        Where the windows begin: a key of PLACES.

    Returns
    -------
    x, y : (batch_size, block_size) int32, where ids are
        y is x moved on by one token.
    """
    starts = PLACES[places](len(ids) - block_size, seed, step, batch_size)
    xp = array_module(ids)
    where = to_device(starts, xp)[:, None] + xp.arange(block_size)
    return ids[where], ids[1:][where]


def windows(ids, block_size, batch_size):
    """Iterate over consecutive windows, which together ask for every token but the first once.

    Parameters
    ----------
    ids : (N,) int32
    block_size, batch_size : int

    Yields
    ------
    x, y : (B, block_size) int32, views of ids, B <= batch_size
        y is x moved on by one token. What is left over at the end comes last, as (1, rest).
    """
    n = max(len(ids) - 1, 0)  # predictions
    whole = n - n % block_size
    x, y = (ids[i : i + whole].reshape(-1, block_size) for i in (0, 1))
    for row in range(0, len(x), batch_size):
        yield x[row : row + batch_size], y[row : row + batch_size]
    if whole < n:
        yield ids[None, whole:n], ids[None, whole + 1 :]


def counted(targets):
    """Return how many targets of a text's batch count: all, and no device has to be asked."""
    return targets.size


@dataclasses.dataclass(frozen=True)
class WalkConfig:
    """The walk."""

    data: str | None = cli.option(
        None, "text file in UTF-8; tiny Shakespeare if left out", metavar="FILE"
    )
    block_size: int = cli.option(8, "tokens that a prediction can look back on, itself included")
    encode: str | None = cli.option(None, "text to turn into ids; the first word if left out")
    decode: str | None = cli.option(
        None, 'ids to turn into text, such as "14 43 43 9"; those of --encode if left out'
    )


def main(argv=None):
    """Walk from a text to the examples that a GPT learns from, and print what is seen."""
    parser = cli.parser("python -m minigpt.data", main.__doc__)
    cli.add_flags(parser, WalkConfig)
    config = cli.build(WalkConfig, vars(parser.parse_args(argv)))
    text, name = load_text(config.data)
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode_array(text)
    check_length(*split(ids), config.block_size)
    sections = (
        *describe_text(text, name, tokenizer),
        describe_codec(text, tokenizer, config),
        *describe_ids(ids, tokenizer, config.block_size),
        describe_tradeoff(text, tokenizer, config.block_size),
    )
    print("\n\n".join(sections))


def describe_text(text, name, tokenizer):
    """Sections on the text, its vocabulary and the token table."""
    start = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text[:100])
    chars = tokenizer.chars
    lines = "\n".join(repr(chars[i : i + 72]) for i in range(0, len(chars), 72))
    return (
        _section(f"Text: {name}, {len(text):,} characters. The first 100:", start.rstrip("\n")),
        _section(f"Vocabulary: {len(chars)} different characters, sorted", lines),
        _section("Token table: id and character", token_table(chars)),
    )


def describe_codec(text, tokenizer, config):
    """Section that shows encode and decode at work."""
    sample = config.encode
    if sample is None:
        sample = (re.search(r"\w+", text) or re.search(".", text, re.DOTALL))[0]
    ids = tokenizer.encode(sample)
    shown = ids if config.decode is None else _numbers(config.decode)
    return _section(
        "Encode and decode",
        f"encode({sample!r}) = {ids}\ndecode({shown}) = {tokenizer.decode(shown)!r}",
    )


def _numbers(words):
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
        rows.append([*pair, repr(tokenizer.decode(context)), repr(tokenizer.decode(target))])
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
