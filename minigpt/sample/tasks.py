"""The tasks, in one table: what training, sampling and reports need to know of each.

    text      a GPT continues a text
    seq2seq   an encoder-decoder turns one text into another: pairs from files, or dates

What differs between the tasks stands here, and nowhere else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from minigpt.data import batches, pair_files, pairs
from minigpt.data.datasets import PairData, TextData
from minigpt.data.excerpts import pair_excerpt, text_excerpt
from minigpt.errors import SMALLER_DATA, memory_for
from minigpt.model import encoder_decoder, gpt
from minigpt.sample import answers, scoring, text
from minigpt.sample.evaluation import some_of
from minigpt.sample.prompt import in_parts

GOLDEN = 0.618
MEASURED_BATCHES = 4  # between two looks at the clock
MEASURED_PAIRS = 2000  # validation pairs that are answered at an evaluation
SHOWN_ANSWERS = 5  # answers at the end of a run
SAMPLE_TOKENS = 300  # tokens of a text at the end of a run


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    name : str
        Of --task.
    config : class
        Of its models.
    loss_forward, loss_and_gradients : callable
        As in model/gpt.py.
    hidden : callable
        (ids, targets, params, config, rng, on_layer) -> (B, T, C): what the head reads.
    file_name : callable
        raw -> the name of the file that keeps data which have none, bytes.
    samplers : tuple of str
        Values of --sampler that there are, the usual one first.
    padded_vocab : bool
        Whether a model may have more tokens than its data need.
    open_data : callable
        (options, tokenizer=None, name=None, split=None) -> data set. Of options it reads data,
        seed, share_embedding and, if no tokenizer is given, tokenizer and vocab_size; the others
        are those of a run that is resumed.
    excerpt : callable
        (options, tokenizer, name, split) -> Excerpt of the data set of a run.
    builtin_sizes : dict or None
        Of the data that there are without --data, if known without reading them: vocab_size, and
        train, the tokens of their training part.
    batch : callable
        (split, config, train_config, number, row) -> (ids, targets): the batch of that number,
        whose first row is row number `row` of the run.
    eval_batches : callable
        (split, config, rows, which=None) -> iterator over (ids, targets) of a whole split, or of
        those of its items whose numbers are `which`.
    eval_size : callable
        (split, config) -> (items, targets) of a whole split.
    count_targets : callable
        targets -> how many of them count; no GPU has to be asked.
    measure : callable or None
        (data, params, config, map, seconds, first) -> {name: number}, what is measured beside the
        loss, in about so many seconds at most, without a limit if they are None; the clock is read
        by first(time.perf_counter).
    batch_unit : str
        What a batch has batch_size of, {T} standing for the block size.
    counted : str
        What the tokens per second of a run are.
    sides : str
        In the cost of a run: which tokens a step has at most; "" if it always has them all.
    options : class
        How to decode, beside the prompt: options of `minigpt sample`.
    decode : callable
        (checkpoint, prompt, options) -> exit code: what `minigpt sample` prints. The prompt is a
        Prompt, or None.
    score : callable
        (task, params, config, tokenizer, data, options, show) -> dict: see sample/scoring.py.
    score_options : class
        Options of `minigpt score` that are the task's.
    kind : str
        Of its models, in words.
    sample : callable
        (data, tree, config, tokens, enough) -> a short sample for the metrics, of so many tokens at
        most: a text, or answers; enough() ends it where it is True.
    show : callable
        data -> options of `minigpt sample` for what is shown at the end of a run, None for nothing.
    maps : callable
        (params, config, tokenizer, prompt, kind, where) -> (weights by layer, rows, columns):
        attention, with the labels of the tokens. `where` is what errors call the prompt.
    map_kinds : tuple of str
        Which attentions there are to choose from; none where there is only one.
    """

    name: str
    config: type
    loss_forward: Callable
    loss_and_gradients: Callable
    hidden: Callable
    file_name: Callable
    samplers: tuple
    padded_vocab: bool
    open_data: Callable
    excerpt: Callable
    builtin_sizes: dict | None
    batch: Callable
    eval_batches: Callable
    eval_size: Callable
    count_targets: Callable
    measure: Callable | None
    batch_unit: str
    counted: str
    sides: str
    options: type
    decode: Callable
    score: Callable
    score_options: type
    kind: str
    sample: Callable
    show: Callable
    maps: Callable
    map_kinds: tuple


def gpt_hidden(ids, targets, p, config, rng, on_layer):
    """Return what the head of a GPT reads."""
    return gpt.gpt_forward(ids, p, config, rng, on_layer=on_layer)[0]


def seq2seq_hidden(ids, targets, p, config, rng, on_layer):
    """Return what the head of an encoder-decoder reads."""
    return encoder_decoder.seq2seq_forward(ids, targets, p, config, rng, on_layer)[0]


@memory_for("while the text was read", SMALLER_DATA)
def open_text(options, tokenizer=None, name=None, split=None):
    """Return the TextData of a dict of options; there is one way to split a text."""
    made = options.get("tokenizer") or "char", options.get("vocab_size")
    return TextData(options.get("data"), tokenizer, name, *made)


@memory_for("while the text was read", SMALLER_DATA)
def excerpt_of_text(options, tokenizer, name, split):
    """Return the Excerpt of a run's text."""
    return text_excerpt(options.get("data"), tokenizer, name)


def text_batch(ids, config, train_config, number, row):
    """Return a batch of windows of a text."""
    return batches.random_batch(
        ids,
        train_config.seed,
        number,
        train_config.batch_size,
        config.block_size,
        train_config.sampler,
        row,
    )


