"""How well a model does on other data than its own: the numbers of `minigpt score`.

A score is a dict of what JSON knows. Its numbers go by name; `not_scored` is a list of sentences on
what had to be left out.
"""

import collections
import contextlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy

from minigpt import cli
from minigpt.backend.blas import blas_threads
from minigpt.backend.cores import usable_cores
from minigpt.backend.cpu import pool
from minigpt.backend.devices import on_gpu
from minigpt.data import token_files
from minigpt.data.pair_files import line_name, read_files
from minigpt.data.pairs import Pairs
from minigpt.data.sources import describe, find_sources, hold, read_parts
from minigpt.data.survey import survey
from minigpt.errors import UserError
from minigpt.sample.answers import answer_each
from minigpt.sample.evaluation import (
    EVAL_TOKENS,
    bits_per_byte,
    count_bytes,
    mean_loss,
    some_of,
)
from minigpt.sample.memory import lines_that_fit
from minigpt.sample.prompt import (
    LINES,
    Line,
    check_tokenizer,
    encode_line,
    encode_text,
    in_parts,
    knows,
)

GPU_TOKENS = 2**14  # per forward pass
SHOWN = 10  # unknown characters in a message


@dataclass(frozen=True)
class TextScoreOptions(cli.Config):
    """Scores of a GPT; there is nothing to choose."""


@dataclass(frozen=True)
class PairScoreOptions(cli.Config):
    """Scores of an encoder-decoder."""

    beam: int = cli.option(
        1, "beam width: candidates kept at each step; 1 is greedy", min=1, below=2**16
    )
    wrong: int = cli.option(
        20, "wrong answers to list, spread evenly over all of them; 0: none", min=0, below=2**31
    )


def score_text(task, params, config, tokenizer, data, options, show):
    """Score a GPT on a text: every token but the first, in consecutive windows of block_size.

    Characters that have no token are left out; those around them become neighbours.

    Parameters
    ----------
    task : Task
    params, config, tokenizer : as in a Checkpoint
    data : str, path or list of them
        As in sources.find_sources.
    options : TextScoreOptions
    show : callable
        show(text) is called now and then: how far it is.

    Returns
    -------
    score : dict
        characters, tokens: that are predicted; unknown_characters; loss (nats per token),
        perplexity, bits_per_character, bits_per_byte (of UTF-8, see evaluation.py).
    """
    check_tokenizer(tokenizer)
    sources = hold(find_sources(data))
    found = survey(sources)
    ids, removed = known_ids(sources, found, tokenizer)
    if len(ids) < 2:
        raise UserError(
            f"{sources[0].where} has {cli.plural(len(ids), 'tokens')} that the model knows; a "
            "score needs 2"
        )
    loss, count = loss_of(task, params, config, ids, show)
    # The first token is not predicted; a character that it only begins is.
    removed.update(tokenizer.decoder().push(ids[:1].tolist()))
    length = found.length - removed.total()
    sizes = count_bytes(task, ids, config, tokenizer.byte_lengths)
    unknown = {char: n for char, n in removed.most_common() if not knows(tokenizer, char)}
    unknown.pop("\r", None)
    return {
        "data": describe(sources),
        "characters": length,
        "unknown_characters": sum(unknown.values()),
        "tokens": count,
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_character": loss * count / math.log(2) / length,
        "bits_per_byte": bits_per_byte(loss, *sizes),
        "not_scored": [describe_unknown(unknown)] if unknown else [],
    }


def known_ids(sources, found, tokenizer):
    """Return the ids of a text, and a Counter of the characters that were left out of it.

    Those have no token. Line ends of other systems become new lines, unless the model knows them.

    Parameters are those of token_files.encode_text.

    Returns
    -------
    ids : (N,) int
    removed : Counter
    """
    table = {ord(char): None for char in found.chars if not knows(tokenizer, char)}
    if not table:
        return token_files.encode_text(sources, found, tokenizer)[0], collections.Counter()
    if ord("\r") in table and not found.crlf and knows(tokenizer, "\n"):
        table[ord("\r")] = "\n"
    counts = collections.Counter()

    def known_parts():
        for _, part in read_parts(sources):
            counts.update(part)
            yield part.translate(table)

    dtype = token_files.dtype_of(tokenizer.vocab_size)
    parts = (ids.astype(dtype) for ids in tokenizer.encode_parts(known_parts()))
    ids = token_files.in_memory(parts, tokenizer)
    gone = {chr(code) for code, new in table.items() if new is None}
    return ids, collections.Counter({char: n for char, n in counts.items() if char in gone})


def describe_unknown(unknown):
    """Return a sentence on unknown characters, {character: times}."""
    named = cli.first_of([f"{char!r} ({n:,})" for char, n in unknown.items()], SHOWN)
    total = sum(unknown.values())
    return f"{total:,} characters that the model does not know, left out: {named}"


