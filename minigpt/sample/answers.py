"""What an encoder-decoder answers to each of many lines."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from minigpt import cli
from minigpt.backend import array_module, to_device, to_host
from minigpt.data.pairs import padded
from minigpt.model.blocks import block_weights
from minigpt.model.encoder_decoder import seq2seq_forward
from minigpt.sample.beam import search
from minigpt.sample.evaluation import some_of
from minigpt.sample.memory import lines_that_fit
from minigpt.sample.progress import Progress
from minigpt.sample.prompt import LINES, encode_line, in_parts, prompt_lines, read_line

SAMPLED = 3  # validation sources that are answered during training, to show how it gets better
BATCH = 64  # validation pairs that are answered side by side
MAP_KINDS = ("cross", "encoder", "decoder")
START, END = "start", "end"  # of what an encoder-decoder writes, in attention maps


@dataclass(frozen=True)
class AnswerOptions(cli.Config):
    """Answers of an encoder-decoder."""

    beam: int = cli.option(
        1, "beam width: candidates kept at each step; 1 is greedy", min=1, below=2**16
    )
    verbose: bool = cli.option(
        False,
        'print each line and all its answers, with log-probabilities; "..." ends one that was cut '
        "off",
    )


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


def answer_lines(params, config, tokenizer, lines, beam=1, names=None, errors="raise"):
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
    errors : str
        "raise", or "none": what cannot be answered is None in the place of its answers.

    Returns
    -------
    answers : list of lists of Answer
        For each line at most `beam`, the best first.

    Raises
    ------
    UserError
        If a line is empty, longer than the model reads, or has something that has no token; if
        the beam does not fit in memory.
    """
    names = names or [f"line {number}" for number in range(1, len(lines) + 1)]
    named = zip(names, lines, strict=True)
    read = [read_line(*line, tokenizer.source, config.block_size) for line in named]
    bad = next((line.error for line in read if line.error), None)
    if bad and errors == "raise":
        raise bad
    return list(answer_each(params, config, tokenizer, read, beam))


def answer_each(params, config, tokenizer, lines, beam, show=None):
    """Iterate over the answers to each of a list of Line, None to those that have none.

    Parameters are those of `answer_lines`, and

    show : callable, optional
        show(n, t) is called when n lines are done, and those in work have t tokens.
    """
    size, done = min(LINES, lines_that_fit(config, beam)), 0
    for part in in_parts(lines, size):
        rows, tick = [line.ids for line in part if not line.error], show and partial(show, done)
        found = iter(answer_ids(params, config, tokenizer, rows, beam, tick) if rows else [])
        yield from (None if line.error else next(found) for line in part)
        done += len(part)


def answer_ids(params, config, tokenizer, rows, beam, show=None):
    """Answer one batch of lines, given as ids; see `answer_lines` and `search`."""
    found = search(padded(rows), params.tree, config, beam, show)
    return [
        [Answer(tokenizer.target.decode(h.ids), h.log_prob, h.score, h.ended) for h in hypotheses]
        for hypotheses in found
    ]


def short_answers(data, tree, config, tokens, enough):
    """Return what a model in training answers to a few validation sources, one after the other.

    Parameters
    ----------
    data : PairData
    tree : tree of parameters
    config : Seq2SeqConfig
    tokens : int
        That the answers have at most, all together.
    enough : callable
        enough() is asked after each token; where it is True, nothing more is written.

    Returns
    -------
    answers : list of {"source", "expected", "answer"}
        At most SAMPLED; "..." ends an answer that was cut off.
    """
    pairs, left, answers = some_of(data.val_pairs, SAMPLED), tokens, []
    for source, target in pairs:
        if left <= 0:
            break
        ids = data.tokenizer.source.encode(source)[None]
        ((best,),) = search(ids, tree, config, show=lambda t, left=left: t >= left or enough())
        left = 0 if enough() else left - len(best.ids) - best.ended
        text = data.tokenizer.target.decode(best.ids) + " ..." * (not best.ended)
        answers.append({"source": source, "expected": target, "answer": text})
    return answers


def print_answers(checkpoint, prompt, options):
    """Print an answer to each line of the prompt or of standard input.

    A line that cannot be answered has an empty one, and is named on standard error.

    Parameters
    ----------
    checkpoint : Checkpoint
    prompt : Prompt, or None for standard input
    options : AnswerOptions

    Returns
    -------
    status : int
        The exit code: 2 if there was such a line, else 0.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    model, beam = (checkpoint.params, config, tokenizer), options.beam
    lines_that_fit(config, beam, "--beam")  # before anything is read
    progress, done, status = Progress(), 0, 0

    def show(n, t):
        progress.show(f"line {done + n + 1:,}: {t} of {config.block_size} {tokenizer.target.unit}")

    for batch in prompt_lines(prompt):
        progress.begin()
        lines = [read_line(*line, tokenizer.source, config.block_size) for line in batch]
        answers = answer_each(*model, lines, beam, show)
        for line, ranked in zip(lines, answers, strict=True):
            progress.clear()
            print_answer(line, ranked, options.verbose)
            if line.error:
                cli.say(f"error: {cli.one_line(line.error)}")
                status = 2
            elif not ranked[0].ended:
                full = f"{config.block_size} {tokenizer.target.unit}"
                cli.note(f"{line.where}: the answer was cut off at {full}")
        done += len(batch)
    return status


def print_answer(line, ranked, verbose):
    """Print the best answer to a Line or, if verbose, the line and all answers, a line each."""
    if not verbose:
        print(cli.printable(on_one_line(ranked[0].text) if ranked else ""), flush=True)
        return
    print(cli.printable(line.text))
    for one in ranked or []:
        text = on_one_line(one.text) + ("" if one.ended else " ...")  # there was no room for more
        shown = f"{one.log_prob:10.4f} {one.score:9.4f} per token  {text}"
        print(cli.printable(shown))
    if not ranked:
        print(f"{'no answer':>10}")
    sys.stdout.flush()


def on_one_line(text):
    r"""Return a text with each line break as the two characters \n, or \r for a CR."""
    return text.replace("\n", r"\n").replace("\r", r"\r")


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
