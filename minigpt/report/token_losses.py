"""The loss of every token, and the passages of the validation data that surprise a model most.

A passage is a few tokens of a text, each predicted from at least half a context before it. Of an
encoder-decoder it is a pair: its target, given the source.
"""

import itertools
import time
from typing import NamedTuple

import numpy as np

from minigpt.backend import array_module, to_device, to_host
from minigpt.data.batches import windows
from minigpt.model import count_parameters
from minigpt.model.gpt import ignore, logits
from minigpt.params import leaves
from minigpt.sample.answers import END
from minigpt.sample.beam import log_softmax
from minigpt.sample.evaluation import EVAL_TOKENS, spread
from minigpt.sample.prompt import in_parts
from minigpt.sample.scoring import thread_map
from minigpt.sample.tasks import task_of

SPAN, BEFORE = 64, 40  # tokens of a passage, and of the text shown before it
SHORTEST, LONGEST = 128, 256  # tokens of context and passages together: of large models, at most
FLOPS = 20e9  # of the forward pass over a window, about, beyond which it is a shorter one
SCORED = 10_000  # tokens whose loss is taken, at most
SECONDS = 0.8  # after which no further batch is begun
TOP = 3  # tokens that the model expected
SHOWN = 4  # passages of each kind
LOGITS = 2**23  # numbers at a time
GOLDEN = 0.618


class Token(NamedTuple):
    """A token of a passage.

    Attributes
    ----------
    text : str
    loss : float
        Nats.
    expected : list of (str, float)
        The labels of the likeliest tokens, and their probabilities.
    """

    text: str
    loss: float
    expected: list


class Passage(NamedTuple):
    """Tokens in a row, with the text before them: of a pair, its source.

    Attributes
    ----------
    loss : float
        Mean of its tokens.
    before : str
    tokens : list of Token
    """

    loss: float
    before: str
    tokens: list


class Ranking(NamedTuple):
    """The worst and the best of the passages that were looked at.

    Attributes
    ----------
    worst, best : list of Passage
        The most extreme first.
    scored, total : int
        Tokens whose loss was taken, and those of all pairs or whole windows of the split.
    """

    worst: list
    best: list
    scored: int
    total: int


