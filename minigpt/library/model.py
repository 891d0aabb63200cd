"""A trained model as a value: text, logits, losses, gradients and attention from Python."""

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt import cli
from minigpt.backend import array_module, to_device, to_host
from minigpt.backend.blas import blas_threads
from minigpt.backend.devices import load_backend
from minigpt.errors import UserError
from minigpt.files import read_metrics
from minigpt.interchange.card import facts_of_best
from minigpt.interchange.export import export
from minigpt.interchange.loading import load_model
from minigpt.interchange.peft import adapted, export_adapter
from minigpt.library.ids import as_batch, as_ids
from minigpt.model import checkpoint, count_parameters, describe_model, gpt
from minigpt.params import Params, map_tree
from minigpt.sample.answers import AnswerOptions, answer_lines
from minigpt.sample.generate import generate
from minigpt.sample.tasks import task_of
from minigpt.sample.text import TextOptions, generate_text


class Attention(NamedTuple):
    """What the tokens of a text attend to.

    Attributes
    ----------
    weights : (n_layer, n_head, Tq, Tk) float32
        Each row sums to 1: `weights[layer, head, query]`.
    rows, columns : list of str
        The tokens of the queries and of the keys.
    """

    weights: np.ndarray
    rows: list
    columns: list


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model with its tokenizer: what `minigpt.fit` and `minigpt.load` return.

    It is never changed by its methods, which may be called from several threads at once. Errors
    are those of the commands, as a minigpt.UserError.

    >>> model = minigpt.load("out")
    >>> print(model.generate("ROMEO:"))

    Attributes
    ----------
    config : GPTConfig or Seq2SeqConfig
    params : Params
        float32. `model.params.tree["h"][0]["attn"]["c_attn"]["w"]` is an array (C, 3C).
    tokenizer : Tokenizer, PairTokenizer, or None
        `encode` and `decode` turn text into ids and back. None where a model came without one: it
        takes ids alone.
    history : list of dict
        The lines of metrics.jsonl: step, train_loss, at evaluations val_loss, val_bpb (bits per
        byte), ... Empty where a model comes from a file alone.
    adapter : Checkpoint or None
        Of the LoRA adapter that `params` include, where one was trained here.
    """

    config: object
    params: Params
    tokenizer: object
    history: list = dataclasses.field(default_factory=list)
    adapter: object = None

    @property
    def backend(self):
        """Where the arrays live: "numpy" or "cupy"."""
        return array_module(self.params.flat).__name__

    def to(self, backend):
        """Return this model with its arrays on a backend, "numpy" or "cupy".

        Raises
        ------
        UserError
            If the backend cannot be used; it says why.
        """
        params = checkpoint.moved(checkpoint.on_host(self.params), load_backend(backend))
        return dataclasses.replace(self, params=params)

    def save(self, path):
        """Write a checkpoint, a safetensors file, for `minigpt.load` and `minigpt sample`.

        At any moment there is a whole file at `path`: the old one or the new.

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        checkpoint.save(path, self.params, self.config, tokenizer=self.tokenizer, state={})

    def export(self, folder, data=None, force=False, adapter_only=False):
        """Write a folder that transformers loads: what `minigpt export` does.

        >>> model.export("mine")
        >>> transformers.AutoModelForCausalLM.from_pretrained("mine")

        Parameters
        ----------
        folder : str or path
            Made if it is missing; whole or not there at all.
        data : str, optional
            What the model was trained on, for the model card.
        force : bool
            Whether files in the folder may be replaced.
        adapter_only : bool
            Whether to write the LoRA adapter that was trained by itself, for peft.

        Raises
        ------
        UserError
            If the folder is not empty or cannot be written; if the model has no counterpart in
            transformers, naming the option that is in the way; or if there is no adapter.
        """
        facts = facts_of_best(self.history, data)
        if adapter_only:
            export_adapter(folder, self.adapter, facts, force)
        else:
            export(folder, self.params, self.config, self.tokenizer, facts, force)

    def generate(
        self,
        prompt="",
        max_new_tokens=200,
        temperature=0.8,
        top_k=200,
        top_p=1.0,
        seed=1337,
        stop="",
    ):
        """Return the text that the model continues the prompt with; the prompt is not part of it.

        Parameters
        ----------
        prompt : str
            Left out: a new line.
        max_new_tokens : int
        temperature : float
            0 always takes the likeliest token.
        top_k : int
            Draw from the k likeliest tokens; 0 is from all.
        top_p : float
            Draw from the likeliest tokens that hold this share of the probability.
        seed : int
            The same seed draws the same text.
        stop : str
            The text ends before this string.

        Raises
        ------
        UserError
            If a value is not possible, if the prompt holds an unknown character, or if the model
            is an encoder-decoder.
        """
        settings = (max_new_tokens, temperature, top_k, top_p, seed, stop)
        return "".join(self.stream(prompt, *settings))

    def stream(
        self,
        prompt="",
        max_new_tokens=200,
        temperature=0.8,
        top_k=200,
        top_p=1.0,
        seed=1337,
        stop="",
    ):
        """Return an iterator over the pieces of `generate`'s text, as they are made.

        Each piece is a str of whole characters.

        >>> for piece in model.stream("ROMEO:"):
        ...     print(piece, end="", flush=True)
        """
        self._check_task("text", "answer")
        options = TextOptions(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        model = self.params, self.config, self.tokenizer
        return on_one_thread(generate_text(*model, as_text("prompt", prompt), options))

    def generate_ids(
        self, ids, max_new_tokens=200, temperature=0.8, top_k=200, top_p=1.0, seed=1337
    ):
        """Return the token ids that the model continues ids with, end of text or not.

        Parameters
        ----------
        ids : str, (T,) int or (B, T) int
            Prompts of one length, of which the model sees the last block_size.
        max_new_tokens, temperature, top_k, top_p, seed : as in `generate`

        Returns
        -------
        new : (B, max_new_tokens) int32, NumPy
            B is 1 for (T,).

        Raises
        ------
        UserError
            If a value is not possible, or if the model is an encoder-decoder.
        """
        self._check_task("text", "answer")
        options = TextOptions(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        names = "temperature", "top_k", "top_p", "seed"
        settings = {name: getattr(options, name) for name in names}
        ids = as_ids(ids, self.tokenizer, self.config.vocab_size, sys.maxsize)
        steps = generate(self.params.tree, self.config, ids, options.max_new_tokens, **settings)
        return np.array([*on_one_thread(steps)], np.int32).reshape(-1, len(ids)).T

    def answer(self, text, beam=1, errors="raise"):
        """Return what an encoder-decoder makes of a text: a str, or a list of str for a list.

        A list is answered in batches: 64 texts take little longer than one. So a service should
        collect texts that wait at the same time; threads that answer one each are slower.

        Parameters
        ----------
        text : str or list of str
        beam : int
            Beam width; 1 is greedy.
        errors : str
            "raise", or "none": None stands for the answer to a text that cannot be read.

        Raises
        ------
        UserError
            If a text is empty, too long or holds an unknown character; if the beam does not fit
            in memory; or if the model is a GPT.
        """
        found = self.candidates(text, beam, errors)
        if isinstance(text, str):
            return found and found[0].text
        return [ranked and ranked[0].text for ranked in found]

    def candidates(self, text, beam=4, errors="raise"):
        """Return all that beam search has found: a list of Answer, or of such lists for a list.

        An Answer has text, log_prob (in nats), score (log_prob per token, which they are ranked
        by) and ended, False if it was cut off at block_size.

        Parameters and errors are those of `answer`.
        """
        self._check_task("seq2seq", "generate")
        cli.choose(errors, dict.fromkeys(("raise", "none")), "errors")
        beam = AnswerOptions(beam=beam).beam
        lines = [text] if isinstance(text, str) else list(text)
        names = ["text" if isinstance(text, str) else f"text {i}" for i in range(len(lines))]
        lines = [as_text(name, line) for name, line in zip(names, lines, strict=True)]
        model = self.params, self.config, self.tokenizer
        with blas_threads(1):
            found = answer_lines(*model, lines, beam, names, errors)
        return found[0] if isinstance(text, str) else found

    def score(self, data, **options):
        """Return how well the model does on a file, a dict: what `minigpt score --json` prints.

        >>> model.score("other.txt")["bits_per_byte"]
        >>> dates.score("pairs.csv", beam=4, wrong=10)["exact_match"]

        Parameters
        ----------
        data : str, path or list of them
            Files, folders or globs: texts; for an encoder-decoder, pairs as TSV, CSV or JSONL.
        **options
            For an encoder-decoder: beam, 1 is greedy; wrong, how many wrong answers to list.

        Returns
        -------
        score : dict
            loss (nats per token) and others; "not_scored" says what had to be left out.

        Raises
        ------
        UserError
            If the data cannot be read, or nothing of them can be scored.
        """
        task = task_of(self.config)
        options = cli.build(task.score_options, options)
        model = self.params, self.config, self.tokenizer
        return task.score(task, *model, data, options, lambda text: None)

    def logits(self, ids):
        """Return the scores of every next token.

        Parameters
        ----------
        ids : str, (T,) int or (B, T) int
            A text, or token ids; at most block_size of them.

        Returns
        -------
        logits : (B, T, V) float32, NumPy
            softmax(logits[b, t]) is the distribution of the token after ids[b, : t + 1]. B is 1
            for a text and for (T,).

        Raises
        ------
        UserError
            If ids are not of the vocabulary or too many, or if the model is an encoder-decoder.
        """
        self._check_task("text", "answer, loss or loss_and_gradients")
        ids = as_ids(ids, self.tokenizer, self.config.vocab_size, self.config.block_size)
        x, _ = gpt.gpt_forward(to_device(ids, self._xp), self.params.tree, self.config)
        return to_host(gpt.logits(x, self.params.tree))

    def loss(self, ids, targets):
        """Return the mean cross-entropy of the targets, a float in nats per token.

        Parameters
        ----------
        ids : str, (T,) int or (B, T) int
            What the model reads. Of an encoder-decoder: the source, padded with -1.
        targets : as ids
            For a GPT, targets[b, t] follows ids[b, t]. For an encoder-decoder they end with END,
            the last id of the vocabulary. -1 is ignored.

        Raises
        ------
        UserError
            If the two do not fit each other, or the model.
        """
        x, y = self._batch(ids, targets)
        p, config = self.params.tree, self.config
        loss, _ = task_of(config).loss_forward(x, y, p, config, recompute=True)
        return float(loss)

    def loss_and_gradients(self, ids, targets):
        """Return the loss, and its gradient by every parameter.

        >>> loss, grads = model.loss_and_gradients(ids[:-1], ids[1:])
        >>> grads["h"][0]["attn"]["c_attn"]["w"].shape

        Parameters
        ----------
        ids, targets : as in `loss`

        Returns
        -------
        loss : float
        grads : tree of NumPy arrays
            Nested as `model.params.tree`, each of the shape of its parameter.
        """
        x, y = self._batch(ids, targets)
        loss, grads = task_of(self.config).loss_and_gradients(x, y, self.params.tree, self.config)
        return float(loss), map_tree(lambda _, gradient: np.array(to_host(gradient)), grads)

    def attention(self, text, kind=None):
        """Return the attention weights of a text, by layer and head.

        Parameters
        ----------
        text : str
            1 to block_size tokens.
        kind : str
            Of an encoder-decoder: "cross" (the answer on the text, the default), "encoder" or
            "decoder".

        Returns
        -------
        attention : Attention

        Raises
        ------
        UserError
            If the text is empty, too long or holds an unknown character; or if there is no such
            kind.
        """
        task = task_of(self.config)
        if kind is not None:
            if not task.map_kinds:
                raise UserError(f"kind is for an encoder-decoder, but this model is {task.kind}")
            cli.choose(kind, dict.fromkeys(task.map_kinds), "kind")
        kind = kind or next(iter(task.map_kinds), None)
        model = self.params, self.config, self.tokenizer
        weights, rows, columns = task.maps(*model, as_text("text", text), kind, "text")
        return Attention(np.stack(weights), rows, columns)

    @property
    def _xp(self):
        return array_module(self.params.flat)

    def _check_task(self, name, instead):
        """Raise a UserError if the model is not for the task `name`."""
        task = task_of(self.config)
        if task.name != name:
            raise UserError(f"this model is {task.kind}: use {instead}")

    def _batch(self, ids, targets):
        return (to_device(x, self._xp) for x in as_batch(ids, targets, self.tokenizer, self.config))

    def __repr__(self):
        config = self.config
        return (
            f"<minigpt.Model: {task_of(config).kind} of {count_parameters(config):,} parameters, "
            f"{describe_model(config)}, vocabulary {config.vocab_size}, on {self.backend}>"
        )


def on_one_thread(items):
    """Yield the items of a generator, each made with BLAS on one thread.

    Of one row, a product reads all weights: one thread uses up the memory's bandwidth. For more,
    `generate` has threads of its own. In between, where the caller works, BLAS has all of its own.
    """
    while True:
        with blas_threads(1):
            item = next(items, None)
        if item is None:
            return
        yield item


def as_text(name, text):
    """Return a text, or raise a UserError if it is anything else."""
    if not isinstance(text, str):
        raise UserError(f"{name} is {text!r:.60}; it must be a string")
    return text


def load(path, backend="numpy", adapter=None):
    """Return the Model in a run's folder, a checkpoint, a folder of transformers or on the hub.

    >>> model = minigpt.load("out")
    >>> print(model.generate("ROMEO:"))
    >>> gpt2 = minigpt.load("openai-community/gpt2")

    Parameters
    ----------
    path : str or path
        What `minigpt train` or `minigpt.fit` has as --out-dir (its best checkpoint, else its
        last), a checkpoint, or a GPT of transformers (a GPT-2, or a Starcoder2 that was exported
        here): its folder, or its name on the hub.
    backend : str
        "numpy" or "cupy": where the arrays go.
    adapter : str or path, optional
        Folder of a LoRA adapter of that model, in peft's format: it is merged into the weights.

    Raises
    ------
    UserError
        If there is no such file, if it is damaged or of another kind, or if the backend cannot be
        used.
    """
    found, history = load_model(path, load_backend(backend)), read_history(Path(path))
    if adapter is not None:
        found, history = adapted(found, adapter), []  # which was of other weights
    return Model(found.config, found.params, found.tokenizer, history, found.adapter)


def read_history(folder):
    """Return the metrics of a run, a dict per line; none where there is no run."""
    try:
        return [*read_metrics(folder)]
    except OSError:
        return []
