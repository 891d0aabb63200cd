"""A training run in its folder: what it consists of, how it advances and is saved."""

import dataclasses
import hashlib
import math
import time
from pathlib import Path

from minigpt.backend import to_device, to_host
from minigpt.backend.cores import note_on_threads
from minigpt.backend.devices import check_precision, load_backend
from minigpt.cli import plural
from minigpt.errors import SMALLER_MODEL, UserError, memory_for
from minigpt.files import BEST, LAST
from minigpt.model.base import cropped
from minigpt.model.checkpoint import moved, save
from minigpt.model.init import init_params
from minigpt.model.lora import init_adapter
from minigpt.optim.clipping import GRAD_SCALE
from minigpt.sample.tasks import task_of
from minigpt.train.clock import Clock
from minigpt.train.interrupt import NEVER
from minigpt.train.limits import Limits, describe_passes
from minigpt.train.means import LossMean
from minigpt.train.memory import smaller_step
from minigpt.train.nonfinite import Diverged, Skips, WeightsDiffer, first_in_step
from minigpt.train.page import Pages
from minigpt.train.ranks import ALONE, RankFailed
from minigpt.train.run_dir import NoFiles, RunFiles
from minigpt.train.samples import Samples
from minigpt.train.state import optimizer_numbers, taken_ahead
from minigpt.train.step import Trainer
from minigpt.train.validation import Validation

FEW = 10  # steps, which are too few for a warm-up and a decay
CUT_SHORT = 0.3  # of the way down: where a learning rate ends that has missed its decay
OVERHEAD_S = 1.5  # of a command before it reads its data and after its last checkpoint, about


