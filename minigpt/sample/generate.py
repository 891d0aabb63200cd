"""Generating text with a GPT: the next token again and again, with a KV cache.

The cache has room for block_size tokens. When it is full, it starts afresh: its last
block_size // 2 tokens and the new one are run again from position 0, and the cache grows from
there. (The lecture slides its window by one token, and runs all of it again for each.)
"""

import copy

import numpy as np

from minigpt.backend import array_module, to_device, to_host
from minigpt.backend.cores import usable_cores
from minigpt.backend.cpu.crew import shard_slices
from minigpt.backend.cpu.threads import Threads
from minigpt.errors import UserError
from minigpt.model.flops import count_flops
from minigpt.model.gpt import gpt_forward, logits
from minigpt.sample.kv_cache import KVCache
from minigpt.sample.sampling import draw, next_probabilities
from minigpt.sample.step import is_step, step

PREFILL_TOKENS = 1024  # in one pass, over all rows: bounds the memory of activations
PART_ROWS = 4  # of a thread's step, or one: OpenBLAS takes as long for three rows as for eight
PART_WORK = 2**25  # multiplications for a thread, at least: they take as long as Python's calls


def generate(
    p,
    config,
    ids,
    max_new_tokens,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    seed=0,
    rows=None,
    vocab_size=None,
    threads=None,
):
    """Iterate over the next tokens of each row.

    Row r has a random stream of its own, the counter-based Philox with key (seed, r), and its
    token t takes number t of it. So a row is the same alone and among others, and over any number
    of threads, but for the round-off of products of other shapes (some 1e-6 of a logit in float32):
    that can only tip a draw which lies on the border of two tokens.

    Parameters
    ----------
    p : tree of parameters
    config : GPTConfig
    ids : (B, T) int, NumPy, T >= 1
        The prompts, of which the last block_size tokens count.
    max_new_tokens : int
    temperature, top_k, top_p
        As in `next_probabilities`.
    seed : int
        From 0 to 2**64 - 1.
    rows : sequence of B int, optional
        The numbers of the rows, 0 .. B - 1 if left out.
    vocab_size : int, optional
        The tokenizer's, where the model's is padded: no id from there on is drawn.
    threads : int, optional
        On a CPU, at most: they are used where they gain something. The caller holds
        blas_threads(1). All cores that may be used, if left out.

    Yields
    ------
    ids : (B,) int64, NumPy

    Raises
    ------
    UserError
        If an id is not in the vocabulary, or a logit is not finite.
    """
    ids = np.asarray(ids)[:, -config.block_size :]
    B, n = ids.shape
    if n == 0 or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise UserError(f"a prompt needs one id or more, from 0 to {config.vocab_size - 1}")
    keys = [np.array([seed, r], np.uint64) for r in (range(B) if rows is None else rows)]
    streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    xp = array_module(p["wte"])
    threads = (threads or usable_cores()) if xp is np else 1
    kv, context = KVCache(config, B, xp, p["wte"].dtype), np.empty((B, config.block_size), np.int32)
    context[:, :n] = ids

    def run(rows):
        return next_logits(ids[rows], p, config, part_of(kv, rows), B)

    with team_of(threads_of(config, B, 1, threads)) as stepping:
        for _ in range(max_new_tokens):
            ids = to_device(context[:, kv.length : n], xp)
            if ids.shape[1] == 1:
                z = stepping.map(run, shard_slices(B, stepping.n))
            else:
                with team_of(threads_of(config, B, ids.shape[1], threads)) as reading:
                    z = reading.map(run, shard_slices(B, reading.n if reading.n <= B else 1))
            kv.advance(ids)
            uniforms = np.array([stream.random() for stream in streams])
            z = np.concatenate(z)[:, :vocab_size]
            new = draw(next_probabilities(z, temperature, top_k, top_p), uniforms)
            yield new
            if n == config.block_size:
                n //= 2
                context[:, :n] = context[:, config.block_size - n :]
                kv.reset()
            context[:, n] = new
            n += 1


def threads_of(config, rows, tokens, threads):
    """Return how many threads a pass over so many tokens of each row is worth, at most `threads`.

    In a step each has one row, or several. To read a prompt each has one or more; where there are
    more threads than rows, the ops of all rows share them: see `Threads.map`.
    """
    work = count_flops(config, rows, tokens) // 6  # that of both passes, see there
    work -= rows * (tokens - 1) * config.vocab_size * config.n_embd  # the last token has the head
    worth = min(threads, work // PART_WORK)
    if tokens == 1:
        worth = min(worth, rows if rows <= threads else rows // PART_ROWS)
    return max(1, worth)


def part_of(kv, rows):
    """Return the KVCache of a slice of the rows, as it is now; its memory is that of `kv`."""
    part = copy.copy(kv)
    part.store = kv.store[:, :, rows]
    part.previous = None if kv.previous is None else kv.previous[rows]
    return part


def team_of(n):
    """Return n Threads, or one where so many cannot be started."""
    try:
        return Threads(n)
    except UserError:
        return Threads(1)


def next_logits(ids, p, config, kv, rows=None):
    """Run the tokens `ids` (B, T) that follow those in `kv`; return the last logits (B, V).

    They may be some of more `rows`.
    """
    ids = to_device(ids, array_module(p["wte"]))
    with np.errstate(over="ignore", invalid="ignore"):  # check_finite reports it, as an error
        x = step(ids, p, config, kv) if is_step(ids) else read(ids, p, config, kv, rows)
        return check_finite(to_host(logits(x, p)))


def read(ids, p, config, kv, rows=None):
    """Run the tokens `ids` (B, T) after those in `kv`, some at a time; return the last (B, C)."""
    size = max(1, PREFILL_TOKENS // (rows or len(ids)))
    for start in range(0, ids.shape[1], size):
        x, _ = gpt_forward(ids[:, start : start + size], p, config, kv=kv)
    return x[:, -1]


def check_finite(z):
    """Return the logits z.

    Raises
    ------
    UserError
        If one of them is not finite: a probability made of it would be nonsense.
    """
    if not np.isfinite(z).all():
        raise UserError(
            "the model's logits are not finite, so its weights have diverged: take an earlier "
            "checkpoint, or train again with a lower --learning-rate"
        )
    return z