def text_windows(ids, config, rows, which=None):
    """Iterate over consecutive windows of a text."""
    return batches.eval_batches(ids, config.block_size, rows, which)


def count_windows(ids, config):
    """Return the numbers of windows of a text and of the targets in them."""
    return batches.count_windows(ids, config.block_size)


@memory_for("while the pairs were read", SMALLER_DATA)
def open_pairs(options, tokenizer=None, name=None, split=None):
    """Return the PairData of a dict of options; the name of a run's pairs says nothing more."""
    shared = options.get("share_embedding", False)
    seed = options.get("seed", 0)
    made = options.get("tokenizer") or "char", options.get("vocab_size")
    return PairData(options.get("data"), seed, shared, tokenizer, split or "source", *made)


@memory_for("while the pairs were read", SMALLER_DATA)
def excerpt_of_pairs(options, tokenizer, name, split):
    """Return the Excerpt of a run's pairs."""
    return pair_excerpt(options.get("data"), options.get("seed", 0), tokenizer, split)


def pair_batch(split, config, train_config, number, row):
    """Return a batch of pairs, which are of their own lengths."""
    return pairs.random_pairs(split, train_config.seed, number, train_config.batch_size)


def pair_windows(split, config, rows, which=None):
    """Iterate over pairs, short ones first."""
    return pairs.eval_batches(split, rows, which)


def count_pairs(split, config):
    """Return the numbers of pairs and of the targets in them."""
    return len(split), int(split.target.lengths.sum())


def exact_match(data, params, config, map, seconds=None, first=lambda read: read()):
    """Return the fraction of MEASURED_PAIRS validation pairs that greedy search solves, and of how
    many.

    They are spread evenly over the validation part, all of it if it has no more.

    Parameters
    ----------
    map : callable
        As the built-in one; may work on several items at the same time.
    seconds : float, optional
        After which no more are begun.
    first : callable
        first(read) calls read() on rank 0 of several processes and returns its result on every
        rank: all go by one clock.
    """
    measured = pairs.Pairs(some_of(data.val_pairs, MEASURED_PAIRS), data.tokenizer)
    batches = [*pairs.eval_batches(measured, answers.BATCH)]
    # Lengths rise from batch to batch: in this order, any first few are like all of them.
    batches = [batches[i] for i in sorted(range(len(batches)), key=lambda i: i * GOLDEN % 1)]
    size = len(batches) if seconds is None else MEASURED_BATCHES
    solved, n, start = 0, 0, first(time.perf_counter)
    for group in in_parts(batches, size):
        solved += sum(map(lambda batch: answers.count_solved(*batch, params, config), group))
        n += sum(len(source) for source, _ in group)
        if seconds is not None and first(time.perf_counter) - start > seconds:
            break
    return {"exact_match": solved / n, "measured_pairs": n}


def text_sample(data):
    """Return the options for a text of SAMPLE_TOKENS tokens."""
    return {"max_new_tokens": SAMPLE_TOKENS}


def pair_sample(data):
    """Return the options for the answers to SHOWN_ANSWERS validation sources of one line each.

    None if there is none of one line: the command reads lines.
    """
    lines = [source for source, _ in data.val_pairs if not pairs.has_break(source)]
    if not lines:
        return None
    prompt = "\n".join(some_of(lines, SHOWN_ANSWERS))
    return {"prompt": prompt, "verbose": True}


TASKS = {
    "text": Task(
        name="text",
        config=gpt.GPTConfig,
        loss_forward=gpt.loss_forward,
        loss_and_gradients=gpt.loss_and_gradients,
        hidden=gpt_hidden,
        file_name=lambda raw: "data.txt",
        samplers=tuple(batches.SAMPLERS),
        padded_vocab=True,
        open_data=open_text,
        excerpt=excerpt_of_text,
        builtin_sizes={"vocab_size": 65, "train": 1_003_854},  # tiny Shakespeare
        batch=text_batch,
        eval_batches=text_windows,
        eval_size=count_windows,
        count_targets=batches.count_targets,
        measure=None,
        batch_unit="x {T} tokens",
        counted="tokens",
        sides="",
        options=text.TextOptions,
        decode=text.print_texts,
        score=scoring.score_text,
        score_options=scoring.TextScoreOptions,
        kind="a GPT",
        sample=text.short_text,
        show=text_sample,
        maps=text.attention_maps,
        map_kinds=(),
    ),
    "seq2seq": Task(
        name="seq2seq",
        config=encoder_decoder.Seq2SeqConfig,
        loss_forward=encoder_decoder.loss_forward,
        loss_and_gradients=encoder_decoder.loss_and_gradients,
        hidden=seq2seq_hidden,
        file_name=pair_files.file_name,
        samplers=("uniform",),
        padded_vocab=False,
        open_data=open_pairs,
        excerpt=excerpt_of_pairs,
        builtin_sizes=None,
        batch=pair_batch,
        eval_batches=pair_windows,
        eval_size=count_pairs,
        count_targets=pairs.count_targets,
        measure=exact_match,
        batch_unit="pairs",
        counted="target tokens",
        sides=", of sources and of targets, at most",
        options=answers.AnswerOptions,
        decode=answers.print_answers,
        score=scoring.score_pairs,
        score_options=scoring.PairScoreOptions,
        kind="an encoder-decoder",
        sample=answers.short_answers,
        show=pair_sample,
        maps=answers.attention_maps,
        map_kinds=answers.MAP_KINDS,
    ),
}


def task_of(config):
    """Return the Task that the models of a config are for."""
    return next(task for task in TASKS.values() if task.config is type(config))