class Run:
    """A run in its folder: what is trained, on what, and how far it has come.

    Parameters
    ----------
    config : GPTConfig or Seq2SeqConfig
    train_config : TrainConfig
    data : TextData or PairData
    state : RunState
    checkpoint : Checkpoint, optional
        Of the run that is resumed.
    began : float, optional
        Reading of time.perf_counter() when the command began.
    base : Checkpoint, optional
        Of the model that a new run begins from; with LoRA that of a run that is resumed, too.
    adapted : Base, optional
        With LoRA, where that model is.
    ranks : Alone or Ranks
        The processes that train it; the first writes its files.

    Attributes
    ----------
    trainer : Trainer
        From `start` on.
    limits : Limits
        Where it ends.
    losses : LossMean
    lr, grad_norm : float
        Of the last step; the norm is that before clipping, and stays on a GPU until it is read.
    evaluated, logged : bool
        Whether the last step is evaluated, and goes into the metrics.
    skips : Skips
        Steps that changed nothing, as far as they have been read.
    saved : (int, bool) or None
        Of the checkpoint that --resume goes on from: its step, and whether an evaluation is due.
    saved_s : float
        The run's seconds at that moment.
    files : RunFiles
    whole_loss : float or None
        At the end of a run: the loss over the whole validation split, if evaluations take a part.
    val_bpb : float or None
        Bits per byte of the last evaluation, in the end of the whole split; None before the first,
        or where the targets have no bytes.
    sample : str or list, or None
        Of the last evaluation, as from Samples.take.
    notes : list of str
        Lines for the user, which whoever prints them takes out.
    """

    def __init__(
        self,
        config,
        train_config,
        data,
        state,
        checkpoint=None,
        began=None,
        base=None,
        adapted=None,
        ranks=ALONE,
    ):
        self.config, self.train_config, self.data, self.state = config, train_config, data, state
        self.task, self.folder = task_of(config), Path(train_config.out_dir)
        data.check(config.block_size)
        self.checkpoint, self.base, self.trainer = checkpoint, base, None
        self.adapted, self.ranks = adapted, ranks
        self.losses = LossMean(state.loss_sum, state.loss_count)
        self.grad_norm, self.lr, self.evaluated, self.logged = 0.0, 0.0, False, False
        self.skips = Skips(state.skips_in_a_row)
        self.saved = None if checkpoint is None else (state.step, bool(state.due))
        self.saved_s = state.seconds
        began = ranks.first(lambda: time.perf_counter() if began is None else began)
        self.clock = Clock(state.seconds, began, ranks.first)
        state.data_rows = self.task.eval_size(data.train, config)[0]
        ahead = taken_ahead(state, train_config)[1]
        self.limits = Limits(train_config, state.data_rows, ahead)
        size = self.task.eval_size(data.val, config)
        self.validation = Validation(*size, train_config, state.eval_targets)
        if self.task.measure:
            self.validation.measure_s = self.validation.share_s or 0.0
        self.reserve_s, self.save_s, self.unread = 0.0, 0.0, 0
        self.whole_loss = self.val_bpb = self.sample = None
        self.samples = Samples(train_config.sample_tokens)
        self.pages = Pages(train_config, ranks)
        self.notes = [*data.notes, *note_on_threads(train_config.workers())]
        cut = None if checkpoint is None else state.step - bool(state.due)
        self.files = NoFiles() if ranks.rank else RunFiles(self.folder, cut, self.notes)

    @memory_for("while the model was made", SMALLER_MODEL)
    def start(self, workers):
        """Make the weights and the optimizer, or take them over from a checkpoint."""
        xp, (checkpoint, self.checkpoint) = backend_of(self.train_config), (self.checkpoint, None)
        base, self.base = self.base, None
        self.data.move(xp)
        params, frozen = self.first_weights(checkpoint, base, xp)
        made = params, self.config, self.train_config, xp, workers, frozen, self.ranks
        self.trainer = Trainer(*made)
        if checkpoint is not None:
            optimizer = self.trainer.optimizer
            for name, moment in checkpoint.optimizer_arrays.items():
                getattr(optimizer, name).flat[...] = to_device(moment.flat[optimizer.own], xp)
            optimizer.restore(optimizer_numbers(self.state, self.train_config))
            optimizer.step_count = self.state.step
            self.state.ahead = taken_ahead(self.state, self.train_config)
            self.state.train = dataclasses.asdict(self.train_config)  # until here, the one before
        self.trainer.ahead = self.state.ahead
        self.skips.begin(self.trainer.progress())
        check_same_weights(self.trainer, self.state.step, frozen)
        self.count_seconds(self.clock.lap())

    def first_weights(self, checkpoint, base, xp):
        """Return what is trained, as Params, and the weights that are frozen or None."""
        config, seed, lora = self.config, self.train_config.seed, self.train_config.lora
        params = None if base is None else moved(cropped(base.params, config), xp)
        frozen = None if lora is None else params
        if checkpoint is not None:
            params = moved(checkpoint.params, xp)
        elif lora is not None:
            params = init_adapter(config, lora, seed, xp)
        elif base is None:
            params = init_params(config, seed, xp)
        return params, frozen

    def advance(self, stop=NEVER):
        """Train one step, and decide whether it is the last, logged, evaluated.

        Parameters
        ----------
        stop : Interrupt or Never
            As in `Trainer.step`.

        Returns
        -------
        numbers : dict or None
            As from `read`; None where the step is not read, since asking a GPU is to wait for it.
        """
        state, train_config = self.state, self.train_config
        if state.step % train_config.log_interval == 0:
            self.losses.clear()
        progress = self.limits.schedule(state.step, state.seconds, self.reserve_s)
        with memory_for("in a training step", lambda: smaller_step(train_config)):
            step = self.trainer.step(self.data.train, state.step, progress, stop)
        loss, self.grad_norm, self.lr = step
        self.losses.add(loss)
        state.step, state.tokens = state.step + 1, state.tokens + self.trainer.count
        self.unread += 1
        state.seconds = self.clock.peek()
        if train_config.backend != "numpy" and not self.decide():
            return None
        numbers = self.read()
        self.decide()  # on a GPU once more: the clock may have left out a pause
        if state.over and not self.limits.by_steps:
            self.check_decay()
        state.due = numbers if self.evaluated else None
        return numbers

    def decide(self):
        """Decide whether the last step is the last of the run, evaluated, logged; return logged."""
        state, train_config = self.state, self.train_config
        between = state.step % train_config.eval_interval == 0
        if train_config.max_seconds:
            self.reserve_s = self.seconds_to_come()
            if between:  # unless that at the end follows at once
                left_s = train_config.max_seconds - self.reserve_s - state.seconds
                between = left_s > self.validation.seconds(self.train_rate)[0]
        state.over = self.progress >= 1
        self.evaluated = between or state.over
        self.logged = self.evaluated or state.step % train_config.log_interval == 0
        return self.logged

    def check_decay(self):
        """Note at the end that time or passes were enough for few steps, or too few to decay."""
        config, limits, step = self.train_config, self.limits, self.state.step
        down = config.learning_rate - config.min_lr
        high = config.lr_decay_fraction and self.lr - config.min_lr > CUT_SHORT * down
        steps = plural(step, "step")
        if limits.used_up(step):  # with all of the decay that they have room for
            if step < FEW:
                self.notes.append(
                    f"{describe_passes(limits.passes)} made {steps} only; give a larger "
                    "--max-passes or a smaller --batch-size"
                )
        elif high or step < FEW:
            self.notes.append(
                f"the time was enough for {steps} only, the last at a learning rate of "
                f"{self.lr:.2g}; give a longer --max-seconds or a smaller model"
            )

    def count_seconds(self, pause_s):
        """Bring the run's seconds up to date after a lap of the clock, and note a pause."""
        self.state.seconds = self.clock.seconds
        if pause_s:
            self.notes.append(f"a pause of {pause_s:.1f} s, which does not count as training time")

    def read(self):
        """Read what the steps have left on the GPU; it waits for them.

        Returns
        -------
        numbers : dict
            Of the last step: learning_rate, grad_norm, weight_decay where it is found on the way
            and, in float16, what became of the loss scale. The norm of a step that was skipped is
            None.

        Raises
        ------
        UserError
            If too many steps in a row were skipped.
        """
        state, train_config = self.state, self.train_config
        loss, self.grad_norm = self.losses.read(), float(self.grad_norm)
        steps, self.unread = self.unread, 0
        self.count_seconds(self.clock.steps(steps) if steps else self.clock.lap())
        state.loss_sum, state.loss_count = self.losses.finite
        reason = self.skips.count(self.trainer.progress(), state.step, loss, self.grad_norm)
        state.skips_in_a_row = self.skips.in_a_row
        if reason:
            first = first_in_step(self.trainer, self.data.train, state.step - 1)
            raise self.diverged(reason, first)
        numbers = {
            "learning_rate": self.lr,
            "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None,
        }
        if train_config.weight_decay is None:
            numbers["weight_decay"] = self.trainer.optimizer.weight_decay
        if train_config.dtype == "float16":
            numbers |= {"loss_scale": self.skips.scale, "skipped_steps": self.skips.skipped}
        return numbers

    def diverged(self, reason, first):
        """Return the UserError that ends a run: why, where it comes from, and what to do."""
        again = "train again"
        if self.saved is not None:
            again = f"resume from {self.folder / LAST} (step {self.saved[0]}) by --resume"
        return Diverged(
            f"training has diverged: {reason}; first non-finite tensor: {first}; {again} with a "
            "lower --learning-rate"
        )

    @property
    def progress(self):
        """The fraction of the run that is over: 0 to 1, at 1 it is complete."""
        return self.limits.progress(self.state.step, self.state.seconds, self.reserve_s)

    @property
    def place(self):
        """How far the run has come, in words."""
        return self.limits.place(self.state.step, self.state.seconds)

    @property
    def train_rate(self):
        """Targets per second of training, by the last steps."""
        return max(self.trainer.count, 1) / max(self.clock.step_s or self.clock.peek(), 1e-9)

    def seconds_to_come(self):
        """Return what a run needs time for after this step: one more, evaluation and the end."""
        part_s, rest_s = self.validation.seconds(self.train_rate)
        end_s = self.save_s + self.pages.reserve_s
        return OVERHEAD_S + (self.clock.step_s or 0.0) + part_s + rest_s + end_s

    @memory_for("while a checkpoint was saved", SMALLER_MODEL)
    def save(self, name, optimizer=None):
        """Write a checkpoint of this moment, which must have been read, into the run's folder."""
        if name == BEST and self.ranks.first(lambda: self.files.old):
            self.save_last()  # what is there of an old run goes when this is in place
        self.ranks.first(self.files.begin)
        self.count_seconds(self.clock.lap())
        start = self.clock.seconds
        self.state.optimizer = to_host(self.trainer.optimizer.state).tolist()[:GRAD_SCALE]

        def write():
            save(
                self.folder / name,
                self.trainer.params,
                self.config,
                tokenizer=self.data.tokenizer,
                state=dataclasses.asdict(self.state),
                optimizer=optimizer,
                lora=self.train_config.lora,
                base=self.adapted,
            )

        self.ranks.first(write)
        self.count_seconds(self.clock.lap())
        self.save_s = self.clock.seconds - start

    def save_last(self):
        """Write the checkpoint that --resume goes on from."""
        self.files.write_lines()
        self.save(LAST, self.trainer.whole_moments())
        self.ranks.first(self.files.replace_old)
        self.saved, self.saved_s = (self.state.step, bool(self.state.due)), self.state.seconds

    def try_to_save(self, name):
        """Write a checkpoint amid the run; return whether it is written, and note it if not."""
        try:
            self.save_last() if name == LAST else self.save(name)
        except RankFailed:
            raise  # training does not go on
        except UserError as error:
            self.notes.append(f"{error}; training goes on")
            return False
        return True


def check_same_weights(trainer, step, *others):
    """Raise WeightsDiffer, at all ranks, unless each has the same weights to the bit.

    Parameters
    ----------
    trainer : Trainer
    step : int
        Steps done.
    *others : Params or None
        Further weights, such as those that are frozen.
    """
    ranks = trainer.ranks
    if ranks.size == 1:
        return
    digest = hashlib.blake2b(digest_size=16)
    for params in (trainer.params, *filter(None, others)):
        digest.update(to_host(params.flat).data)
    found = ranks.gather(digest.hexdigest(), "comparison of weights")
    odd = next((rank for rank, other in enumerate(found) if other != found[0]), None)
    if odd is not None:
        what = f"after step {step:,}" if step else "that training begins with"
        raise WeightsDiffer(
            f"the weights {what} are not the same at ranks 0 and {odd}: use the same machines, "
            "libraries and files for all; resume from a checkpoint before by --resume"
        )


def backend_of(train_config):
    """Return the array module of a run, or raise a UserError if it cannot train as is asked."""
    xp = load_backend(train_config.backend)
    check_precision(train_config.dtype, xp)
    return xp
