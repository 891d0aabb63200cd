"""Text that a GPT continues, as str pieces: with a stop string, it ends before the first such.

One text is printed as it is made; several are made side by side, as many as fit in memory, and
printed one after the other.
"""

import operator
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minigpt import cli
from minigpt.backend import array_module, to_device, to_host
from minigpt.cli.characters import quoted
from minigpt.model.blocks import block_weights
from minigpt.model.gpt import gpt_forward
from minigpt.sample.generate import generate
from minigpt.sample.memory import texts_that_fit
from minigpt.sample.progress import Progress
from minigpt.sample.prompt import encode_line, encode_text, in_parts

SEPARATOR = "-" * 15  # between texts, as in nanoGPT


@dataclass(frozen=True)
class TextOptions(cli.Config):
    """Text of a GPT."""

    max_new_tokens: int = cli.option(500, "tokens to write for each text", min=0)
    temperature: float = cli.option(0.8, "sampling temperature; 0 is greedy", min=0)
    top_k: int = cli.option(200, "sample from the N most likely tokens; 0: from all", min=0)
    top_p: float = cli.option(
        1.0, "sample from the fewest tokens whose probabilities reach X", above=0, max=1
    )
    num_samples: int = cli.option(1, "texts to write", min=1)
    seed: int = cli.option(1337, "the same seed gives the same text", min=0, below=2**64)
    stop: str = cli.option("", "end the text before this string")


class Texts(NamedTuple):
    """Texts that are made side by side.

    Attributes
    ----------
    texts : list of str
        As far as they are certain: without what may be the start of the stop string.
    stopped : list of bool
        Which have met the stop string.
    ended : list of bool
        Which the model has ended, by the tokenizer's end of text, which is no part of them.
    """

    texts: list
    stopped: list
    ended: list


def encode_prompt(prompt, tokenizer, where):
    """Return the ids of a prompt, the tokenizer's default prompt if it is empty."""
    ids = encode_text(where, prompt, tokenizer)
    return ids if len(ids) else tokenizer.default_prompt()


def cut_at_stop(text, stop, more):
    """Part of a text before the stop string; if more is to come, before what may be its start."""
    head, found, _ = text.partition(stop) if stop else (text, "", "")
    if found or not more:
        return head
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return text[: len(text) - next((n for n in sizes if text.endswith(stop[:n])), 0)]


def stream_texts(params, config, tokenizer, ids, options, rows=(0,)):
    """Iterate over the texts of some rows as they grow; the last are whole.

    Parameters
    ----------
    params : Params
    config : GPTConfig
    tokenizer : Tokenizer
    ids : (T,) int
        The prompt, which is no part of the texts.
    options : TextOptions
    rows : sequence of int
        The numbers of the samples.

    Yields
    ------
    now : Texts
    """
    settings = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    settings |= {"rows": rows, "vocab_size": tokenizer.vocab_size}
    ids, stop = np.broadcast_to(ids, (len(rows), len(ids))), options.stop
    texts, stopped, ended = [""] * len(rows), [False] * len(rows), [False] * len(rows)
    decoders = [tokenizer.decoder() for _ in rows]
    for new in generate(params.tree, config, ids, options.max_new_tokens, **settings):
        ended = [over or i == tokenizer.end_of_text for over, i in zip(ended, new, strict=True)]
        texts = [
            text if over else text + decoder.push([i])
            for text, over, decoder, i in zip(texts, ended, decoders, new, strict=True)
        ]
        stopped = [bool(stop) and stop in text for text in texts]
        if all(map(operator.or_, stopped, ended)):
            break
        yield Texts([cut_at_stop(text, stop, more=True) for text in texts], stopped, ended)
    texts = [text + decoder.flush() for text, decoder in zip(texts, decoders, strict=True)]
    yield Texts([cut_at_stop(text, stop, more=False) for text in texts], stopped, ended)


def generate_text(params, config, tokenizer, prompt, options):
    """Iterate over the pieces of the text that a GPT continues a prompt with.

    Parameters
    ----------
    params : Params
    config : GPTConfig
    tokenizer : Tokenizer
    prompt : str
        Of which the model sees the last block_size tokens; it is no part of the pieces.
    options : TextOptions
        A function of its arguments: num_samples is of no account.

    Yields
    ------
    piece : str
        Never empty, and never a part of a character.

    Raises
    ------
    UserError
        At once, if the prompt or the stop string, which could then never come, holds something
        that has no token; on the way, if the model's logits are not finite.
    """
    encode_text("stop", options.stop, tokenizer)
    ids = encode_prompt(prompt, tokenizer, "prompt")
    return _pieces(stream_texts(params, config, tokenizer, ids, options))


def _pieces(texts):
    """Yield what is new in each of the growing texts of one row."""
    shown = 0
    for (text,), *_ in texts:
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)


