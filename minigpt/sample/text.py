"""Text that a GPT makes of a prompt: with --stop, it ends before the first place where that occurs.

One text is printed as it is made; several are made side by side and printed one after the other.
"""

import sys

import numpy as np

from minigpt.backend import array_module, to_device, to_host
from minigpt.errors import UserError
from minigpt.model.blocks import block_weights
from minigpt.model.gpt import gpt_forward
from minigpt.sample.generate import generate
from minigpt.sample.prompt import encode_line, read_prompt

CACHE_BYTES = 2**30  # texts are made side by side as long as their caches fit in this
SEPARATOR = "-" * 15  # between texts, as in nanoGPT


def encode(options, prompt, tokenizer):
    """Ids of the prompt: of a new line, or else the vocabulary's first character, if it is empty.

    Raises
    ------
    UserError
        If the prompt or the stop string, which could then never come, holds an unknown character.
    """
    where = "--prompt" if options.prompt_file is None else f"--prompt-file {options.prompt_file}"
    for flag, text in (("--stop", options.stop), (where, prompt)):
        try:
            ids = tokenizer.encode_array(text)
        except UserError as error:
            raise UserError(f"{flag}: {error}") from None
    if len(ids):
        return ids
    return tokenizer.encode_array("\n" if "\n" in tokenizer.chars else tokenizer.chars[0])


def before(text, stop, more):
    """Part of a text before the stop string; if more is to come, before what may be its start."""
    head, found, _ = text.partition(stop) if stop else (text, "", "")
    if found or not more:
        return head
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return text[: len(text) - next((n for n in sizes if text.endswith(stop[:n])), 0)]


def grow(checkpoint, options, ids, rows):
    """Iterate over the texts of `rows`, a list of str, as they grow; the last are whole.

    Parameters
    ----------
    checkpoint : Checkpoint
    options : SampleConfig
    ids : (T,) int
        The prompt, which is no part of the texts.
    rows : range
        The numbers of the samples.
    """
    texts, stop = [""] * len(rows), options.stop
    settings = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    settings["vocab_size"] = checkpoint.tokenizer.vocab_size
    ids = np.broadcast_to(ids, (len(rows), len(ids)))
    p, config = checkpoint.params.tree, checkpoint.config
    for new in generate(p, config, ids, options.max_new_tokens, rows=rows, **settings):
        pieces = [checkpoint.tokenizer.decode([i]) for i in new]
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        if stop and all(stop in text for text in texts):
            break
        yield [before(text, stop, more=True) for text in texts]
    yield [before(text, stop, more=False) for text in texts]


def write(checkpoint, options, prompt, ids):
    """Print the samples, each with the prompt in front."""
    config, n = checkpoint.config, options.num_samples
    cache_bytes = 2 * config.n_layer * config.block_size * config.n_embd * 4
    side_by_side = max(1, CACHE_BYTES // cache_bytes)
    if n == 1:
        print(prompt, end="", flush=True)
    for first in range(0, n, side_by_side):
        shown = 0
        for texts in grow(checkpoint, options, ids, range(n)[first : first + side_by_side]):
            if n == 1:
                print(texts[0][shown:], end="", flush=True)
                shown = len(texts[0])
        for i, text in enumerate(texts, first):
            print("" if n == 1 else prompt + text)
            if i < n - 1:
                print(SEPARATOR, flush=True)


def print_texts(checkpoint, options, given):
    """Print what a GPT makes of the prompt."""
    prompt, block_size = read_prompt(options), checkpoint.config.block_size
    ids = encode(options, prompt, checkpoint.tokenizer)
    if len(ids) > block_size:
        print(
            f"note: of the prompt's {len(ids)} tokens, the model sees the last {block_size}",
            file=sys.stderr,
        )
    write(checkpoint, options, prompt, ids)


def attention_maps(checkpoint, prompt, kind=None):
    """Run a GPT on a prompt and take its attention weights.

    Returns
    -------
    weights : list of n_layer arrays (H, T, T), NumPy
    rows, columns : lists of str
        The tokens: T queries and T keys. A row is named after the token that the query stands at.
    """
    config, p = checkpoint.config, checkpoint.params.tree
    ids = encode_line("--prompt", prompt, checkpoint.tokenizer, config.block_size)[None]
    _, (*_, blocks, _) = gpt_forward(to_device(ids, array_module(p["wte"])), p, config)
    return [to_host(block_weights(block)["self"][0]) for block in blocks], [*prompt], [*prompt]
