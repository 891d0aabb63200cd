"""Named sets of options, and how they are put together with those that are given."""

from minigpt import cli
from minigpt.errors import UserError
from minigpt.model.encoder_decoder import Seq2SeqConfig
from minigpt.model.gpt import GPTConfig
from minigpt.sample.tasks import TASKS
from minigpt.train.config import (
    SIZES,
    AtLeast,
    TrainConfig,
    check_options,
    resolve,
    train_config_of,
)
from minigpt.train.limits import digits

# nanoGPT's model and recipe for a CPU, as far as they differ from the defaults here.
NANOGPT = {
    "n_layer": 4,
    "bias": True,
    "rotary": False,
    "bigram": False,
    "activation": "gelu",
    "batch_size": 12,
    "sampler": "uniform",
    "max_iters": 2000,
    "optimizer": "adamw",
    "momentum": 0.95,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "warmup_iters": 100,
    "lr_schedule": "cosine",
    "lr_decay_fraction": 0.4,
    "beta2": 0.99,
    "eval_interval": 250,
}
# What a preset does not say is the default of GPTConfig or TrainConfig; `options_of` adds it.
PRESETS = {
    # The lowest validation loss that a minute on two cores gives: bench/experiments.md
    "quick": {"bigram": "auto"},
    # The lowest that half an hour on two cores gives; its end is timed, on any machine.
    # It sees the text many times, on fast cores more often: weight decay, which grows with the
    # passes, is what keeps it from overfitting. Beyond 16 passes no decay makes it better.
    "quality": {
        "n_layer": 6,
        "n_embd": 256,
        "block_size": 256,
        "bigram": False,
        "batch_size": 16,
        "max_iters": 2000,
        "max_seconds": 1800.0,
        "max_passes": 16.0,
        "momentum": 0.95,
        "learning_rate": 0.006,
        "warmup_iters": 40,
        "lr_decay_fraction": 0.6,
        "weight_decay": "auto",
        "eval_interval": 400,
    },
    # nanoGPT, README, "I only have a macbook": 0.80 M parameters, validation 1.88
    "nanogpt-cpu": {**NANOGPT, "bias": False},
    # nanoGPT, config/train_shakespeare_char.py: 10.65 M, best validation 1.4697
    "nanogpt-baby": {
        **NANOGPT,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "block_size": 256,
        "batch_size": 64,
        "dropout": 0.2,
        "bias": False,
        "max_iters": 5000,
    },
    # The lecture's gpt.py: 10,788,929 parameters; validation 1.4873 in the video's run. Two
    # departures: torch's AdamW also decays gains and biases, here only matrices and embeddings
    # decay; and the lecture has no dropout on the embedding, as nanoGPT and this model have.
    "lecture": {
        **NANOGPT,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "block_size": 256,
        "batch_size": 64,
        "dropout": 0.2,
        "qkv_bias": False,
        "activation": "relu",
        "tie_head": False,
        "head_bias": True,
        "init_scale": "plain",
        "max_iters": 5000,
        "learning_rate": 3e-4,
        "min_lr": 3e-4,
        "warmup_iters": 0,
        "weight_decay": 0.01,
        "beta2": 0.999,
        "grad_clip": 0.0,
        "eval_interval": 500,
    },
    # GPT-2 small with nanoGPT's recipe (config/train_gpt2.py): 124,439,808 parameters
    "gpt2": {
        **NANOGPT,
        "vocab_size": 50257,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "block_size": 1024,
        "activation": "gelu_tanh",
        "batch_size": 12,
        "gradient_accumulation_steps": 40,
        "max_iters": 600000,
        "learning_rate": 6e-4,
        "min_lr": 6e-5,
        "warmup_iters": 2000,
        "beta2": 0.95,
        "eval_interval": 1000,
    },
    # Learns the built-in dates in less than 3 minutes on two cores. The lengths within a batch are
    # alike, and so are the forms of dates: a step of several batches sees many forms.
    "dates": {
        **NANOGPT,
        "task": "seq2seq",
        "n_layer": 2,
        "batch_size": 32,
        "gradient_accumulation_steps": 4,
        "max_iters": 1500,
        "learning_rate": 2e-3,
        "min_lr": 2e-4,
        "warmup_iters": 200,
    },
    # For a model that there is (--init-from): a low learning rate, short windows, no dropout.
    # nanoGPT, config/finetune_shakespeare.py: 3e-5 and steps of 32 windows.
    "finetune": {
        "block_size": 256,
        "dropout": 0.0,
        "batch_size": 4,
        "gradient_accumulation_steps": 8,
        "max_iters": 200,
        "optimizer": "adamw",
        "learning_rate": 3e-5,
        "min_lr": 3e-6,
        "warmup_iters": 20,
        "lr_schedule": "cosine",
        "eval_interval": 20,
    },
}
DEFAULT = "quick"
FINETUNE = "finetune"  # where there is a model to begin from
# What finetune has with LoRA in place of its own: an adapter begins at 0 and needs larger steps,
# and decay would draw the model back to its base. The rate is that of Hu et al. 2021 for GPT-2.
FINETUNE_LORA = {"learning_rate": 2e-4, "min_lr": 2e-5, "weight_decay": 0.0}
DEFAULTS = {"text": DEFAULT, "seq2seq": "dates"}  # by task
# What a length that is given takes the place of.
REPLACED = {
    "max_iters": ("max_seconds", "max_passes"),
    "max_passes": ("max_iters", "lr_decay_iters"),
    "max_seconds": ("max_iters", "lr_decay_iters"),
}


