"""One training step and one evaluation, over shards of the batch."""

import dataclasses

from minigpt.backend import to_device
from minigpt.data import random_batch, windows
from minigpt.gpt import loss_backward, loss_forward
from minigpt.ops.dropout import Rng
from minigpt.optim import AdamW, clip_scale, learning_rate
from minigpt.parallel import shard_slices, sum_gradients

EVAL_TOKENS = 512  # per forward pass of an evaluation: more is no faster


class Trainer:
    """The state of training and what changes it.

    Parameters
    ----------
    params : Params
    config : GPTConfig
    train : TrainConfig
    xp : module
        numpy or cupy, where `params` are.
    workers : Workers

    Attributes
    ----------
    optimizer : AdamW
    grads : Params
        Of the last step, before clipping.
    """

    def __init__(self, params, config, train, xp, workers):
        if train.lr_decay_iters is None:
            train = dataclasses.replace(train, lr_decay_iters=train.max_iters)
        self.params, self.config, self.train, self.xp = params, config, train, xp
        self.workers = workers
        self.grads = params.zeros_like()
        self.optimizer = AdamW(params, train.beta1, train.beta2, train.weight_decay)

    def gradients(self, ids, targets, rng, add=False):
        """Return (loss, norm) of a batch; its gradients go, or are added, to `grads`.

        Parameters
        ----------
        ids, targets : (B, T) int32 on the host
        rng : Rng
            The key of dropout for this batch.
        add : bool
            Whether this is a further batch of the same step.
        """
        count = targets.size * self.train.gradient_accumulation_steps

        def shard(rows):
            loss, cache = loss_forward(
                to_device(ids[rows], self.xp),
                to_device(targets[rows], self.xp),
                self.params.tree,
                self.config,
                rng._replace(row=rows.start),
                count,
            )
            return loss, loss_backward(1.0, cache)

        done = self.workers.map(shard, shard_slices(len(ids), self.workers.n))
        norm = sum_gradients(self.workers, [grads for _, grads in done], self.grads, add)
        return sum(float(loss) for loss, _ in done), norm

    def step(self, ids, step):
        """Train on the batches that belong to `step`, 0 at the first.

        Parameters
        ----------
        ids : (N,) int
            The training split.

        Returns
        -------
        loss : float
            Mean over the step's tokens, nats per token.
        norm : float
            Of the gradient, before clipping.
        lr : float
            The learning rate applied.
        """
        train, n = self.train, self.train.gradient_accumulation_steps
        loss = 0.0
        for i in range(n):
            batch = random_batch(
                ids, train.seed, step * n + i, train.batch_size, self.config.block_size
            )
            part, norm = self.gradients(*batch, Rng.of(train.seed, step, i), add=i > 0)
            loss += part
        lr = learning_rate(step, train)
        parts = self.workers.ranges if self.workers.n > 1 else None
        self.optimizer.step(self.grads.flat, lr, clip_scale(norm, train.grad_clip), parts)
        return loss, norm, lr

    def evaluate(self, ids):
        """Return the mean loss over every prediction of a split, nats per token.

        The windows are consecutive and do not overlap, so that the same weights always give the
        same number.
        """

        def total(batch):
            x, y = (to_device(array, self.xp) for array in batch)
            return float(loss_forward(x, y, self.params.tree, self.config)[0]) * y.size

        rows = max(1, EVAL_TOKENS // self.config.block_size)
        losses = self.workers.map(total, windows(ids, self.config.block_size, rows))
        return sum(losses) / (len(ids) - 1)
