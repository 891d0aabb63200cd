"""How a run is trained: its options, under nanoGPT's names, and the presets."""

from dataclasses import dataclass, fields

from minigpt.backend.devices import PRECISIONS, usable_cores
from minigpt.cli import build, nearest, option
from minigpt.data.batches import PLACES
from minigpt.errors import UserError
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.optim.adamw import AdamW
from minigpt.optim.muon import Muon
from minigpt.optim.schedule import SHAPES

POSITIVE = (
    *("threads", "batch_size", "gradient_accumulation_steps"),
    *("max_iters", "max_seconds", "eval_interval", "log_interval"),
)
NOT_NEGATIVE = (
    *("seed", "warmup_iters", "lr_decay_iters"),
    *("learning_rate", "min_lr", "weight_decay", "grad_clip"),
)
OPTIMIZERS = {"adamw": AdamW, "muon": Muon}


@dataclass(frozen=True)
class TrainConfig:
    """Training."""

    task: str = option("text", "what is learnt: see --data", choices=("text", "seq2seq"))
    data: str | None = option(
        None,
        "UTF-8 file: a text (default: tiny Shakespeare), or for seq2seq lines of source TAB target "
        "(default: dates in words to ISO 8601)",
        metavar="FILE",
    )
    out_dir: str = option("out", "folder for checkpoints and metrics", metavar="DIR")
    backend: str = option("numpy", "where arrays live", choices=("numpy", "cupy"))
    dtype: str = option(
        "float32",
        "precision of the passes of a step: float16 is for --backend cupy, with the loss scaled; "
        "weights, evaluations, checkpoints and samples are float32",
        choices=("float32", "float16"),
    )
    tf32: bool = option(False, "float32 products rounded to TF32, on NVIDIA GPUs since Ampere")
    threads: int | None = option(None, "threads, which share each batch (default: cores)")
    seed: int = option(1337, "of initial weights, batches and dropout")
    batch_size: int = option(12, "sequences per batch")
    places: str = option(
        "random",
        "where in a text they begin: anywhere, as nanoGPT's, or spread evenly from step to step",
        choices=tuple(PLACES),
    )
    gradient_accumulation_steps: int = option(1, "batches per step")
    max_iters: int = option(2000, "steps in all")
    max_seconds: float | None = option(
        None,
        "time for the whole command: decay and end go by the clock instead of by max-iters, so "
        "that no two runs are alike",
    )
    learning_rate: float = option(1e-3, "highest learning rate")
    min_lr: float = option(1e-4, "learning rate at the end of the decay")
    warmup_iters: int = option(100, "steps until the learning rate is at its highest")
    lr_decay_iters: int | None = option(
        None, "step at which the learning rate is down at min-lr (default: max-iters)"
    )
    lr_schedule: str = option(
        "cosine", "the way down: half a cosine, or none and then a line (wsd)", choices=SHAPES
    )
    lr_decay_share: float = option(0.4, "share of the run that the line of wsd takes")
    optimizer: str = option(
        "adamw", "muon is for the matrices in the blocks, beside AdamW", choices=tuple(OPTIMIZERS)
    )
    momentum: float = option(0.95, "Muon's")
    weight_decay: float = option(0.1, "for matrices and embeddings")
    beta1: float = option(0.9, "AdamW's")
    beta2: float = option(0.99, "AdamW's")
    grad_clip: float = option(1.0, "largest norm of the gradient; 0 is no clipping")
    eval_interval: int = option(250, "steps between evaluations, each with checkpoints")
    log_interval: int = option(10, "steps between lines of metrics.jsonl")

    def __post_init__(self):
        for name in (*POSITIVE, *NOT_NEGATIVE):
            least, bits = (1, 48) if name in POSITIVE else (0, 63)
            value = getattr(self, name)
            if value is not None and not least <= value < 2**bits:
                needed = f"at least {least}" if value < least else f"below 2**{bits}"
                raise UserError(f"{name} is {value}; it must be {needed}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}; it must be at least 0 and below 1")
        if not 0 <= self.lr_decay_share <= 1:
            raise UserError(f"lr_decay_share is {self.lr_decay_share}; it must be from 0 to 1")
        chosen = {"lr_schedule": SHAPES, "optimizer": OPTIMIZERS, "places": PLACES}
        for name, known in chosen.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name} is '{value}'; choose from {', '.join(known)}")
        if self.task == "seq2seq" and self.places != "random":
            raise UserError(f"places is '{self.places}', which is for --task text: leave it out")

    def cores(self):
        """Return how many cores may be busy."""
        return self.threads or usable_cores()

    def shards(self):
        """Return the number of parts that a batch is cut into, each for a thread of its own."""
        return min(self.cores(), self.batch_size) if self.backend == "numpy" else 1


def make_optimizer(params, train, half_params=None):
    """Return the optimizer that a TrainConfig asks for; `half_params` as in AdamW."""
    own = {"momentum": train.momentum} if train.optimizer == "muon" else {}
    return OPTIMIZERS[train.optimizer](
        params,
        train.beta1,
        train.beta2,
        train.weight_decay,
        max_norm=train.grad_clip,
        half_params=half_params,
        loss_scaling=PRECISIONS[train.dtype].loss_scaling,
        **own,
    )


FEW = 256


def configs(values, vocab_size, source_vocab_size=1):
    """Return (GPTConfig or Seq2SeqConfig, TrainConfig) from a dict of options of both.

    Parameters
    ----------
    values : dict
        Preset, file and flags, already put together.
    vocab_size : int
        The tokenizer's, unless `values` has a larger one; 1 if it is not known yet.
    source_vocab_size : int
        That of an encoder's tokenizer.

    Raises
    ------
    UserError
        If a key is unknown (the nearest is named), or a value cannot be.
    """
    of_model = {field.name for field in fields(Seq2SeqConfig)}
    known = of_model | {field.name for field in fields(TrainConfig)}
    for name in values:
        if name not in known:
            raise UserError(f"unknown option {name!r}{nearest(name, known)}")
    model = {name: value for name, value in values.items() if name in of_model}
    if model.get("bigram", False) is None:
        model["bigram"] = vocab_size <= FEW
    train = build(TrainConfig, {k: v for k, v in values.items() if k not in of_model})
    if train.task == "seq2seq":
        return seq2seq_config(model, vocab_size, source_vocab_size), train
    for name in model.keys() - {field.name for field in fields(GPTConfig)}:
        raise UserError(f"{name} is for --task seq2seq: leave it out")
    config = build(GPTConfig, {"vocab_size": vocab_size} | model)
    if config.vocab_size < vocab_size:
        raise UserError(
            f"vocab_size is {config.vocab_size}, but the text holds {vocab_size} characters"
        )
    check_size(config)
    return config, train


def seq2seq_config(model, vocab_size, source_vocab_size):
    """Return the Seq2SeqConfig of a dict of its options; the vocabularies are the tokenizers'."""
    sizes = {"vocab_size": vocab_size, "source_vocab_size": source_vocab_size}
    for name, size in sizes.items():
        if model.get(name, size) != size and vocab_size > 1:
            raise UserError(f"{name} is {model[name]}, but the pairs need {size}: leave it out")
    config = build(Seq2SeqConfig, model | sizes)
    check_size(config)
    return config


def check_size(config):
    """Raise a UserError if a model is beyond all memory."""
    V, C = config.vocab_size, config.n_embd
    weights = C * (V + config.bigram * V * (V + 1) + config.block_size + 12 * config.n_layer * C)
    if weights > 2**44:
        raise UserError(f"the model would have {weights:.0e} parameters: no machine holds so many")