def short_text(data, tree, config, tokens, enough):
    """Return a short text of a model in training, from the default prompt, which is no part of it.

    Its random numbers are its own, and always the same: only the weights make it another text.

    Parameters
    ----------
    data : TextData
    tree : tree of parameters
    config : GPTConfig
    tokens : int
        That it has at most.
    enough : callable
        enough() is asked after each token; where it is True, the text ends there.
    """
    tokenizer, usual = data.tokenizer, TextOptions()
    settings = {name: getattr(usual, name) for name in ("temperature", "top_k", "top_p", "seed")}
    settings |= {"vocab_size": tokenizer.vocab_size, "threads": 1}
    decoder, text = tokenizer.decoder(), ""
    for (new,) in generate(tree, config, tokenizer.default_prompt()[None], tokens, **settings):
        if new == tokenizer.end_of_text:
            break
        text += decoder.push([new])
        if enough():
            break
    return text


def print_samples(checkpoint, options, prompt, ids):
    """Print the samples, each with the prompt in front.

    Returns
    -------
    stopped, ended : int
        How many met the stop string; how many of the others the model has ended.
    """
    model = checkpoint.params, checkpoint.config, checkpoint.tokenizer
    n, tokens, progress = options.num_samples, options.max_new_tokens, Progress()
    counts = np.zeros(2, int)
    for rows in in_parts(range(n), texts_that_fit(checkpoint.config)):
        growing = enumerate(stream_texts(*model, ids, options, rows), 1)
        if n == 1:
            return print_sample(growing, prompt, progress, tokens)
        for t, now in growing:
            texts = now.texts
            progress.show(f"{rows[0]:,} of {n:,} texts, {min(t, tokens):,} of {tokens:,} tokens")
        progress.clear()
        for i, text in zip(rows, texts, strict=True):
            print(cli.printable(prompt + text))
            if i < n - 1:
                print(SEPARATOR, flush=True)
        counts += count_ends(now)
    return counts


def print_sample(growing, prompt, progress, tokens):
    """Print one text as it grows; return what `print_samples` returns."""
    print(cli.printable(prompt), end="", flush=True)
    shown, in_sight = 0, sys.stdout.isatty()
    for t, now in growing:
        (text,) = now.texts
        print(cli.printable(text[shown:]), end="", flush=len(text) > shown)
        shown = len(text)
        if not in_sight:
            progress.show(f"{min(t, tokens):,} of {tokens:,} tokens")
    progress.clear()
    print()
    return count_ends(now)


def count_ends(now):
    """Return how many of Texts met the stop string, and how many others the model has ended."""
    return sum(now.stopped), sum(map(operator.gt, now.ended, now.stopped))


def print_texts(checkpoint, prompt, options):
    """Print the texts that a GPT continues the prompt with; return the exit code.

    Parameters
    ----------
    checkpoint : Checkpoint
    prompt : Prompt, or None for the default prompt
    options : TextOptions
    """
    tokenizer, block_size = checkpoint.tokenizer, checkpoint.config.block_size
    encode_text("--stop", options.stop, tokenizer)
    name, text = (prompt.name, prompt.text(tokenizer)) if prompt else ("--prompt", "")
    ids = encode_prompt(text, tokenizer, name)
    if len(ids) > block_size:
        cli.note(f"of the prompt's {len(ids)} tokens, the model sees the last {block_size}")
    for note in tokenizer.prompt_notes(text):
        cli.note(note)
    n, (stopped, ended) = options.num_samples, print_samples(checkpoint, options, text, ids)
    if options.stop and stopped < n:
        which = "the text" if n == 1 else f"{n - stopped:,} of {n:,} texts"
        end = f"at {options.max_new_tokens:,} tokens"
        if ended:
            end = "by itself" if n == 1 else f"by themselves or {end}"
        cli.note(f"--stop {quoted(options.stop)} did not come in {which}, which ended {end}")
    return 0


def attention_maps(params, config, tokenizer, prompt, kind=None, where="prompt"):
    """Run a GPT on a prompt and take its attention weights.

    Parameters
    ----------
    params : Params
    config : GPTConfig
    tokenizer : Tokenizer
    prompt : str
    kind : None
        There is one kind.
    where : str
        What errors call the prompt.

    Returns
    -------
    weights : list of n_layer arrays (H, T, T), NumPy
    rows, columns : lists of str
        The labels of the tokens: T queries and T keys. A row is named after the token that the
        query stands at.
    """
    p = params.tree
    ids = encode_line(where, prompt, tokenizer, config.block_size)
    _, (*_, blocks, _) = gpt_forward(to_device(ids[None], array_module(p["wte"])), p, config)
    labels = [*map(tokenizer.label, ids)]
    return [to_host(block_weights(block)["self"][0]) for block in blocks], labels, [*labels]
