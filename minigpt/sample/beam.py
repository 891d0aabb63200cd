"""Beam search: what an encoder-decoder writes for a batch of sources.

Hypotheses are ranked by log-probability per token, END included, so that long ones are not at a
disadvantage: Wu et al. 2016, arXiv:1609.08144, eq. 14, with the length penalty lp(Y) = |Y| and
without a coverage penalty. A beam of 1 is greedy.
"""

from typing import NamedTuple

import numpy as np

from minigpt.backend import array_module, to_device, to_host
from minigpt.model.blocks import keys_values
from minigpt.model.encoder_decoder import decoder_forward, encoder_forward
from minigpt.model.gpt import logits
from minigpt.sample.generate import check_finite
from minigpt.sample.kv_cache import KVCache
from minigpt.sample.step import is_step, step

READ_TOKENS = 4096  # of sources that the encoder reads at a time
SHORT = 1024  # scores of a line that are sorted at once; of more, only the largest


class Hypothesis(NamedTuple):
    """One way to write the target.

    Attributes
    ----------
    ids : list of int
        Without END.
    log_prob : float
        Of ids and END, in nats.
    score : float
        log_prob per token: what hypotheses are ranked by.
    ended : bool
        False if block_size was reached, or the search was left, before END.
    """

    ids: list
    log_prob: float
    score: float
    ended: bool


class DecoderCache(KVCache):
    """The KVCache of a decoder, and the keys and values of its memory, computed once.

    By layer it gives the pair that cross_block_forward takes.

    Attributes
    ----------
    cross : list of (k, v), each (B * beam, H, Ts, D)
        Every row of memory stands there `beam` times, one below the other.
    """

    def __init__(self, memory, p, config, beam):
        xp = array_module(memory)
        super().__init__(config, len(memory) * beam, xp, memory.dtype)
        made = [keys_values(memory, block["cross"], config.n_head)[0] for block in p["h"]]
        self.cross = [tuple(xp.repeat(x, beam, axis=0) for x in kv) for kv in made]

    def __getitem__(self, layer):
        return super().__getitem__(layer), self.cross[layer]

    def take(self, rows):
        """Let row i continue from what row rows[i] has seen; both must have the same memory.

        Parameters
        ----------
        rows : (B,) int, NumPy
        """
        n, xp = self.length, array_module(self.store)
        moved = np.flatnonzero(rows != np.arange(len(rows)))  # often few, if any
        if len(moved):
            here, there = to_device(moved, xp), to_device(rows[moved], xp)
            self.store[:, :, here, :, :n] = self.store[:, :, there, :, :n]
            self.previous = self.previous[to_device(rows, xp)]


def next_logits(ids, seen, p, config, kv):
    """Run one token of each row, ids (B, 1), after those in `kv`; return logits (B, V)."""
    with np.errstate(over="ignore", invalid="ignore"):  # check_finite reports it, as an error
        ids = to_device(ids, array_module(seen))
        if is_step(ids):
            x = step(ids, p, config, kv, seen)
        else:
            x = decoder_forward(ids, None, seen, p, config, kv=kv)[0][:, -1]
        return check_finite(to_host(logits(x, p)))


def log_softmax(z):
    """Return z - log sum exp z over the last axis, in float64."""
    z = z.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def largest(scores, n):
    """Return where the n largest are, in each row: the largest first, of equals the first.

    Parameters
    ----------
    scores : (B, N) float64
    n : int
        At most N.

    Returns
    -------
    indices : (B, n) int
    """
    if scores.shape[-1] <= SHORT:
        return np.argsort(-scores, axis=-1, kind="stable")[:, :n]
    found = np.empty((len(scores), n), int)
    for row, place in zip(scores, found, strict=True):
        least = np.partition(row, len(row) - n)[len(row) - n]
        enough = np.flatnonzero(row >= least)
        place[:] = enough[np.argsort(-row[enough], kind="stable")[:n]]
    return found


def read_sources(source, p, config):
    """Return memory (B, Ts, C) and seen (B, Ts), the encoder's for sources (B, Ts).

    Some rows at a time: a forward pass keeps what a backward pass would need.
    """
    xp, rows = array_module(source), max(1, READ_TOKENS // source.shape[1])
    parts = range(0, len(source), rows)
    read = [encoder_forward(source[i : i + rows], p, config)[:2] for i in parts]
    return read[0] if len(read) == 1 else tuple(map(xp.concatenate, zip(*read, strict=True)))


def search(source, p, config, beam=1, show=None):
    """Find the targets with the highest log-probability per token.

    Each step keeps the `beam` best of all continuations by one token; what has ended stays as it
    is and competes on. The search is over when all have ended, or at block_size tokens.

    Parameters
    ----------
    source : (B, Ts) int, NumPy
        -1 is padding, at the end of a row.
    p : tree of parameters
    config : Seq2SeqConfig
    beam : int
    show : callable, optional
        show(t) is called when the hypotheses have t tokens; where it returns True, none gets more.

    Returns
    -------
    hypotheses : list of B lists of Hypothesis, at most `beam`, the best first
    """
    end, B, xp = config.vocab_size - 1, len(source), array_module(p["wte"])
    memory, seen = read_sources(to_device(source, xp), p, config)
    kv, seen = DecoderCache(memory, p, config, beam), xp.repeat(seen, beam, axis=0)
    first = np.arange(B)[:, None]
    ids = np.zeros((B, beam, config.block_size), np.int32)
    length, done = np.zeros((B, beam), int), np.zeros((B, beam), bool)
    log_prob = np.full((B, beam), -np.inf)
    log_prob[:, 0] = 0  # to begin with there is one hypothesis, the empty one
    token = np.full((B, beam), end, np.int32)
    for t in range(config.block_size):
        step = log_softmax(next_logits(token.reshape(-1, 1), seen, p, config, kv))
        step = step.reshape(B, beam, -1)
        step[done] = np.where(np.arange(config.vocab_size) == end, 0.0, -np.inf)
        total, length = log_prob[..., None] + step, length + ~done
        score = (total / length[..., None]).reshape(B, -1)
        best = largest(score, beam)
        parent, token = np.divmod(best, config.vocab_size)
        log_prob = total.reshape(B, -1)[first, best]
        ids, length, done = ids[first, parent], length[first, parent], done[first, parent]
        token = ids[:, :, t] = token.astype(np.int32)
        done |= token == end
        enough = show is not None and show(t + 1) is True
        if enough or (done | (log_prob == -np.inf)).all():
            break
        if beam > 1:
            kv.take((first * beam + parent).ravel())
    best = zip(ids, log_prob, length, done, strict=True)
    return [[make_hypothesis(*h) for h in zip(*row, strict=True) if h[1] > -np.inf] for row in best]


def make_hypothesis(ids, log_prob, length, done):
    """Return a Hypothesis of a row of the arrays of `search`."""
    return Hypothesis(
        ids[: length - done].tolist(), float(log_prob), float(log_prob / length), bool(done)
    )
