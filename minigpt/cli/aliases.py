"""Names that are not today's: those that options had before, and those of other programs."""

KEEP = object()  # in place of a new value: the option was without effect

# Old name: (new name, {old value: new value}); other values stay as they are.
ALIASES = {
    "places": ("sampler", {"random": "uniform", "even": "weyl"}),
    "init": ("init_scale", {"gpt2": "residual", "lecture": "plain"}),
    "lr_decay_share": ("lr_decay_fraction", {}),
    "tf32": ("dtype", {True: "tf32", False: KEEP}),
}

# Defaults at the time of the old names: what a checkpoint of then stands for where it has no value.
OLD_DEFAULTS = {
    "vocab_size": 50257,
    "block_size": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "dropout": 0.0,
    "bias": True,
    "rotary": False,
    "bigram": False,
    "qkv_bias": None,
    "activation": "gelu",
    "tie_head": True,
    "head_bias": False,
    "init_scale": "residual",
    "source_vocab_size": 65,
    "share_embedding": False,
    "task": "text",
    "data": None,
    "tokenizer": None,
    "init_from": None,
    "out_dir": "out",
    "backend": "numpy",
    "dtype": "float32",
    "threads": None,
    "seed": 1337,
    "batch_size": 12,
    "sampler": "uniform",
    "gradient_accumulation_steps": 1,
    "recompute": False,
    "lora_rank": 0,
    "lora_alpha": None,
    "lora_dropout": 0.0,
    "lora_targets": None,
    "lora_rslora": False,
    "max_iters": 2000,
    "max_seconds": None,
    "max_passes": None,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "warmup_iters": 100,
    "lr_decay_iters": None,
    "lr_schedule": "cosine",
    "lr_decay_fraction": 0.4,
    "optimizer": "adamw",
    "momentum": 0.95,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "grad_clip": 1.0,
    "eval_interval": 250,
    "eval_tokens": 0,
    "log_interval": 10,
    "sample_tokens": 0,
    "tensorboard": False,
    "wandb": None,
    "report_every": 0,
    "shard_optimizer": False,
    "sum_dtype": "float32",
}


def rename(options):
    """Return a dict of options under today's names and values.

    A new name beside its old one wins; but `dtype` "float32", which `tf32` once qualified.
    """
    renamed = {name: value for name, value in options.items() if name not in ALIASES}
    for old in ALIASES.keys() & options.keys():
        new, values = ALIASES[old]
        value = options[old]
        value = values.get(value, value) if isinstance(value, str | bool) else value
        free = new not in renamed or (old, renamed[new]) == ("tf32", "float32")
        if value is not KEEP and free:
            renamed[new] = value
    return renamed


def stored(options, names):
    """Return the options in a checkpoint, whenever it was written, under today's names.

    Parameters
    ----------
    options : dict
    names : collection of str
        Today's options of the config; those that are missing get their values of old.
    """
    old = {name: value for name, value in OLD_DEFAULTS.items() if name in names}
    return {**old, **rename(options)}


def renamed_flags():
    """Return {old flag: its answer}."""
    told = {}
    for old, (new, values) in ALIASES.items():
        pairs = [f"{a} is {b}" for a, b in values.items() if isinstance(a, str)]
        flag = f"--{new.replace('_', '-')}"
        flag += " tf32" if old == "tf32" else ""
        told["--" + old.replace("_", "-")] = f"use {flag}{'; ' * bool(pairs)}{', '.join(pairs)}"
    return told


PRECISION = "use --backend cupy with --dtype bfloat16, --dtype float16 or --dtype tf32"
DEVICE = "use --backend cupy for the GPU, --backend numpy for the CPU"
WANDB, TENSORBOARD = "use --wandb PROJECT", "use --tensorboard"
PRETRAINED = "use --init-from MODEL to fine-tune one; --preset NAME sets the size of a new model"
PROCESSES = "one process trains on one GPU or one CPU; --threads N shards a batch over CPU cores"
LORA = "use --lora-rank N"
EPOCHS = "use --max-passes N"
BFLOAT16 = "use --backend cupy with --dtype bfloat16"

