"""A step of fine-tuning GPT-2: minigpt's, and transformers' with peft's adapter in torch.

Weights are random, of GPT-2's shape. Each function takes the arguments of bench/finetune.py and
returns what a step takes in this process, which does nothing else.
"""

import dataclasses
import statistics
import time

import numpy as np

from bench.lib import timing
from minigpt.model import count_parameters
from minigpt.model.init import init_params
from minigpt.model.lora import Lora, init_adapter
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS
from minigpt.train.step import Trainer
from minigpt.train.threads import Workers

RANK, ALPHA = 8, 16
GPT2 = {name: PRESETS["gpt2"][name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
SHORT = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 32}
WAYS = "full", "recompute", "lora", "lora recompute"
MODES = *WAYS, "torch", *(f"torch {way}" for way in WAYS[1:])
OTHERS = "torch", "transformers", "peft"  # what modes of torch need


def sizes_of(args):
    """Return (sizes of the model, tokens of a sequence)."""
    return (SHORT, 16) if args.short else (GPT2, args.block_size)


def minigpt_step(args, lora, recompute):
    """Return what a step of minigpt takes."""
    sizes, T = sizes_of(args)
    given = {**PRESETS["gpt2"], **PRESETS["finetune"], **sizes, "threads": args.threads}
    given |= {"block_size": T, "batch_size": args.batch_size, "gradient_accumulation_steps": 1}
    config, train_config = resolve({**given, "recompute": recompute}, sizes)
    params, frozen = init_params(config, 1, np), None
    if lora:
        params, frozen = init_adapter(config, Lora(RANK, ALPHA), 1, np), params
        own = {"lora_rank": RANK, "lora_alpha": ALPHA, "init_from": "memory"}
        train_config = dataclasses.replace(train_config, **own)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 40 * T).astype(np.uint16)
    with Workers(train_config.workers()) as workers:
        trainer = Trainer(params, config, train_config, np, workers, frozen)
        times = timed(lambda step: trainer.step(ids, step), args.steps)
    return times | {"trained": trainer.params.size, "parameters": count_parameters(config)}


def torch_step(args, lora, recompute):
    """Return what a step of transformers takes, with peft's adapter or without."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(args.threads)
    sizes, T = sizes_of(args)
    drops = {f"{where}_pdrop": 0.0 for where in ("resid", "embd", "attn")}
    config = GPT2Config(**sizes, n_positions=T, use_cache=False, **drops)
    model = GPT2LMHeadModel(config).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=["c_attn"], fan_in_fan_out=True
        )
        model = get_peft_model(model, adapter)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-5, fused=True)
    ids = torch.randint(0, sizes["vocab_size"], (args.batch_size, T))

    def step(i):
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    times = timed(step, args.steps)
    n = sum(p.numel() for p in model.parameters())
    return times | {"trained": sum(p.numel() for p in trained), "parameters": n}


def timed(step, n):
    """Take a step that does not count, and n that do; return their median and the memory's peak."""
    seconds = []
    for i in range(n + 1):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds[1:]), "peak": timing.resident_peak()}


def step_of(mode, args):
    """Return what a step takes that is one of MODES."""
    words = mode.split()
    step = torch_step if "torch" in words else minigpt_step
    return step(args, "lora" in words, "recompute" in words)
