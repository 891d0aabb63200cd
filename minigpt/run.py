"""A training run in its folder: what it is, and how it is begun, saved and taken up again."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from minigpt import UserError
from minigpt.checkpoint import load, save
from minigpt.corpus import load_text
from minigpt.data import check_length, split
from minigpt.gpt import init_params
from minigpt.recipe import TrainConfig, configs
from minigpt.tokenizer import CharTokenizer
from minigpt.trainer import Trainer

METRICS, BEST, LAST, PICTURE = "metrics.jsonl", "best.safetensors", "last.safetensors", "loss.png"
PROGRESS = ("step", "tokens", "seconds", "best_loss", "best_step", "val_loss")


class Run:
    """A run in its folder: what is trained, on what, and how far it has come.

    Attributes
    ----------
    step, tokens : int
        Steps done, tokens seen.
    seconds : float
        Spent on them, evaluations included, over all resumptions.
    best_loss : float or None
        Lowest validation loss so far, nats per token, at `best_step`.
    """

    def __init__(self, config, train, tokenizer, text, name):
        self.config, self.train, self.tokenizer, self.name = config, train, tokenizer, name
        self.text_sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self.folder = Path(train.out_dir)
        self.train_ids, self.val_ids = split(tokenizer.encode_array(text))
        check_length(self.train_ids, self.val_ids, config.block_size)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.best_loss, self.best_step, self.val_loss = None, None, None
        self.trainer = None

    def start(self, workers, xp, checkpoint=None):
        """Make the weights and the optimizer, or take them over from a checkpoint."""
        if checkpoint is None:
            params = init_params(self.config, self.train.seed, xp)
        else:
            params = checkpoint.params
        self.trainer = Trainer(params, self.config, self.train, xp, workers)
        if checkpoint is not None:
            for name, moment in checkpoint.optimizer_arrays.items():
                getattr(self.trainer.optimizer, name).flat[...] = moment.flat
            for key in PROGRESS:
                setattr(self, key, checkpoint.state[key])
            self.trainer.optimizer.step_count = self.step

    def state(self):
        """Return what a checkpoint keeps beside weights and moments."""
        return {
            **{key: getattr(self, key) for key in PROGRESS},
            "train": dataclasses.asdict(self.train),
            "text": self.name,
            "text_sha256": self.text_sha256,
        }

    def save(self, name, optimizer=None):
        """Write a checkpoint of this moment into the run's folder."""
        save(
            self.folder / name,
            self.trainer.params,
            self.config,
            tokenizer=self.tokenizer,
            state=self.state(),
            optimizer=optimizer,
        )

    def evaluate(self):
        """Take the validation loss; write the last checkpoint, and the best if it is."""
        self.val_loss = self.trainer.evaluate(self.val_ids)
        if self.best_loss is None or self.val_loss < self.best_loss:
            self.best_loss, self.best_step = self.val_loss, self.step
            self.save(BEST)

    def save_last(self):
        """Write the checkpoint that --resume goes on from."""
        self.save(LAST, self.trainer.optimizer)


def prepare_folder(folder, overwrite):
    """Make the folder of a new run, or raise a UserError if it holds another one."""
    files = [folder / name for name in (METRICS, BEST, LAST, PICTURE)]
    if any(file.exists() for file in files):
        if not overwrite:
            raise UserError(
                f"--out-dir {folder} holds another run: go on with it by --resume, lose it by "
                "--overwrite, or name another folder by --out-dir"
            )
        for file in files:
            file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def keep_metrics(path, step):
    """Cut from a resumed run's metrics what came after the checkpoint, and half-written lines."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def begun(values):
    """Return the Run that a dict of options describes, in a folder of its own."""
    text, name = load_text(values.get("data"))
    tokenizer = CharTokenizer.from_text(text)
    config, train = configs(values, tokenizer.vocab_size)
    return Run(config, train, tokenizer, text, name)


def resumed(given):
    """Return (Run, checkpoint) of the run in --out-dir, with the flags given beside --resume."""
    folder = Path(given.get("out_dir", TrainConfig.out_dir))
    if not (folder / LAST).exists():
        raise UserError(f"--resume: {folder / LAST} does not exist; leave out --resume to begin")
    checkpoint = load(folder / LAST)
    stored, state = dataclasses.asdict(checkpoint.config), checkpoint.state
    for name, value in given.items():
        if name in stored and name != "dropout" and value != stored[name]:
            raise UserError(
                f"--resume: {name} is {stored[name]} in {folder}; it is part of the model and "
                f"cannot become {value}: leave out --{name.replace('_', '-')}"
            )
    if checkpoint.optimizer_arrays is None or "train" not in state:
        raise UserError(f"--resume: {folder / LAST} holds no optimizer state to go on with")
    values = {**state["train"], **stored, **given, "out_dir": str(folder)}
    config, train = configs(values, checkpoint.tokenizer.vocab_size)
    text, name = load_text(train.data)
    run = Run(config, train, checkpoint.tokenizer, text, name)
    if run.text_sha256 != state["text_sha256"] and "data" not in given:
        raise UserError(
            f"--resume: the run was trained on {state['text']}, but the text is now another "
            f"({name}); bring the old one back, or name the new one by --data"
        )
    if state["step"] >= train.max_iters:
        raise UserError(
            f"--resume: the run in {folder} is complete, with {state['step']} of "
            f"{train.max_iters} steps; give a larger --max-iters to go on"
        )
    return run, checkpoint
