"""One training step and one evaluation, over shards of the batch.

What a step runs for a GPT, in order: data/batches.random_batch, model/gpt.loss_and_gradients in
each thread on its shard, threads.sum_gradients, then the optimizer's step.
"""

import functools
import operator
import types

import numpy

from minigpt.backend import all_arrays_on, to_device, to_host
from minigpt.backend.cpu.crew import shard_slices
from minigpt.backend.devices import PRECISIONS, dtype_of, on_gpu
from minigpt.backend.places import Later, gradient_places, gradients_into
from minigpt.model.lora import join
from minigpt.ops.dropout import Rng
from minigpt.optim.clipping import GRAD_NORM, LOSS_SCALE, SKIPPED, STEPS
from minigpt.optim.schedule import learning_rate, weight_decay
from minigpt.params import Params, aligned
from minigpt.sample.evaluation import EVAL_TOKENS, GROUP, mean_loss
from minigpt.sample.tasks import task_of
from minigpt.train.config import make_optimizer, optimizer_parts
from minigpt.train.interrupt import NEVER, Stopped
from minigpt.train.limits import Limits
from minigpt.train.ranks import ALONE
from minigpt.train.threads import sum_gradients


class Trainer:
    """The state of training and what changes it.

    A step does not wait for a GPU: loss and norm stay there until they are read.

    Parameters
    ----------
    params : Params
        What is trained, float32: a model's weights, or with LoRA an adapter. With dtype float16 or
        bfloat16 the passes of a step see a copy of all weights in that precision.
    config : GPTConfig or Seq2SeqConfig
    train_config : TrainConfig
    xp : module
        numpy or cupy, where `params` are.
    workers : Workers
    frozen : Params, optional
        With LoRA the weights of the base, which stay as they are.
    ranks : Alone or Ranks
        The processes that share each batch.

    Attributes
    ----------
    optimizer : AdamW or Muon
    tree : tree of arrays
        What evaluations see: `params`, or the frozen weights with the adapter beside them.
    compute_tree : tree of arrays
        What the passes of a step see: `tree`, or its copy in 16 bits.
    grads : Params
        Of the last step, before clipping, times the loss scale.
    count : int
        Targets in the last step, without those that are ignored.
    evaluated : int
        Targets in the last evaluation.
    ahead : (int, int)
        How many batches and rows more a run has taken than steps of the present size would have.
    """

    def __init__(self, params, config, train_config, xp, workers, frozen=None, ranks=ALONE):
        self.params, self.config, self.train_config, self.xp = params, config, train_config, xp
        self.task, self.workers, self.count = task_of(config), workers, 0
        self.ahead, self.evaluated, self.ranks = (0, 0), 0, ranks
        self._sent = aligned(params.size + 1, params.flat.dtype, xp.zeros)
        self.grads = Params(params.shapes, xp, params.flat.dtype, self._sent[:-1])
        self.tree = self.compute_tree = self.whole_tree(params, frozen)
        dtype, half_params = dtype_of(PRECISIONS[train_config.dtype].compute_dtype), None
        if dtype != "float32":
            half_params = Params(params.shapes, xp, dtype)
            if frozen is not None:
                frozen = Params(frozen.shapes, xp, dtype, frozen.flat.astype(dtype))
            self.compute_tree = self.whole_tree(half_params, frozen)
        self.parts, self.half_params, own = None, half_params, None
        if train_config.shard_optimizer and ranks.size > 1:
            self.parts = optimizer_parts(params, train_config, ranks.size)
            own = self.parts[ranks.rank]
        self.optimizer = make_optimizer(params, train_config, half_params, own)
        seen = params if half_params is None else half_params
        self._places = gradient_places(seen.arrays, self.grads.arrays)

    def whole_tree(self, params, frozen):
        """Return the tree of all weights: of `params` alone, or with those that are frozen."""
        return params.tree if frozen is None else join(frozen, params, self.train_config.lora)

    def gradients(self, ids, targets, rng, count=None, add=False):
        """Return the loss of a batch; its gradients go, or are added, to `grads`.

        Of several ranks each takes its rows: loss and gradients are parts of a sum then.

        Parameters
        ----------
        ids, targets : (B, T) int32
        rng : Rng
            The key of dropout for this batch.
        count : int, optional
            Targets in all batches of the step; those of this one if left out.
        add : bool
            Whether this is a further batch of the same step.

        Returns
        -------
        loss : float, or () on a GPU
        """
        count, scale = count or self.task.count_targets(targets), self.optimizer.loss_scale
        shards = self.shards(len(ids))
        if not shards:  # no row for this rank
            if not add:
                self.grads.flat[...] = 0
            return 0.0
        later = Later([rows.stop - rows.start for rows in shards]) if len(shards) > 1 else None

        def shard(i):
            rows = shards[i]
            to_places = gradients_into(self._places, add, later, i)
            with all_arrays_on(self.xp), to_places as filled:
                loss, grads = self.task.loss_and_gradients(
                    to_device(ids[rows], self.xp),
                    to_device(targets[rows], self.xp),
                    self.compute_tree,
                    self.config,
                    rng._replace(row=rows.start),
                    count,
                    scale,
                    recompute=self.train_config.recompute,
                )
            return loss, grads, filled

        losses, trees, filled = zip(*self.workers.map(shard, range(len(shards))), strict=True)
        sum_gradients(self.workers, trees, self.grads, add, sum(filled, []), later)
        return sum_losses(map(as_float, losses))

    def shards(self, n):
        """Return the slices of n rows of a batch, one for each thread of this rank."""
        mine = self.ranks.rows(n)
        first, rows = mine.start, mine.stop - mine.start
        parts = shard_slices(rows, self.workers.n)
        return [slice(first + part.start, first + part.stop) for part in parts]

    def batches(self, split, step):
        """Return the batches that belong to `step`, as `step` takes them."""
        n, size = self.train_config.gradient_accumulation_steps, self.train_config.batch_size
        batches, rows = self.ahead
        return [
            self.task.batch(split, self.config, self.train_config, i + batches, i * size + rows)
            for i in range(step * n, (step + 1) * n)
        ]

    def step(self, split, step, progress=None, stop=NEVER):
        """Train on the batches that belong to `step`, 0 at the first.

        Parameters
        ----------
        split : (N,) int, or Pairs
            What is trained on.
        progress : float, optional
            Of the run, where it has a budget of time or passes: see schedule.learning_rate.
        stop : Interrupt or Never
            Its attribute `signal` is looked at before every batch. It is held from the update of
            the weights on, until the caller has counted the step and releases it.

        Returns
        -------
        loss : float, or () on a GPU
            Mean over the step's tokens, nats per token.
        norm : float, or () on a GPU
            Of the gradient, before clipping. On a GPU it is a view: it shows the norm of whichever
            step ran last.
        lr : float
            The learning rate.

        Raises
        ------
        Stopped
            If `signal` is not None; nothing has changed then.
        """
        train_config, batches = self.train_config, self.batches(split, step)
        self.count = sum(self.task.count_targets(targets) for _, targets in batches)
        losses = []
        for i, batch in enumerate(batches):
            if i:
                self.ranks.gather(place="a further batch")  # it brings signals
            if stop.signal is not None:
                raise Stopped
            rng = Rng.of(train_config.seed, step, i)
            losses.append(self.gradients(*batch, rng, self.count, add=i > 0))
        loss, lr = sum_losses(losses), learning_rate(step, train_config, progress)
        if train_config.weight_decay is None:
            self.optimizer.weight_decay = self.decay(split, step, progress)
        stop.hold()
        loss = self.sum_over_ranks(loss)
        if self.parts is None:
            self.optimizer.step(self.grads.flat, lr, self.workers.ranges, loss)
        else:
            self.step_own(lr, loss)
        return loss, as_float(self.optimizer.state[GRAD_NORM]), lr

    def decay(self, split, step, progress=None):
        """Return the weight decay of a step by how often the run will have met its data; see
        schedule.weight_decay, and `step` for the arguments.
        """
        train_config = self.train_config
        items, _ = self.task.eval_size(split, self.config)
        limits = Limits(train_config, items, self.ahead[1])
        if progress is None:
            met = limits.rows(train_config.max_iters)
        elif not limits.seconds:
            met = limits.rows(limits.steps)
        else:
            met = limits.rows(step) / progress if progress else 0.0
        return weight_decay(met / items, limits.step_rows / items, train_config.learning_rate)

    def sum_over_ranks(self, loss):
        """Bring the gradients of all ranks together; return the sum of their losses."""
        if self.ranks.size == 1:
            return loss
        self._sent[-1] = loss
        narrow = self.train_config.sum_dtype == "bfloat16"
        if self.parts is None and not narrow:
            self.ranks.sum(self._sent)  # one sum for both
        else:
            self.ranks.sum(self._sent[-1:])
            self.ranks.sum_gradients(self.grads.flat, self.parts, narrow)
        return as_float(self._sent[-1, ...].copy())

    def step_own(self, lr, loss):
        """Step this rank's part of the weights, and receive those of the others."""
        grads, ranges, weights = self.grads.flat, self.workers.ranges, self.params.flat
        self.optimizer.step(grads, lr, ranges, loss, self.ranks.total)
        self.ranks.spread(weights, self.parts)
        if self.half_params is not None:
            self.half_params.flat[...] = weights

    def whole_moments(self):
        """Return what has the moments m and v in the layout of the parameters, for a checkpoint.

        Where each rank has a part, the first receives them all, and the others have nothing. The
        buffer of the gradients carries them, which the next step fills again.
        """
        if self.parts is None:
            return self.optimizer
        found, flat = types.SimpleNamespace(), self.grads.flat
        for name in ("m", "v"):
            flat[self.optimizer.own] = getattr(self.optimizer, name).flat
            self.ranks.spread(flat, self.parts)
            if self.ranks.rank == 0:
                moment = Params(self.params.shapes, numpy, flat.dtype, to_host(flat).copy())
                setattr(found, name, moment)
        return found

    def progress(self):
        """Read from the optimizer how many steps were taken and skipped, and the loss scale."""
        state = to_host(self.optimizer.state).tolist()
        return int(state[STEPS]), int(state[SKIPPED]), state[LOSS_SCALE]

    def evaluate(self, split, which=None, map=None, show=None):
        """Return the mean loss over a split, or the items `which` of it, nats per token.

        A text is cut into consecutive windows that do not overlap, so that the same weights always
        give the same number. It is that of `tree`, whatever the precision of the steps. `map` and
        `show` are as in sample/evaluation.py.
        """
        batches = self.task.eval_batches(split, self.config, self.eval_rows(), which)
        map = map or self.workers.map
        task, tree, config = self.task, self.tree, self.config
        at_once = self.ranks.size * self.workers.n
        group = -(-GROUP // at_once) * at_once  # as many for each thread of each rank
        loss, self.evaluated = mean_loss(task, tree, config, batches, map, show, group)
        return loss

    def eval_rows(self):
        """Return how many rows an evaluation takes at a time: on a GPU what a step has room for.

        Where steps run in half precision, that is half of their rows.
        """
        if not on_gpu(self.params.flat):
            return max(1, EVAL_TOKENS // self.config.block_size)
        half = self.compute_tree is not self.tree
        rows = -(-self.train_config.batch_size // self.ranks.size)
        return max(1, rows // (2 if half else 1))


def sum_losses(numbers):
    """Return the sum of one number or more; for one on a GPU without a launch."""
    return functools.reduce(operator.add, numbers)


def as_float(x):
    """Return () x as a float where that is free; reading from a GPU would wait for it."""
    return x if on_gpu(x) else float(x)
