"""How a run is trained: its options, under nanoGPT's names, and how they become configs."""

import re
import types
from dataclasses import dataclass

from minigpt import cli
from minigpt.backend.cores import usable_cores
from minigpt.backend.devices import BACKENDS, PRECISIONS
from minigpt.cli import fields_of, option
from minigpt.data.batches import SAMPLERS
from minigpt.data.subwords import check_vocab_size
from minigpt.errors import UserError
from minigpt.model import gpt
from minigpt.model.lora import Lora, adapter_shapes
from minigpt.optim.adamw import AdamW
from minigpt.optim.muon import MOMENTUM, Muon, group_matrices, matrices_of
from minigpt.optim.schedule import SHAPES
from minigpt.optim.sharding import cut_evenly
from minigpt.sample.tasks import TASKS

OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
MODELS = tuple(task.config for task in TASKS.values())
SIZES = ("vocab_size", "source_vocab_size")  # what only the data can tell
AUTO = {"bigram": "auto"}  # options that may be left to `resolve`, and the value that says so
BIGRAM_MAX_VOCAB = 256  # with more tokens, the table of their pairs would outweigh all else
BLOCK_STEP = 8  # tokens: a block size that is found is a multiple of it
MAX_PARAMETERS = 2**44
SCHEDULE = {"learning_rate", "min_lr", "warmup_iters", "max_iters", "lr_decay_iters"}
COUNT = {"min": 1, "below": 2**48}
NUMBER = {"min": 0, "below": 2**63}
FRACTION = {"min": 0, "below": 1}