def token_losses(ids, targets, tree, config, first=0):
    """Return the loss of every target, and what the model expected.

    Parameters
    ----------
    ids, targets : (B, Ts), (B, T) int
    tree : tree of parameters
    config : GPTConfig or Seq2SeqConfig
    first : int
        Targets before this place are left out.

    Returns
    -------
    losses : (B, T - first) float64, NumPy
        Nats; 0 where the target is padding.
    top : (B, T - first, TOP) int
        The likeliest tokens.
    probabilities : (B, T - first, TOP) float64
    """
    xp = array_module(next(array for _, array in leaves(tree)))
    x, y = to_device(ids, xp), to_device(targets, xp)
    hidden = task_of(config).hidden(x, y, tree, config, None, ignore)[:, first:]
    right = to_host(targets)[:, first:].reshape(-1)
    rows, size = hidden.reshape(-1, hidden.shape[-1]), max(1, LOGITS // config.vocab_size)
    n = min(TOP, config.vocab_size)
    losses, top, probabilities = np.zeros(len(rows)), [], []
    for part in (slice(i, i + size) for i in range(0, len(rows), size)):
        log_p = log_softmax(to_host(logits(rows[part], tree)))
        found = np.argpartition(-log_p, n - 1, axis=-1)[:, :n]
        values = np.take_along_axis(log_p, found, -1)
        order = np.argsort(-values, axis=-1, kind="stable")
        top.append(np.take_along_axis(found, order, -1))
        probabilities.append(np.exp(np.take_along_axis(values, order, -1)))
        losses[part] = -log_p[np.arange(len(log_p)), right[part]] * (right[part] >= 0)
    shape = len(targets), targets.shape[1] - first
    joined = (np.concatenate(x).reshape(*shape, n) for x in (top, probabilities))
    return losses.reshape(shape), *joined


def score_in_time(batches, params, config, first, seconds):
    """Yield (batch, what token_losses returns) of batches, until the time is over.

    Whatever has come by then is spread evenly over all. At least one batch is scored.

    Parameters
    ----------
    batches : list of (ids, targets)
    params, config, first : as of `token_losses`
    seconds : float
    """
    order = sorted(range(len(batches)), key=lambda i: i * GOLDEN % 1)
    start = time.perf_counter()
    with thread_map(params) as map:
        for group in in_parts(order, 2):
            these = [batches[i] for i in group]
            found = map(lambda batch: token_losses(*batch, params.tree, config, first), these)
            yield from zip(these, found, strict=True)
            if time.perf_counter() - start > seconds:
                return


class Entry(NamedTuple):
    """A passage as ids, and what token_losses has found of it: `before` are ids, too."""

    loss: float
    before: np.ndarray
    targets: np.ndarray
    losses: np.ndarray
    top: np.ndarray
    probabilities: np.ndarray


def entry(before, targets, scores):
    """Return the Entry of targets (N,) and their scores (N, ...)."""
    return Entry(float(scores[0].mean()), before, targets, *scores)


def rank_passages(checkpoint, data, scored=SCORED, seconds=SECONDS):
    """Return the Ranking of passages of a text's validation part.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of a GPT.
    data : TextData
    scored : int
        Tokens to look at, at most about.
    seconds : float
        After which no further batch is begun.
    """
    config, val = checkpoint.config, data.val
    T, tokens = sizes_of(config, len(val) - 1)
    first = T // 2
    whole = 1 + (len(val) - 1 - T) // (T - first)
    n = min(max(1, scored // (T - first)), whole)
    starts, rows = spread(len(val) - T, n), max(1, tokens // T)
    xp, found = array_module(val), []
    batches = [windows(val, to_device(starts[i : i + rows], xp), T) for i in range(0, n, rows)]
    timed = score_in_time(batches, checkpoint.params, config, first, seconds)
    for (ids, targets), scores in timed:
        ids, targets = to_host(ids), to_host(targets)[:, first:]
        for row, start in itertools.product(range(len(ids)), range(0, T - first, SPAN)):
            place, at = (row, slice(start, start + SPAN)), first + start + 1
            before = ids[row, max(0, at - BEFORE) : at]
            found.append(entry(before, targets[place], [x[place] for x in scores]))
    tokenizer = checkpoint.tokenizer
    label = label_of(tokenizer)

    def passage(entry):
        decoder = tokenizer.decoder()
        before = decoder.push(entry.before.tolist())
        texts = [decoder.push([i]) or label(i) for i in entry.targets.tolist()]
        return Passage(entry.loss, before, tokens_of(texts, entry, label))

    return rank(found, passage, whole * (T - first))


def sizes_of(config, most):
    """Return the tokens of a window of a text that has `most`, and those of a batch."""
    fitting = max(SHORTEST, int(FLOPS / (2 * count_parameters(config))))
    return min(config.block_size, LONGEST, fitting, most), min(EVAL_TOKENS, fitting)


def rank_pairs(checkpoint, data, scored=SCORED, seconds=SECONDS):
    """Return the Ranking of validation pairs, a Passage each: as rank_passages, of a PairData."""
    config, pairs, task = checkpoint.config, data.val, task_of(checkpoint.config)
    source, target = checkpoint.tokenizer
    end, found = checkpoint.tokenizer.end, []
    items, total = task.eval_size(pairs, config)
    n = min(items, max(1, scored * items // total))
    rows = max(1, EVAL_TOKENS * items // total)
    batches = [*task.eval_batches(pairs, config, rows, spread(items, n))]
    for (ids, targets), scores in score_in_time(batches, checkpoint.params, config, 0, seconds):
        for row in range(len(ids)):
            place = row, targets[row] >= 0
            found.append(entry(ids[row], targets[place], [x[place] for x in scores]))
    label = label_of(target, end)

    def passage(entry):
        before = source.decode(entry.before[entry.before >= 0].tolist())
        decoder, ids = target.decoder(), entry.targets.tolist()
        texts = [f" {END}" if i == end else decoder.push([i]) or label(i) for i in ids]
        return Passage(entry.loss, before, tokens_of(texts, entry, label))

    return rank(found, passage, total)


def rank(found, passage, total):
    """Return the Ranking of a list of Entry; none is among both the worst and the best.

    Parameters
    ----------
    found : list of Entry
    passage : callable
        Entry -> Passage
    total : int
        Tokens of the split.
    """
    ranked = sorted(found, key=lambda entry: -entry.loss)
    shown = min(SHOWN, -(-len(ranked) // 2))
    worst, best = ranked[:shown], ranked[shown:][::-1][:shown]
    scored = sum(len(entry.targets) for entry in found)
    return Ranking([*map(passage, worst)], [*map(passage, best)], scored, total)


def tokens_of(texts, entry, label):
    """Return the Tokens of an Entry, from their texts and a function id -> label."""
    rows = zip(texts, entry.losses, entry.top.tolist(), entry.probabilities, strict=True)
    return [
        Token(text, float(loss), [(label(i), float(p)) for i, p in zip(ids, of, strict=True)])
        for text, loss, ids, of in rows
    ]


def label_of(tokenizer, end=None):
    """Return a function id -> label, that of the id `end` and of ids that only pad a vocabulary,
    too.
    """

    def label(i):
        if i == end:
            return END
        return tokenizer.label(i) if i < tokenizer.vocab_size else f"[{i}]"

    return label
