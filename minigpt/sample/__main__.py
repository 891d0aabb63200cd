"""Text from a trained model: `python -m minigpt.sample --out-dir DIR`.

A GPT goes on from the prompt. With --stop, a text ends before the first place where the string
occurs behind the prompt. One text appears as it is made; several are made side by side, and
printed one after the other.

An encoder-decoder answers each line of the prompt, or of standard input, by a line.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minigpt import cli
from minigpt.backend import BACKENDS, module
from minigpt.data.pairs import padded
from minigpt.errors import UserError
from minigpt.model.checkpoint import BEST, LAST, load
from minigpt.model.models import SEQ2SEQ, model_of
from minigpt.sample.beam import search
from minigpt.sample.generate import KVCache, generate

__all__ = ["KVCache", "SampleConfig", "generate", "main"]

CACHE_BYTES = 2**30  # texts are made side by side as long as their caches fit in this
SEPARATOR = "-" * 15  # between texts, as in nanoGPT
LINES = 64  # that an encoder-decoder answers side by side


@dataclass(frozen=True)
class SampleConfig:
    """Sampling."""

    out_dir: str = cli.option("out", "a run: its best, else its last checkpoint", None, "DIR")
    checkpoint: str | None = cli.option(None, "a checkpoint, instead of --out-dir", None, "FILE")
    prompt: str = cli.option(
        "", "text to go on from (left out: a new line) or to answer (left out: standard input)"
    )
    prompt_file: str | None = cli.option(None, "file with that text", None, "FILE")
    max_new_tokens: int = cli.option(500, "tokens to write for each text")
    temperature: float = cli.option(0.8, "the higher, the bolder; 0 always takes the likeliest")
    top_k: int = cli.option(200, "draw from the N likeliest tokens; 0: from all")
    top_p: float = cli.option(1.0, "draw from the likeliest tokens that hold X of the probability")
    num_samples: int = cli.option(1, "texts to write")
    seed: int = cli.option(1337, "the same seed draws the same text")
    stop: str = cli.option("", "end the text before this string")
    beam: int = cli.option(1, "encoder-decoder: answers to keep in mind; 1 is greedy")
    verbose: bool = cli.option(False, "encoder-decoder: all of them, with log-probabilities")
    backend: str = cli.option("numpy", "where to compute", BACKENDS)

    def __post_init__(self):
        for name, good, needed in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("num_samples", self.num_samples >= 1, "1 or more"),
            ("beam", 1 <= self.beam < 2**16, "1 or more and below 2**16"),
            ("seed", 0 <= self.seed < 2**64, "0 or more and below 2**64"),
        ):
            if not good:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} is {getattr(self, name)}, but must be {needed}")


def find_checkpoint(options):
    """Path of the checkpoint that --checkpoint or --out-dir stands for."""
    if options.checkpoint is not None:
        return Path(options.checkpoint)
    for name in (BEST, LAST):
        path = Path(options.out_dir, name)
        if path.exists():
            return path
    raise UserError(
        f"--out-dir {options.out_dir}: no {BEST} or {LAST} there; make them by "
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


def go_on(checkpoint, options):
    """Print what a GPT makes of the prompt."""
    prompt, block_size = read_prompt(options), checkpoint.config.block_size
    ids = encode(options, prompt, checkpoint.tokenizer)
    if len(ids) > block_size:
        print(
            f"note: of the prompt's {len(ids)} tokens, the model sees the last {block_size}",
            file=sys.stderr,
        )
    write(checkpoint, options, prompt, ids)


def in_parts(lines):
    """Return an iterator over lists of at most LINES of the lines."""
    return (lines[start : start + LINES] for start in range(0, len(lines), LINES))


def arriving(file):
    """Yield lists of lines, bytes without their ends, as they arrive, at most LINES at a time."""
    rest = b""
    while chunk := file.read1(2**16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from in_parts(lines)
    if rest:
        yield [rest]


def prompt_lines(options, given):
    """Yield lists of (where it stands, line): of the prompt if there is one, else of stdin."""
    if {"prompt", "prompt_file"} & given:
        lines = read_prompt(options).removesuffix("\n").split("\n")
        name = "--prompt" if options.prompt_file is None else f"--prompt-file {options.prompt_file}"
        parts = in_parts([line.encode("utf-8", "surrogatepass") for line in lines])
    else:
        name, parts = "standard input", arriving(sys.stdin.buffer)
        if sys.stdin.isatty():
            print("lines to answer, from the keyboard:", file=sys.stderr)
    number = 0
    for part in parts:
        batch = []
        for raw in part:
            number += 1
            where = f"{name}, line {number}"
            try:
                batch.append((where, raw.removesuffix(b"\r").decode("utf-8", "surrogatepass")))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} does not fit"
                ) from None
        yield batch


def encode_line(where, line, tokenizer, block_size):
    """Ids of a line, or a UserError that says where it stands."""
    if not 0 < len(line) <= block_size:
        raise UserError(
            f"{where} has {len(line)} characters, but the model reads 1 to {block_size}"
        )
    try:
        return tokenizer.encode_array(line)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def answer(checkpoint, options, given):
    """Print what an encoder-decoder makes of each line."""
    config, (source, target) = checkpoint.config, checkpoint.tokenizer
    for batch in prompt_lines(options, given):
        ids = [encode_line(*line, source, config.block_size) for line in batch]
        found = search(padded(ids), checkpoint.params.tree, config, options.beam)
        for (_, line), hypotheses in zip(batch, found, strict=True):
            if options.verbose:
                print(line)
                for best in hypotheses:
                    more = "" if best.ended else " ..."  # no room for more
                    text = target.decode(best.ids) + more
                    print(f"{best.log_prob:10.4f} {best.score:9.4f} per token  {text}")
            else:
                print(target.decode(hypotheses[0].ids))
        sys.stdout.flush()


def check_flags(given, seq2seq):
    """Raise a UserError if a flag has no meaning for the model at hand."""
    of_gpt = {"max_new_tokens", "temperature", "top_k", "top_p", "num_samples", "seed", "stop"}
    wrong = given & (of_gpt if seq2seq else {"beam", "verbose"})
    if wrong:
        kinds = ("an encoder-decoder", "a GPT")
        raise UserError(
            f"--{min(wrong).replace('_', '-')} is for {kinds[seq2seq]}, but this checkpoint is of "
            f"{kinds[not seq2seq]}; leave it out"
        )


def main(argv=None):
    """Write text with a trained model."""
    parser = cli.parser("python -m minigpt.sample", main.__doc__)
    cli.add_flags(parser, SampleConfig)
    given = vars(parser.parse_args(argv))
    for one, other in (("checkpoint", "out_dir"), ("prompt", "prompt_file")):
        if one in given and other in given:
            parser.error(f"--{one} and --{other.replace('_', '-')}: give one of the two")
    options = cli.build(SampleConfig, given)
    try:
        show(options, given.keys())
    except MemoryError as error:
        raise UserError(
            f"out of memory ({cli.one_line(str(error)) or 'no more to be had'}); take fewer "
            "--num-samples, a smaller --beam or model, or another --backend"
        ) from None


def show(options, given):
    """Print what the model makes of the prompt; `given` are the names of the flags given."""
    xp = module(options.backend)
    checkpoint = load(find_checkpoint(options), xp, with_optimizer=False)
    seq2seq = model_of(checkpoint.config) is SEQ2SEQ
    check_flags(given, seq2seq)
    # A step reads all weights to multiply one vector. One thread uses up the memory's bandwidth;
    # those of BLAS would wait for each other in every product, long where cores are busy.
    with threadpool_limits(1, user_api="blas"):
        if seq2seq:
            answer(checkpoint, options, given)
        else:
            go_on(checkpoint, options)


if __name__ == "__main__":
    cli.run(main)
