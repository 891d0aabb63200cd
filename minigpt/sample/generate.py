"""Generating text with a GPT: the next token again and again, with a KV cache.

The cache has room for block_size tokens. When it is full, it starts afresh: its last
block_size // 2 tokens and the new one are run again from position 0, and the cache grows from
there. (The lecture slides its window by one token, and runs all of it again for each.)
"""

import numpy as np

from minigpt.backend import array_module, to_device, to_host
from minigpt.backend.cores import usable_cores
from minigpt.backend.cpu.crew import shard_slices
from minigpt.backend.cpu.threads import Threads
from minigpt.errors import UserError
from minigpt.model.gpt import gpt_forward, logits
from minigpt.params import leaves
from minigpt.sample.kv_cache import KVCache
from minigpt.sample.sampling import draw, next_probabilities
from minigpt.sample.step import is_step, step

PREFILL_TOKENS = 1024  # in one pass, over all rows: bounds the memory of activations
PART_ROWS = 4  # that a thread has at least: products of fewer rows take as long
PART_WORK = 2**25  # multiplications of a step, at least: some ms, where Python's own take one


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
    token t takes number t of it. So a row is the same alone and among others, but for the
    round-off of products of other shapes (some 1e-6 of a logit in float32): that can only tip a
    draw which lies on the border of two tokens.

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
        On a CPU, each with BLAS on one thread. The cores that may be used, if left out.

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
    context = np.empty((B, config.block_size), np.int32)
    context[:, :n] = ids
    xp, dtype = array_module(p["wte"]), p["wte"].dtype
    with Threads((threads or usable_cores()) if xp is np else 1) as team:
        parts = parts_of(B, p, team.n)
        caches = [KVCache(config, part.stop - part.start, xp, dtype) for part in parts]

        def run(i):
            kv = caches[i]
            return next_logits(context[parts[i], kv.length : n], p, config, kv, B)[:, :vocab_size]

        for _ in range(max_new_tokens):
            z = np.concatenate(team.map(run, range(len(parts))))
            uniforms = np.array([stream.random() for stream in streams])
            new = draw(next_probabilities(z, temperature, top_k, top_p), uniforms)
            yield new
            if n == config.block_size:
                n //= 2
                context[:, :n] = context[:, config.block_size - n :]
                for kv in caches:
                    kv.reset()
            context[:, n] = new
            n += 1


def parts_of(rows, p, threads):
    """Return slices of the rows: one for each thread that has enough to do, at least one.

    One part alone has all threads where it reads a prompt: `Threads.map` lends them to its ops.
    """
    work = rows * sum(x.size for _, x in leaves(p) if np.ndim(x) == 2)
    return shard_slices(rows, max(1, min(threads, rows // PART_ROWS, work // PART_WORK)))


def next_logits(ids, p, config, kv, rows=None):
    """Run the tokens `ids` (B, T) that follow those in `kv`; return the last logits (B, V).

    They may be a part of more `rows`.
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
