"""Text from a trained model: `python -m minigpt.sample --out-dir DIR`.

With --stop, a text ends before the first place where the string occurs behind the prompt. One
text appears as it is made; several are made side by side, and printed one after the other.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minigpt import UserError, cli
from minigpt.backend import BACKENDS, module
from minigpt.checkpoint import load
from minigpt.decoding import KVCache, generate

__all__ = ["KVCache", "SampleConfig", "generate", "main"]

CACHE_BYTES = 2**30  # texts are made side by side as long as their caches fit in this
SEPARATOR = "-" * 15  # between texts, as in nanoGPT


@dataclass(frozen=True)
class SampleConfig:
    """Sampling."""

    out_dir: str = cli.option("out", "a run: its best, else its last checkpoint", None, "DIR")
    checkpoint: str | None = cli.option(None, "a checkpoint, instead of --out-dir", None, "FILE")
    prompt: str = cli.option("", "text to go on from (left out: a new line)")
    prompt_file: str | None = cli.option(None, "file with the text to go on from", None, "FILE")
    max_new_tokens: int = cli.option(500, "tokens to write for each text")
    temperature: float = cli.option(0.8, "the higher, the bolder; 0 always takes the likeliest")
    top_k: int = cli.option(200, "draw from the N likeliest tokens; 0: from all")
    top_p: float = cli.option(1.0, "draw from the likeliest tokens that hold X of the probability")
    num_samples: int = cli.option(1, "texts to write")
    seed: int = cli.option(1337, "the same seed draws the same text")
    stop: str = cli.option("", "end the text before this string")
    backend: str = cli.option("numpy", "where to compute", BACKENDS)

    def __post_init__(self):
        for name, good, needed in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("num_samples", self.num_samples >= 1, "1 or more"),
            ("seed", 0 <= self.seed < 2**64, "0 or more and below 2**64"),
        ):
            if not good:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} is {getattr(self, name)}, but must be {needed}")


def find_checkpoint(options):
    """Path of the checkpoint that --checkpoint or --out-dir stands for."""
    if options.checkpoint is not None:
        return Path(options.checkpoint)
    for name in ("best.safetensors", "last.safetensors"):
        path = Path(options.out_dir, name)
        if path.exists():
            return path
    raise UserError(
        f"--out-dir {options.out_dir}: no best.safetensors or last.safetensors there; make them by "
        f"`python -m minigpt.train --out-dir {options.out_dir}`, or name a file by --checkpoint"
    )


def read_prompt(options):
    """Text of --prompt, or of the file (UTF-8) that --prompt-file names."""
    path = options.prompt_file
    if path is None:
        return options.prompt
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--prompt-file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompt-file {path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} (counted from 0) does not fit"
        ) from None


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


def main(argv=None):
    """Write text with a trained model."""
    parser = cli.parser("python -m minigpt.sample", main.__doc__)
    cli.add_flags(parser, SampleConfig)
    given = vars(parser.parse_args(argv))
    for one, other in (("checkpoint", "out_dir"), ("prompt", "prompt_file")):
        if one in given and other in given:
            parser.error(f"--{one} and --{other.replace('_', '-')}: give one of the two")
    options = cli.build(SampleConfig, given)
    xp, prompt = module(options.backend), read_prompt(options)
    checkpoint = load(find_checkpoint(options), xp, with_optimizer=False)
    tokenizer, block_size = checkpoint.tokenizer, checkpoint.config.block_size
    ids = encode(options, prompt, tokenizer)
    if len(ids) > block_size:
        print(
            f"note: of the prompt's {len(ids)} tokens, the model sees the last {block_size}",
            file=sys.stderr,
        )
    # A step reads all weights to multiply one vector. One thread uses up the memory's bandwidth;
    # those of BLAS would wait for each other in every product, long where cores are busy.
    with threadpool_limits(1, user_api="blas"):
        write(checkpoint, options, prompt, ids)


if __name__ == "__main__":
    cli.run(main)