def score_pairs(task, params, config, tokenizer, data, options, show):
    """Score an encoder-decoder on pairs: their loss, and how many of them it answers exactly.

    Parameters and score are as in `score_text`, with

    data
        As in pair_files.read_files. Lines that are no pairs, or that the model cannot read or
        write, are left out.
    options : PairScoreOptions

    Returns
    -------
    score : dict
        pairs, tokens: of the targets; loss, perplexity; bits_per_byte: of the targets, their ENDs
        in the bits; exact_match, of all pairs; beam; wrong_answers: how many; wrong: some of them,
        {"source", "expected", "answer"} each.
    """
    lines_that_fit(config, options.beam, "--beam")  # before anything is read
    files, name = read_files(data)
    pairs, lines, bad = readable(files, tokenizer, config)
    if not pairs:
        raise UserError(f"none of {len(bad):,} lines can be scored; the first: {bad[0]}")
    split = Pairs(pairs, tokenizer)
    loss, count = loss_of(task, params, config, split, show)
    sizes = count_bytes(task, split, config, tokenizer.byte_lengths)
    model = params, config, tokenizer
    answers = answers_to(model, lines, split.order, options.beam, show)
    wrong = [
        {"source": source, "expected": target, "answer": best.text + ("" if best.ended else " ...")}
        for (source, target), best in zip(pairs, answers, strict=True)
        if not (best.ended and best.text == target)
    ]
    return {
        "data": name,
        "pairs": len(pairs),
        "tokens": count,
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(loss, *sizes),
        "exact_match": (len(pairs) - len(wrong)) / len(pairs),
        "beam": options.beam,
        "wrong_answers": len(wrong),
        "wrong": some_of(wrong, options.wrong),
        "not_scored": bad,
    }


def readable(files, tokenizer, config):
    """Return the pairs that a model can have, the Lines of their sources, and why not the others.

    The last are sentences, in the order of the lines.

    Parameters
    ----------
    files : list of (what errors call it, PairFile)
    """
    pairs, lines, bad = [], [], []
    for where, file in files:
        faults = [(number, f"{line_name(where, number)} {what}") for number, what in file.bad]
        for number, pair in zip(file.lines, file.pairs, strict=True):
            try:
                lines.append(line_of(line_name(where, number), pair, tokenizer, config))
                pairs.append(pair)
            except UserError as error:
                faults.append((number, str(error)))
        bad += [sentence for _, sentence in sorted(faults)]
    return pairs, lines, bad


def line_of(where, pair, tokenizer, config):
    """Return the Line of a pair's source; a UserError says why a model cannot have the pair."""
    ids = encode_line(where, pair[0], tokenizer.source, config.block_size)
    n = len(encode_text(f"{where}, target", pair[1], tokenizer.target))
    if n >= config.block_size:
        raise UserError(
            f"{where} has a target of {n} {tokenizer.target.unit}, but the model writes at most "
            f"{config.block_size - 1}"
        )
    return Line(where, pair[0], ids)


def answers_to(model, lines, order, beam, show):
    """Return the best Answer to each of many Lines; `order` brings those of like length together.

    The other parameters are those of `score_pairs`.
    """
    params, config, _ = model
    answers, done = [None] * len(lines), 0
    parts = [*in_parts([*order], min(LINES, lines_that_fit(config, beam)))]
    with thread_map(params) as map:
        found = map(lambda part: [*answer_each(*model, [lines[i] for i in part], beam)], parts)
        for part, answered in zip(parts, found, strict=True):
            for i, ranked in zip(part, answered, strict=True):
                answers[i] = ranked[0]
            done += len(part)
            show(f"answer {done:,} of {len(lines):,}")
    return answers


def loss_of(task, params, config, split, show):
    """Return the mean loss over a split, in nats per token, and its number of targets."""
    _, total = task.eval_size(split, config)
    rows = max(1, (GPU_TOKENS if on_gpu(params.flat) else EVAL_TOKENS) // config.block_size)
    batches = task.eval_batches(split, config, rows)
    with thread_map(params) as map:
        loss, count = mean_loss(
            task,
            params,
            config,
            batches,
            map,
            lambda done: show(f"loss of {done:,} of {total:,} tokens"),
        )
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss}: this model is of no use")
    return loss, count


@contextlib.contextmanager
def thread_map(params):
    """Yield a map that works on several batches at a time, with BLAS on one core each."""
    if on_gpu(params.flat) or usable_cores() == 1:
        yield lambda fn, items: map(partial(work_on, fn), items)
        return
    executor = ThreadPoolExecutor(usable_cores())
    try:
        with blas_threads(1):
            yield lambda fn, items: executor.map(partial(work_on, fn), items)
    finally:
        executor.shutdown(cancel_futures=True)


def work_on(fn, item):
    """Return fn(item), a piece of work of this thread; numbers that overflow show in the loss."""
    with pool.work(), numpy.errstate(over="ignore", invalid="ignore"):
        return fn(item)


def perplexity(loss):
    """Return exp(loss), or None where no float is so large."""
    return math.exp(loss) if loss < 700 else None
