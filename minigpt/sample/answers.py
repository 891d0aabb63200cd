"""What an encoder-decoder answers to each of many lines."""

import itertools
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minigpt import cli
from minigpt.backend import array_module, to_device, to_host
from minigpt.data.pairs import padded
from minigpt.model.blocks import block_weights
from minigpt.model.encoder_decoder import seq2seq_forward
from minigpt.sample.beam import search
from minigpt.sample.prompt import encode_line, in_parts, prompt_lines

BATCH = 64  # validation pairs that are answered side by side
MAP_KINDS = ("cross", "encoder", "decoder")
START, END = "start", "end"  # of what an encoder-decoder writes, in attention maps


@dataclass(frozen=True)
class AnswerOptions(cli.Config):
    """Answers of an encoder-decoder."""

    beam: int = cli.option(
        1, "beam width: candidates kept at each step; 1 is greedy", min=1, below=2**16
    )
    verbose: bool = cli.option(False, "print all of them, with log-probabilities")


class Answer(NamedTuple):
    """One answer to a line.

    Attributes
    ----------
    text : str
    log_prob : float
        Of all its tokens, END included, in nats.
    score : float
        log_prob per token: what answers are ranked by.
    ended : bool
        False if block_size was reached before END.
    """

    text: str
    log_prob: float
    score: float
    ended: bool


def answer_lines(params, config, tokenizer, lines, beam=1, names=None):
    """Answer each of many lines, in batches.

    Parameters
    ----------
    params : Params
    config : Seq2SeqConfig
    tokenizer : PairTokenizer
    lines : list of str
    beam : int
        Candidates that beam search keeps; 1 is greedy.
    names : list of str, optional
        What errors call the lines: "line 1", ... if left out.

    Returns
    -------
    answers : list of lists of Answer
        For each line at most `beam`, the best first.

    Raises
    ------
    UserError
        If a line is empty, longer than the model reads, or has something that has no token.
    """
    names = names or [f"line {number}" for number in range(1, len(lines) + 1)]
    named = zip(names, lines, strict=True)
    ids = [encode_line(*line, tokenizer.source, config.block_size) for line in named]
    parts = (answer_ids(params, config, tokenizer, part, beam) for part in in_parts(ids))
    return list(itertools.chain.from_iterable(parts))


def answer_ids(params, config, tokenizer, rows, beam):
    """Answer one batch of lines, given as ids; see `answer_lines`."""
    found = search(padded(rows), params.tree, config, beam)
    return [
        [Answer(tokenizer.target.decode(h.ids), h.log_prob, h.score, h.ended) for h in hypotheses]
        for hypotheses in found
    ]


def print_answers(checkpoint, prompt, options):
    """Print what an encoder-decoder answers to each line of the prompt or of standard input.

    Parameters
    ----------
    checkpoint : Checkpoint
    prompt : (what names it, text), or None for standard input
    options : AnswerOptions
    """
    config, params, tokenizer = checkpoint.config, checkpoint.params, checkpoint.tokenizer
    for batch in prompt_lines(prompt):
        ids = [encode_line(*line, tokenizer.source, config.block_size) for line in batch]
        answers = answer_ids(params, config, tokenizer, ids, options.beam)
        for (_, line), ranked in zip(batch, answers, strict=True):
            if options.verbose:
                print(line)
                for one in ranked:
                    text = one.text + ("" if one.ended else " ...")  # there was no room for more
                    print(f"{one.log_prob:10.4f} {one.score:9.4f} per token  {text}")
            else:
                print(ranked[0].text)
        sys.stdout.flush()


def count_solved(source, targets, params, config):
    """Return how many of a batch of pairs greedy search answers exactly as the targets say."""
    end = config.vocab_size - 1
    found = search(source, params.tree, config)
    rows = zip(found, targets.tolist(), strict=True)
    return sum(best.ended and best.ids == target[: target.index(end)] for (best,), target in rows)


def attention_maps(params, config, tokenizer, prompt, kind="cross", where="prompt"):
    """Run an encoder-decoder on a prompt and take its attention weights.

    Parameters
    ----------
    params : Params
    config : Seq2SeqConfig
    tokenizer : PairTokenizer
    prompt : str
    kind : str
        Of MAP_KINDS: how the answer is aligned with the prompt, how the prompt looks at itself, how
        the answer looks at what it has written before.
    where : str
        What errors call the prompt.

    Returns
    -------
    weights : list of n_layer arrays (H, Tq, Tk), NumPy
    rows, columns : lists of str
        The labels of the tokens: Tq queries and Tk keys. A row of a decoder is named after the
        token that it writes.
    """
    p, source, target = params.tree, tokenizer.source, tokenizer.target
    xp = array_module(p["wte"])
    ids = encode_line(where, prompt, source, config.block_size)[None]
    ((best,),) = search(ids, p, config)
    targets = np.array([[*best.ids, *[tokenizer.end] * best.ended]], np.int32)
    x, y = to_device(ids, xp), to_device(targets, xp)
    _, (encoder, decoder, _) = seq2seq_forward(x, y, p, config)
    *_, blocks, _ = encoder if kind == "encoder" else decoder
    which = "cross" if kind == "cross" else "self"
    read = [*map(source.label, ids[0])]
    written = [*map(target.label, best.ids), *[END] * best.ended]
    rows = read if kind == "encoder" else written
    columns = [START, *written[:-1]] if kind == "decoder" else read
    return [to_host(block_weights(block)[which][0]) for block in blocks], rows, columns
