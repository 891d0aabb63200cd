"""One training step and one evaluation, over shards of the batch."""

import dataclasses

from minigpt.backend import to_device
from minigpt.models import model_of
from minigpt.ops.dropout import Rng
from minigpt.optim import AdamW, clip_scale, learning_rate
from minigpt.parallel import shard_slices, sum_gradients

EVAL_TOKENS = 512  # per forward pass of an evaluation: more is no faster


class Trainer:
    """The state of training and what changes it.

    Parameters
    ----------
    params : Params
    config : GPTConfig or Seq2SeqConfig
    train : TrainConfig
    xp : module
        numpy or cupy, where `params` are.
    workers : Workers

    Attributes
    ----------
    optimizer : AdamW
    grads : Params
        Of the last step, before clipping.
    count : int
        Targets in the last step, without those that are ignored.
    """

    def __init__(self, params, config, train, xp, workers):
        if train.lr_decay_iters is None:
            train = dataclasses.replace(train, lr_decay_iters=train.max_iters)
        self.params, self.config, self.train, self.xp = params, config, train, xp
        self.model, self.workers, self.count = model_of(config), workers, 0
        self.grads = params.zeros_like()
        self.optimizer = AdamW(params, train.beta1, train.beta2, train.weight_decay)

    def gradients(self, ids, targets, rng, count=None, add=False):
        """Return (loss, norm) of a batch; its gradients go, or are added, to `grads`.

        Parameters
        ----------
        ids, targets : (B, T) int32 on the host
        rng : Rng
            The key of dropout for this batch.
        count : int, optional
            Targets in all batches of the step; those of this one if left out.
        add : bool
            Whether this is a further batch of the same step.
        """
        count = count or counted(targets)

        def shard(rows):
            loss, cache = self.model.loss_forward(
                to_device(ids[rows], self.xp),
                to_device(targets[rows], self.xp),
                self.params.tree,
                self.config,
                rng._replace(row=rows.start),
                count,
            )
            return loss, self.model.loss_backward(1.0, cache)

        done = self.workers.map(shard, shard_slices(len(ids), self.workers.n))
        norm = sum_gradients(self.workers, [grads for _, grads in done], self.grads, add)
        return sum(float(loss) for loss, _ in done), norm

    def step(self, split, step):
        """Train on the batches that belong to `step`, 0 at the first.

        Parameters
        ----------
        split : (N,) int, or Pairs
            What is trained on.

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
        size = train.batch_size, self.config.block_size
        batches = [
            self.model.random_batch(split, train.seed, step * n + i, *size) for i in range(n)
        ]
        self.count = sum(counted(targets) for _, targets in batches)
        loss = 0.0
        for i, batch in enumerate(batches):
            rng = Rng.of(train.seed, step, i)
            part, norm = self.gradients(*batch, rng, self.count, add=i > 0)
            loss += part
        lr = learning_rate(step, train)
        parts = self.workers.ranges if self.workers.n > 1 else None
        self.optimizer.step(self.grads.flat, lr, clip_scale(norm, train.grad_clip), parts)
        return loss, norm, lr

    def evaluate(self, split):
        """Return the mean loss over every prediction of a split, nats per token.

        A text is cut into consecutive windows that do not overlap, so that the same weights always
        give the same number.
        """

        def total(batch):
            x, y = (to_device(array, self.xp) for array in batch)
            count = counted(batch[1])
            loss, _ = self.model.loss_forward(x, y, self.params.tree, self.config, count=count)
            return float(loss) * count, count

        block_size = self.config.block_size
        rows = max(1, EVAL_TOKENS // block_size)
        totals = self.workers.map(total, self.model.windows(split, block_size, rows))
        losses, counts = zip(*totals, strict=True)
        return sum(losses) / sum(counts)


def counted(targets):
    """Return how many targets are not to be ignored."""
    return int((targets >= 0).sum())
