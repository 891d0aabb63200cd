"""nanoGPT's recipe for a CPU in torch, on tiny Shakespeare: python -m bench.lib.nanogpt_torch

nanoGPT, README, "I only have a macbook", with the model, optimizer and schedule of its train.py and
the batches of minigpt. Every --eval-interval steps it prints a line with the loss over the whole
validation split, as `python -m minigpt.train` does. Its only use is to be timed beside that.
"""

import argparse
import time

import numpy as np
import torch

from bench.lib import timing, torch_models
from minigpt.backend.cores import usable_cores
from minigpt.data.batches import eval_batches, random_batch
from minigpt.data.datasets import TextData
from minigpt.model.init import init_params
from minigpt.optim.schedule import learning_rate
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS


def validation_loss(model, split, block_size, rows=64):
    """Return the mean over every prediction of a split, nats per token."""
    total = count = 0
    with torch.no_grad():
        for x, y in eval_batches(split, block_size, rows):
            total += model(torch.from_numpy(x).long(), torch.from_numpy(y).long()).item() * y.size
            count += y.size
    return total / count


def losses(model, split, train_config, block_size):
    """Train a torch model; yield the loss of each step, once it is taken."""
    adamw = torch_models.optimizer(model, train_config, "fused")
    for step in range(train_config.max_iters):
        batch = random_batch(split, train_config.seed, step, train_config.batch_size, block_size)
        x, y = (torch.from_numpy(ids).long() for ids in batch)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, train_config)
        adamw.zero_grad(set_to_none=True)
        loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train_config.grad_clip)
        adamw.step()
        yield loss.item()


def main():
    """Train as the preset nanogpt-cpu does, but in torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--max-iters", type=int, default=2000)
    parser.add_argument("--eval-interval", type=int, default=250)
    parser.add_argument("--data", help="as in minigpt.train")
    args = parser.parse_args()
    timing.torch_on(usable_cores())
    values = {"max_iters": args.max_iters, "lr_decay_iters": args.max_iters, "data": args.data}
    values = PRESETS["nanogpt-cpu"] | values | {"seed": args.seed}
    data = TextData(args.data)
    config, train_config = resolve(values, data.sizes)
    model = torch_models.GPT(config)
    model.load(init_params(config, args.seed, np).tree)
    start = time.perf_counter()
    for step, _ in enumerate(losses(model, data.train, train_config, config.block_size), 1):
        if step % args.eval_interval == 0 or step == train_config.max_iters:
            found = validation_loss(model, data.val, config.block_size)
            seconds = time.perf_counter() - start
            print(f"step {step:>6,}   validation {found:.4f}   {seconds:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