class AtLeast(int):
    """A block size of a preset: it grows with the longest pair; one that is given does not."""

    def grow(self, needed):
        """Return the block size for so many tokens."""
        return int(self) if needed <= self else -(-needed // BLOCK_STEP) * BLOCK_STEP


class Within(AtLeast):
    """That of a preset for a model that there is: it grows up to the model's, `most`."""

    def __new__(cls, value, most):
        """Make the block size."""
        self = super().__new__(cls, min(value, most))
        self.most = most
        return self

    def grow(self, needed):
        """Return the block size for so many tokens, or the model's."""
        return min(super().grow(needed), self.most)


@dataclass(frozen=True)
class TrainConfig(cli.Config):
    """Training.

    The defaults are those of the preset quick. None stands for a value that depends on others, or
    on the machine; it is filled in when the config is made. `dataclasses.replace` therefore takes
    `lr_decay_iters=None` beside another `max_iters`.
    """

    task: str = option(
        "text",
        "language model on a text, or seq2seq: encoder-decoder on pairs",
        choices=tuple(TASKS),
        group="Run",
    )
    data: str | None = option(
        None,
        "UTF-8 text (default: tiny Shakespeare); for seq2seq, pairs as TSV, CSV or JSONL (default: "
        "dates in words to ISO 8601). One file or several, folders, globs in quotes, or - for "
        "standard input",
        metavar="FILE",
        group="Run",
        path=True,
        several=True,
    )
    tokenizer: str | None = option(
        None,
        "char; bpe: byte-level BPE of --vocab-size tokens (default: 1024) that is trained on the "
        "training part; or a folder or tokenizer.json with one, or a name on the hub such as gpt2 "
        "(default: char)",
        metavar="NAME",
        group="Run",
        path=True,
    )
    init_from: str | None = option(
        None,
        "fine-tune a model: a run's folder, a checkpoint, a folder of transformers or a name on "
        "the hub; it brings its tokenizer and config, of which only dropout and a smaller block "
        "size may be given (default preset: finetune)",
        metavar="MODEL",
        group="Run",
        path=True,
    )
    out_dir: str = option(
        "out", "folder for checkpoints and metrics", metavar="DIR", group="Run", path=True
    )
    backend: str = option(
        "numpy",
        "numpy: CPU; cupy: GPU",
        choices=BACKENDS,
        answers={
            **dict.fromkeys(("torch", "pytorch", "jax"), "minigpt computes with NumPy and CuPy"),
            **dict.fromkeys(("cuda", "gpu", "rocm"), "cupy is the GPU backend"),
            "cpu": "numpy is the CPU backend",
        },
        group="Run",
    )
    dtype: str = option(
        "float32",
        "precision of training steps. tf32 affects matrix products only; in bfloat16 and float16 "
        "(with loss scaling) the passes take half the memory; all three need --backend cupy",
        choices=tuple(PRECISIONS),
        answers={
            "bf16": "bfloat16 is the name here",
            **dict.fromkeys(("fp16", "half"), "float16 is the name here"),
            **dict.fromkeys(("fp32", "float"), "float32 is the name here"),
        },
        group="Run",
    )
    threads: int | None = option(
        None,
        "CPU threads; the batch is sharded over them (default: all usable cores)",
        **COUNT,
        group="Run",
    )
    shard_optimizer: bool = option(
        False,
        "of several processes, each keeps the optimizer's state of its part of the weights alone "
        "(ZeRO stage 1)",
        group="Run",
        rare=True,
    )
    sum_dtype: str = option(
        "float32",
        "of several processes, the type in which gradients travel; bfloat16: half the bytes, sums "
        "still in float32",
        choices=("float32", "bfloat16"),
        answers={"bf16": "bfloat16 is the name here"},
        group="Run",
        rare=True,
    )
    seed: int = option(1337, "seed of initial weights, batches and dropout", **NUMBER, group="Run")
    batch_size: int = option(32, "sequences per batch", **COUNT)
    gradient_accumulation_steps: int = option(1, "batches per step", **COUNT)
    recompute: bool = option(
        False,
        "keep only the inputs of the blocks and run each again in the backward pass: far less "
        "memory, a third more time; the same results to the bit",
    )
    max_iters: int = option(1400, "training steps in total", **COUNT)
    max_seconds: float | None = option(
        None,
        "wall-clock budget (s) of the whole run, resumed parts included, without pauses; replaces "
        "max-iters; not reproducible",
        **COUNT,
    )
    max_passes: float | None = option(
        None,
        "passes (epochs) through the training data after which the run ends, in place of "
        "max-iters; with --max-seconds it ends at whichever comes first",
        above=0,
        below=2**48,
    )
    sampler: str = option(
        "weyl",
        "where windows start: uniform random, or spread evenly over the text (weyl)",
        choices=tuple(SAMPLERS),
    )
    learning_rate: float = option(0.01, "peak learning rate", **NUMBER, group="Learning rate")
    min_lr: float = option(
        0.0,
        "learning rate after the decay; a lower --learning-rate lowers it, too",
        **NUMBER,
        group="Learning rate",
    )
    warmup_iters: int = option(20, "steps of linear warm-up", **NUMBER, group="Learning rate")
    lr_schedule: str = option(
        "wsd",
        "decay: cosine, or wsd (constant, then linear)",
        choices=SHAPES,
        group="Learning rate",
    )
    lr_decay_iters: int | None = option(
        None,
        "step at which the decay reaches min-lr (default: max-iters)",
        **NUMBER,
        group="Learning rate",
        rare=True,
    )
    lr_decay_fraction: float = option(
        0.5,
        "fraction of the run spent in wsd's decay",
        min=0,
        max=1,
        group="Learning rate",
        rare=True,
    )
    optimizer: str = option(
        "muon",
        "adamw, or muon: Muon for the matrices of the blocks, AdamW for the rest",
        choices=tuple(OPTIMIZERS),
        group="Optimizer",
    )
    momentum: float = option(MOMENTUM, "Muon's momentum", **FRACTION, group="Optimizer", rare=True)
    weight_decay: float | None = option(
        0.1,
        "weight decay of matrices and embeddings; auto: by the number of passes through the data "
        "that the run will have made",
        auto=True,
        **NUMBER,
        group="Optimizer",
    )
    beta1: float = option(0.9, "AdamW's beta1", **FRACTION, group="Optimizer", rare=True)
    beta2: float = option(0.95, "AdamW's beta2", **FRACTION, group="Optimizer", rare=True)
    grad_clip: float = option(
        1.0, "clip the gradient's norm to this; 0: no clipping", **NUMBER, group="Optimizer"
    )
    lora_rank: int = option(
        0,
        "fine-tune by LoRA: rank of the adapters, which alone are trained; 0: all weights are. "
        "Preset finetune then has a learning rate of 2e-4, and no weight decay",
        min=0,
        below=2**24,
        group="LoRA",
    )
    lora_alpha: float | None = option(
        None, "an adapter counts by alpha / rank (default: the rank)", above=0, group="LoRA"
    )
    lora_dropout: float = option(
        0.0, "dropout of the adapters' inputs", min=0, below=1, group="LoRA"
    )
    lora_targets: str | None = option(
        None,
        "linear layers that get an adapter, by the ends of their names: c_attn, attn.c_proj, c_fc, "
        "mlp.c_proj, or c_proj for both (default: c_attn)",
        metavar="LAYER",
        group="LoRA",
        several=True,
    )
    lora_rslora: bool = option(
        False, "rsLoRA: adapters count by alpha / sqrt(rank)", group="LoRA", rare=True
    )
    eval_interval: int = option(
        350, "steps between evaluations; each saves checkpoints", **COUNT, group="Evaluation"
    )
    eval_tokens: int = option(
        200_000,
        "validation tokens per evaluation, spread evenly over the split; 0: all. At the end of a "
        "run, all are evaluated",
        **NUMBER,
        group="Evaluation",
    )
    log_interval: int = option(
        10, "steps between lines of metrics.jsonl", **COUNT, group="Evaluation"
    )
    sample_tokens: int = option(
        100,
        "tokens of a sample in metrics.jsonl at each evaluation, fewer where they would take more "
        "than 1% of the run's time; 0: none",
        **NUMBER,
        group="Evaluation",
    )
    tensorboard: bool = option(
        False,
        "write the metrics for TensorBoard as well, to --out-dir/tensorboard",
        group="Evaluation",
    )
    wandb: str | None = option(
        None,
        "log the metrics to this project of Weights & Biases as well; WANDB_MODE=offline sends "
        "nothing",
        metavar="PROJECT",
        group="Evaluation",
    )
    report_every: int = option(
        0,
        "renew report.html, a page for a browser, at every N-th evaluation, in 5% of the run's "
        "time at most; 0: at the end alone, where pip install 'minigpt[report]' was done",
        **NUMBER,
        group="Evaluation",
    )

    def __post_init__(self):
        super().__post_init__()
        samplers = TASKS[self.task].samplers
        if self.sampler not in samplers:
            raise UserError(
                f"sampler is {self.sampler!r}, which task {self.task} does not have; use "
                f"{' or '.join(samplers)}"
            )
        own = {"threads": usable_cores(), "lr_decay_iters": self.max_iters}
        if self.lora_rank:
            own |= {"lora_alpha": float(self.lora_rank), "lora_targets": "c_attn"}
        for name, value in own.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_lora(self)

    @property
    def lora(self):
        """The Lora of the adapter that is trained, or None where all weights are."""
        if not self.lora_rank:
            return None
        targets = tuple(re.split(r"[\s,]+", self.lora_targets.strip(" \n,")))
        return Lora(self.lora_rank, self.lora_alpha, self.lora_dropout, targets, self.lora_rslora)

    def workers(self):
        """Return the number of Python threads that work: a GPU needs one."""
        return self.threads if self.backend == "numpy" else 1

    def shards(self):
        """Return the number of parts that a batch is cut into, each for a thread of its own."""
        return min(self.workers(), self.batch_size)


def check_lora(train_config):
    """Raise a UserError if options of LoRA contradict each other, or others."""
    if not train_config.lora_rank:
        for name, field in fields_of(TrainConfig).items():
            value = getattr(train_config, name)
            if name.startswith("lora_") and value != field.default:
                raise UserError(
                    f"{name} is {value}, but lora_rank is 0, which trains all weights: give "
                    "lora_rank, too, or leave it out"
                )
        return
    if train_config.init_from is None:
        raise UserError(
            f"lora_rank is {train_config.lora_rank}, but there is no model to adapt: name it by "
            "init_from"
        )
    if train_config.optimizer != "adamw":
        raise UserError(
            f"lora_rank is {train_config.lora_rank}, but optimizer is {train_config.optimizer}, "
            "which steps whole matrices and not the factors of their changes; use adamw"
        )
    _ = train_config.lora  # checks the rest


def optimizer_parts(params, train_config, n):
    """Return the slice of `params.flat` that each of n processes steps; see optim/sharding.py.

    A matrix that Muon steps belongs to one of them: its step needs all of it.
    """
    muon = train_config.optimizer == "muon"
    whole = matrices_of(group_matrices(params)[0]) if muon else ()
    return cut_evenly(params.size, n, whole)


def make_optimizer(params, train_config, half_params=None, own=None):
    """Return the optimizer that a TrainConfig asks for; `half_params` and `own` as in AdamW."""
    precision, more = PRECISIONS[train_config.dtype], {}
    if train_config.optimizer == "muon":
        more = {"momentum": train_config.momentum, "tf32": precision.tf32}
    return OPTIMIZERS[train_config.optimizer](
        params,
        train_config.beta1,
        train_config.beta2,
        train_config.weight_decay or 0.0,  # auto: the Trainer sets it at every step
        max_norm=train_config.grad_clip,
        half_params=half_params,
        loss_scaling=precision.loss_scaling,
        own=own,
        **more,
    )


def check_options(options, where=""):
    """Return options with each value checked on its own: its name, type, bounds and choices.

    Parameters
    ----------
    options : dict
        Of a model and its training, in one dict.
    where : str
        Names their source in errors: "run.toml: ".

    Raises
    ------
    UserError
        If a name is unknown (the nearest is named), or if no run could have the value.
    """
    auto = {name for name, value in AUTO.items() if options.get(name) == value}
    rest = {name: value for name, value in options.items() if name not in auto}
    checked = cli.check_values(rest, TrainConfig, *MODELS, where=where)
    return {name: AUTO[name] if name in auto else checked[name] for name in options}


def train_config_of(options):
    """Return the TrainConfig of a new run's options, all of which are checked.

    It is all that is needed to read the data, and whatever can be wrong with the options of the
    model without knowing the data is reported here.

    Raises
    ------
    UserError
        As check_options; or if two options contradict each other.
    """
    train_config = each_checked(options)
    check_together(train_config)
    if train_config.tokenizer == "bpe" and "vocab_size" in options:
        check_vocab_size(options["vocab_size"])
    return train_config


def each_checked(options):
    """Return the TrainConfig of options, as train_config_of, but without check_together."""
    options = check_options(options)
    train_config = cli.build(TrainConfig, of_class(TrainConfig, options))
    model_class = TASKS[train_config.task].config
    for name in options:
        if name not in fields_of(TrainConfig) and name not in fields_of(model_class):
            owner = next(task.name for task in TASKS.values() if name in fields_of(task.config))
            raise UserError(f"{name} is for --task {owner}: leave it out")
    defaults = {name: field.default for name, field in fields_of(model_class).items()}
    model = types.SimpleNamespace(**(defaults | options | {"vocab_size": 0}))  # not known yet
    gpt.check_together(model)
    check_size(model)
    return train_config


def check_together(train_config):
    """Raise a UserError if options of a schedule contradict each other.

    Those of a run that is resumed are checked only if one of them is given: older runs,
    which were not checked, go on as they were.
    """
    lr, low = train_config.learning_rate, train_config.min_lr
    if low > lr:
        raise UserError(
            f"min_lr is {low:g}, above learning_rate, which is {lr:g}: the learning rate would "
            f"rise to it; give a min_lr of at most {lr:g}"
        )
    if train_config.max_seconds or train_config.max_passes:
        return  # the warm-up and the decay go by the progress
    for name in ("max_iters", "lr_decay_iters"):
        last = getattr(train_config, name)
        if train_config.warmup_iters > last:
            raise UserError(
                f"warmup_iters is {train_config.warmup_iters}, but {name} is {last}: the learning "
                f"rate would never reach {lr:g}; give a warmup_iters of at most {last}"
            )


def resolve(options, sizes):
    """Return (model_config, train_config): whole, with nothing left to decide.

    Parameters
    ----------
    options : dict
        Of a model and its training: a preset's, with those of a file and of flags on top. What it
        lacks is the default of GPTConfig, Seq2SeqConfig or TrainConfig.
    sizes : dict
        What the data need: vocab_size, and of pairs source_vocab_size and block_size.

    Returns
    -------
    model_config : GPTConfig or Seq2SeqConfig
        By the task.
    train_config : TrainConfig

    Raises
    ------
    UserError
        As train_config_of, but for check_together; if the options do not fit the data; or if the
        model is beyond all memory.
    """
    train_config = each_checked(options)
    model_class = TASKS[train_config.task].config
    model = of_class(model_class, options)
    if isinstance(model.get("block_size"), AtLeast):
        model["block_size"] = model["block_size"].grow(sizes.get("block_size", 0))
    if train_config.tokenizer == "bpe":
        model.pop("vocab_size", None)  # of the table that has been trained
    needed = of_class(model_class, {name: sizes[name] for name in SIZES if name in sizes})
    for name, size in needed.items():
        model[name] = fitting_size(name, model.get(name, size), size, train_config)
    if model.get("bigram") == AUTO["bigram"]:
        model["bigram"] = sizes["vocab_size"] <= BIGRAM_MAX_VOCAB
    model_config = cli.build(model_class, model)
    check_size(model_config)
    if train_config.lora is not None:
        adapter_shapes(model_config, train_config.lora)  # are there such layers?
    return model_config, train_config


def of_class(cls, options):
    """Return the options that are fields of a config class."""
    return {name: value for name, value in options.items() if name in fields_of(cls)}


def fitting_size(name, asked, needed, train_config):
    """Return the vocabulary size of a model; that of some tasks may be larger than needed."""
    task = TASKS[train_config.task]
    if task.padded_vocab and asked < needed:
        own = train_config.tokenizer in (None, "char")
        has = "the text has" if own else f"--tokenizer {train_config.tokenizer} has"
        raise UserError(f"{name} is {asked}, but {has} {needed} different tokens")
    if not task.padded_vocab and asked != needed:
        raise UserError(f"{name} is {asked}, but the pairs need {needed}: leave it out")
    return asked


def check_size(config):
    """Raise a UserError if a model is beyond all memory."""
    V, C = config.vocab_size, config.n_embd
    embedded = V + (V * (V + 1) if config.bigram else 0) + config.block_size
    weights = C * (embedded + 12 * config.n_layer * C)
    if weights > MAX_PARAMETERS:
        raise UserError(f"the model would have {weights:.0e} parameters: no machine holds so many")