def options_of(preset, task=None):
    """Return all options that a preset stands for, but for sizes that are found from the data.

    Parameters
    ----------
    preset : str
        A key of PRESETS.
    task : str, optional
        What it is used for, if that is not the preset's own task.

    Raises
    ------
    UserError
        If there is no such preset; the nearest is named.
    """
    chosen = cli.choose(preset, PRESETS, "preset")
    fields = {**cli.fields_of(GPTConfig), **cli.fields_of(TrainConfig)}
    defaults = {name: field.default for name, field in fields.items() if name not in SIZES}
    options = defaults | chosen
    options["block_size"] = AtLeast(options["block_size"])
    entry = TASKS[task or options["task"]]
    if options["sampler"] not in entry.samplers:
        options["sampler"] = entry.samplers[0]
    if not entry.padded_vocab:
        options.pop("vocab_size", None)
    return options


def training_options(preset, lora=False):
    """Return the options of a preset for a model that there is: all but those of a model.

    Of these there are dropout and a block size, which the model's own may cut. Task, tokenizer and,
    unless the preset names one, the sampler are left to the model as well.

    Parameters
    ----------
    preset : str
    lora : bool
        Whether an adapter is trained, for which finetune has options of its own.
    """
    model, options = cli.fields_of(Seq2SeqConfig), options_of(preset)
    if lora and preset == FINETUNE:
        options |= FINETUNE_LORA
    left = {"task", "tokenizer", "vocab_size", *({"sampler"} - PRESETS[preset].keys())}
    left |= model.keys() - {"dropout", "block_size"}
    return {name: value for name, value in options.items() if name not in left}


def put_together(base, given):
    """Return the options of `base` with those given on top.

    Steps that are given win over time and passes of `base`, a decay that ends with the last step of
    `base` ends with theirs, and a warm-up that would take more than half of them takes a tenth. A
    lower learning rate lowers the floor of its decay in proportion.

    Raises
    ------
    UserError
        As check_length.
    """
    check_length(given)
    follow, lr = {}, given.get("learning_rate")
    if lr is not None and lr < base.get("learning_rate", 0.0):
        follow["min_lr"] = base.get("min_lr", 0.0) * lr / base["learning_rate"]
    if "max_iters" in given:
        follow |= dict.fromkeys(REPLACED["max_iters"])
        if base.get("lr_decay_iters") == base.get("max_iters"):
            follow["lr_decay_iters"] = None
        if 2 * base.get("warmup_iters", 0) > given["max_iters"]:
            follow["warmup_iters"] = given["max_iters"] // 10
    return {**base, **follow, **given}


def merge(below, given):
    """Return the options of `below` without what a length among those `given` takes the place of,
    and with these on top.
    """
    lengths = [name for name in REPLACED if given.get(name) is not None]
    replaced = {other for name in lengths for other in REPLACED[name]}
    return {name: x for name, x in below.items() if name not in replaced} | given


def check_length(given, where=""):
    """Raise a UserError if passes are given beside steps, which they take the place of."""
    passes = given.get("max_passes")
    for name in ("max_iters", "lr_decay_iters"):
        if passes is not None and given.get(name) is not None:
            raise UserError(
                f"{where}{name} is {given[name]}, but max_passes is {digits(passes)}, by which the "
                "run ends and its learning rate decays: leave one out"
            )


def configs_of(preset=DEFAULT, vocab_size=65, source_vocab_size=65, **options):
    """Return (model_config, train_config) of a preset and options that win over its own.

    >>> model_config, train_config = configs_of("quick", vocab_size=65, n_layer=4, max_iters=500)

    Parameters
    ----------
    preset : str
    vocab_size, source_vocab_size : int
        What the data need; the latter is of sources, and has no meaning for a text.
    **options
        Fields of the configs.

    Raises
    ------
    UserError
        As `minigpt.train.config.resolve`, with the sentences of the command line.
    """
    options = check_options(options)
    given = put_together(options_of(preset, options.get("task")), options)
    train_config_of(given)
    sizes = {"vocab_size": vocab_size, "source_vocab_size": source_vocab_size}
    return resolve(given, sizes)
