"""What a run costs, known before it starts: parameters, floating-point operations, time, memory."""

import dataclasses
import math

from minigpt.cli import plural
from minigpt.model import count_parameters, describe_model
from minigpt.model.flops import count_flops
from minigpt.model.lora import count_adapter
from minigpt.params import leaves
from minigpt.sample.tasks import task_of
from minigpt.train.limits import Limits
from minigpt.train.memory import memory, run_peak


def flops_per_step(config, train_config):
    """Return floating-point operations of one step, forward and backward: see count_flops.

    Of an encoder-decoder it is what a step can take at most: sources and targets of block_size
    tokens.
    """
    rows, T = train_config.batch_size * train_config.gradient_accumulation_steps, config.block_size
    return count_flops(config, rows, T, T, train_config.recompute, train_config.lora)


def step_seconds(config, flops, rate):
    """Return how long a step takes on a CPU, about.

    The products of a step run at some three quarters of the rate of large ones, and the narrower a
    model is, the more of the time goes into all else. The two numbers are fitted to the steps of
    bench/README.md, which they meet within a third.

    Parameters
    ----------
    flops : int
        Of the step.
    rate : float
        Of large products, in floating-point operations per second.
    """
    return flops / rate * (1.25 + 150 / config.n_embd)


def human(number, unit=""):
    """Return a number with three digits and a prefix, k to E."""
    scales = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
    for prefix, scale in scales.items():
        if abs(number) >= 0.9995 * scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def describe_trained(config, lora):
    """Return in words how much of a model and its adapter is trained."""
    trained = count_adapter(config, lora)
    total = count_parameters(config) + trained
    return (
        f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2g} %), in "
        f"adapters of rank {lora.rank}"
    )


def duration(seconds):
    """Return a length of time in the unit that it is usually given in."""
    units = {"years": 31557600, "days": 86400, "hours": 3600, "minutes": 60, "s": 1}
    unit, size = next((u for u in units.items() if seconds >= 1.5 * u[1]), ("ms", 1e-3))
    number = seconds / size
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"


def describe_memory(parts, train_config, loaded, load_peak):
    """Return {name: text} of the memory of a run."""
    if train_config.backend != "numpy":
        rows = {"memory of the GPU": f"about {human(sum(parts.values()), 'B')}"}
    else:
        total = run_peak(parts, loaded, load_peak)
        threads = plural(train_config.workers(), "thread")
        rows = {"memory": f"about {human(total, 'B')} in all, on {threads}"}
        rows["  libraries and data"] = human(loaded, "B")
    return rows | {f"  {part}": human(value, "B") for part, value in parts.items()}


def run_time(limits, step_s):
    """Return in words how long the steps of a run take, or how many of them its time allows."""
    fitting = limits.seconds / step_s if limits.seconds else math.inf
    if limits.steps is not None and limits.steps <= fitting:
        return f", {duration(limits.steps * step_s)} of training"
    return f", some {fitting:,.0f} steps in all" if limits.seconds else ""


def describe(
    config, train_config, loaded, load_peak=0, lengths=None, rate=None, processes=1, limits=None
):
    """Return the lines that --dry-run prints.

    Parameters
    ----------
    loaded, load_peak : int
        As of memory.run_peak.
    lengths : optional
        As of memory.memory.
    rate : float, optional
        Of products on this machine, in FLOP/s, for the time that the run takes.
    processes : int
        That share each batch: time and memory are those of one with the most rows.
    limits : Limits, optional
        Those of the run, where its data are known.
    """
    limits = limits or Limits(train_config)
    n, per_step = count_parameters(config), flops_per_step(config, train_config)
    sequences = train_config.batch_size * train_config.gradient_accumulation_steps
    tokens, steps = sequences * config.block_size, limits.steps
    named = leaves(config.shapes())
    positions = sum(math.prod(shape) for name, shape in named if name.endswith("wpe"))
    bracket = f" ({n - positions:,} without positions)" if positions else ""
    lora = train_config.lora
    of_lora = {} if lora is None else {"LoRA": describe_trained(config, lora)}
    length = limits.length()
    if steps is not None:
        length += f", {steps * tokens:,} tokens, {human(steps * per_step, 'FLOP')}"
    elif not limits.passes:
        length += ", as many steps as they allow"
    rows = {
        "model": f"{describe_model(config)}, vocabulary {config.vocab_size}",
        "parameters": f"{n:,}{bracket}",
        **of_lora,
        "a step": f"{sequences} x {config.block_size} = {tokens:,} tokens{task_of(config).sides}, "
        f"{human(per_step, 'FLOP')}",
        "the run": length,
    }
    share = dataclasses.replace(train_config, batch_size=-(-train_config.batch_size // processes))
    parts = memory(config, share, lengths)
    if train_config.shard_optimizer:
        parts["optimizer"] = -(-parts["optimizer"] // processes)
    if processes > 1:
        rows["each of the processes"] = f"{share.batch_size} sequences at most, and:"
    if rate:
        step_s = step_seconds(config, flops_per_step(config, share), rate)
        rows["time on this machine"] = f"about {duration(step_s)} a step{run_time(limits, step_s)}"
    rows |= describe_memory(parts, train_config, loaded, load_peak)
    return [f"{name:<27}{value}" for name, value in rows.items()]
