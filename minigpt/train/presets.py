"""Named sets of options, and how they are put together with those that are given."""

# What a preset does not say is the default of TrainConfig or GPTConfig.
PRESETS = {
    # The lowest validation loss that a minute on two cores gives: bench/results/tries.md
    "quick": {
        "n_layer": 2,
        "bias": False,
        "rotary": True,
        "bigram": None,  # if tokens are FEW: their pairs would outweigh all else
        "activation": "relu",
        "batch_size": 32,
        "places": "even",
        "max_iters": 1400,
        "optimizer": "muon",
        "momentum": 0.9,
        "learning_rate": 0.01,
        "min_lr": 0.0,
        "warmup_iters": 20,
        "lr_schedule": "wsd",
        "lr_decay_share": 0.5,
        "beta2": 0.95,
        "eval_interval": 350,
    },
    # The lowest that half an hour on two cores gives; by the clock, so that it ends on any machine.
    # It meets the text many times: strong decay of the weights is what keeps it from overfitting.
    "quality": {
        "n_layer": 6,
        "n_embd": 256,
        "block_size": 256,
        "bias": False,
        "rotary": True,
        "activation": "relu",
        "batch_size": 16,
        "places": "even",
        "max_seconds": 1800.0,
        "optimizer": "muon",
        "learning_rate": 0.006,
        "min_lr": 0.0,
        "warmup_iters": 40,
        "lr_schedule": "wsd",
        "lr_decay_share": 0.6,
        "weight_decay": 0.5,
        "beta2": 0.95,
        "eval_interval": 400,
    },
    # nanoGPT, README, "I only have a macbook": 0.80 M parameters, validation 1.88
    "nanogpt-cpu": {"bias": False},
    # nanoGPT, config/train_shakespeare_char.py: 10.65 M, best validation 1.4697
    "nanogpt-baby": {
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "block_size": 256,
        "batch_size": 64,
        "dropout": 0.2,
        "bias": False,
        "max_iters": 5000,
    },
    # The lecture's gpt.py: 10,788,929 parameters, validation 1.4873. Its AdamW is torch's default,
    # which decays gains and biases too; here matrices and embeddings alone.
    "lecture": {
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
        "init": "lecture",
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
        "task": "seq2seq",
        "n_layer": 2,
        "batch_size": 32,
        "gradient_accumulation_steps": 4,
        "max_iters": 1500,
        "learning_rate": 2e-3,
        "min_lr": 2e-4,
        "warmup_iters": 200,
    },
}
DEFAULT = "quick"
DEFAULTS = {"text": DEFAULT, "seq2seq": "dates"}


def put_together(base, given):
    """Return the options of `base` with those given: steps asked for win over a clock of `base`."""
    clock = {"max_seconds": None} if "max_iters" in given else {}
    return {**base, **clock, **given}