ANYWHERE = {  # flags of other programs, answered by every command that lacks them
    **dict.fromkeys(("--device", "--cuda", "--gpu", "--cpu", "--no-cuda", "--use-cpu"), DEVICE),
    **dict.fromkeys(("--compile", "--torch-compile"), "nothing is compiled: leave it out"),
}
TRAIN = {  # nanoGPT, transformers, Lightning, torchrun
    **ANYWHERE,
    **dict.fromkeys(("--amp", "--fp16", "--half", "--mixed-precision", "--precision"), PRECISION),
    **dict.fromkeys(("--bf16", "--bfloat16"), BFLOAT16),
    **dict.fromkeys(("--model", "--model-name-or-path", "--model-type"), PRETRAINED),
    **dict.fromkeys(("--dataset", "--dataset-name", "--train-file", "--input"), "use --data FILE"),
    **dict.fromkeys(("--epochs", "--num-epochs", "--max-epochs", "--num-train-epochs"), EPOCHS),
    **dict.fromkeys(("--steps", "--iters", "--max-steps", "--num-steps"), "use --max-iters N"),
    "--lr": "use --learning-rate X",
    "--lr-scheduler-type": "use --lr-schedule cosine or --lr-schedule wsd",
    "--decay-lr": "for a constant learning rate, give --min-lr the value of --learning-rate",
    **dict.fromkeys(("--warmup", "--warmup-steps"), "use --warmup-iters N"),
    "--wd": "use --weight-decay X",
    **dict.fromkeys(("--clip", "--max-grad-norm", "--gradient-clip-val"), "use --grad-clip X"),
    **dict.fromkeys(("--bs", "--per-device-train-batch-size"), "use --batch-size N"),
    **dict.fromkeys(
        ("--context", "--context-length", "--seq-len", "--max-seq-len", "--max-seq-length"),
        "use --block-size N",
    ),
    **dict.fromkeys(("--layers", "--num-layers", "--num-hidden-layers"), "use --n-layer N"),
    **dict.fromkeys(("--heads", "--num-heads", "--num-attention-heads"), "use --n-head N"),
    **dict.fromkeys(("--d-model", "--hidden-size", "--embed-dim"), "use --n-embd N"),
    "--ema": "no moving average of the weights is kept; best.safetensors is the best evaluation",
    "--use-rslora": "use --lora-rslora",
    "--target-modules": "use --lora-targets LAYER",
    **dict.fromkeys(("--lora", "--lora-r", "--use-lora"), LORA),
    **dict.fromkeys(("--wandb-log", "--wandb-project"), WANDB),
    "--wandb-run-name": "a run has the name of its folder, --out-dir",
    "--logging-dir": TENSORBOARD,
    "--report-to": f"{TENSORBOARD}, or --wandb PROJECT",
    **dict.fromkeys(
        ("--ddp", "--fsdp", "--deepspeed", "--gpus", "--num-gpus", "--devices"), PROCESSES
    ),
    **dict.fromkeys(("--nproc-per-node", "--local-rank", "--world-size"), PROCESSES),
    "--eval-iters": "use --eval-tokens N for the size of an evaluation, --eval-interval N for how "
    "often there is one",
    **dict.fromkeys(
        ("--eval-only", "--evaluate", "--do-eval"),
        "use `minigpt score --out-dir DIR --data FILE`; the validation losses of a run are in "
        "metrics.jsonl",
    ),
    "--always-save-checkpoint": "every evaluation saves last.safetensors anyway: leave it out",
    **dict.fromkeys(("--save-steps", "--save-interval"), "checkpoints are saved at evaluations: "
    "use --eval-interval N"),
    **dict.fromkeys(("--num-workers", "--workers"), "batches need no workers; --threads N sets the "
    "number of CPU threads"),
    **dict.fromkeys(("--output-dir", "--output", "--save-dir"), "use --out-dir DIR"),
    **dict.fromkeys(
        ("--resume-from-checkpoint", "--resume-from", "--checkpoint"),
        "use --resume, which continues from last.safetensors in --out-dir",
    ),
    **dict.fromkeys(
        ("--gradient-checkpointing", "--grad-checkpoint", "--activation-checkpointing"),
        "use --recompute",
    ),
    **renamed_flags(),
}  # fmt: skip
BEAMS = ("--num-beams", "--beams", "--beam-size")
SCORE = {
    **ANYWHERE,
    **dict.fromkeys(("--input", "--file", "--test-file", "--dataset"), "use --data FILE"),
    **dict.fromkeys(BEAMS, "use --beam N"),
    **dict.fromkeys(("--model", "--model-name-or-path"), "use --out-dir DIR or --checkpoint FILE"),
    **dict.fromkeys(
        ("--output", "--output-file"),
        "write the output to a file by `> FILE`; --json prints one JSON object",
    ),
    **dict.fromkeys(("--dtype", "--fp16", "--bf16", "--half"), "scores are computed in float32"),
}
SAMPLE = {
    **ANYWHERE,
    **dict.fromkeys(("--start", "--input", "--text"), "use --prompt TEXT"),
    **dict.fromkeys(("--length", "--max-length", "--max-tokens"), "use --max-new-tokens N"),
    **dict.fromkeys(BEAMS, "use --beam N"),
    **dict.fromkeys(("--num-return-sequences", "--n"), "use --num-samples N"),
    **dict.fromkeys(("--do-sample", "--greedy"), "--temperature 0 takes the likeliest token"),
    **dict.fromkeys(
        ("--init-from", "--model", "--model-name-or-path"),
        "use --out-dir DIR or --checkpoint FILE; pretrained weights are not loaded",
    ),
    **dict.fromkeys(("--dtype", "--fp16", "--bf16", "--half"), "samples are computed in float32"),
}
