"""Tokens per second, one sequence and eight: python bench/sample.py

minigpt with its KV cache; torch without one, recomputing the whole context for every token as
nanoGPT does; and GPT2LMHeadModel of transformers with its KV cache, where that is installed. All
have the same weights, prompt and number of tokens, and draw from the full distribution. Reading
the prompt is part of the time. minigpt has as many threads as torch, as in `minigpt sample`, and
BLAS one in each of them. Before anything is timed, the logits after a prompt are compared;
a difference ends with exit code 1. With --backend cupy all run on the GPU, and torch has a cache,
too.
"""

import dataclasses
import functools
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import threadpoolctl

from bench.lib import rates, report, timing
from minigpt import cli
from minigpt.backend import to_device
from minigpt.backend.blas import blas_threads
from minigpt.backend.devices import check_precision, load_backend
from minigpt.errors import UserError
from minigpt.model.init import init_params
from minigpt.params import Params, leaves
from minigpt.sample.generate import generate, next_logits
from minigpt.sample.kv_cache import KVCache
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS

MODELS = ("nanogpt-cpu", "nanogpt-baby")
CHARACTERS = 65
# Of the largest logit: in 16 bit 16 times the unit round-off.
TOLERANCE = {"float32": 1e-4, "float16": 16 * 2**-11, "bfloat16": 16 * 2**-8}
NOTE = """
ms: median for all tokens of a run, +- half the distance of the quartiles. x: median over minigpt's,
above 1 minigpt is faster. bound: % of the rate at which the weights could be read once per
step, from the measured rate of a matrix-vector product as large as all weights."""


def minigpt_candidate(config, params, ids, n, place, threads):
    """Return (logits after a prompt, function that draws n tokens)."""
    xp, dtype, _ = place
    dtype = rates.dtype_of(dtype)
    flat = to_device(params.flat.astype(dtype, copy=False), xp)
    p, kv = Params(params.shapes, xp, dtype, flat).tree, KVCache(config, len(ids), xp, dtype)
    next_logits(ids[:, :-1], p, config, kv)
    last = next_logits(ids[:, -1:], p, config, kv)

    def draw():
        with blas_threads(1):
            return list(generate(p, config, ids, n, threads=threads))

    return last.astype(np.float32), draw


def torch_candidate(config, params, ids, n, place, cached=False):
    """The same for torch, with or without a cache."""
    import torch

    from bench.lib import torch_models

    _, dtype, device = place
    model = torch_models.GPT(config).eval()
    model.load(params.tree)
    model.to(device, getattr(torch, dtype))
    prompt = torch.from_numpy(ids).long().to(device)
    with torch.no_grad():
        if cached:
            past = [[] for _ in model.h]
            model(prompt[:, :-1], past=past)
            last = model(prompt[:, -1:], past=past, start=prompt.shape[1] - 1)
        else:
            last = model(prompt)
    draw = model.generate_with_cache if cached else model.generate
    return last.float().cpu().numpy(), lambda: draw(prompt, n)


def transformers_candidate(config, params, ids, n, place):
    """The same for transformers; its biases, which the presets do not have, are 0."""
    import torch
    import transformers

    _, dtype, device = place
    names = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
    options = {"n_positions": config.block_size, "activation_function": names[config.activation]}
    options |= {
        name: getattr(config, name) for name in ("vocab_size", "n_embd", "n_layer", "n_head")
    }
    options |= {"bos_token_id": None, "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).eval()
    state = {name: torch.zeros_like(x) for name, x in model.state_dict().items()}
    for name, array in leaves(params.tree):
        name = name if "." in name else name + ".w"
        name = name.removesuffix("w") + "weight" if name.endswith(".w") else name[:-1] + "bias"
        state["transformer." + name] = torch.from_numpy(array)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state)
    model.to(device, getattr(torch, dtype))
    prompt = torch.from_numpy(ids).long().to(device)
    settings = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": True, "top_k": 0}
    settings |= {"use_cache": True, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    with torch.no_grad():
        last = model(prompt).logits[:, -1].float().cpu().numpy()
    return last, lambda: model.generate(prompt, **settings)


def candidates(config, params, ids, n, threads, torch, xp, dtype):
    """Return {name: function that draws n tokens}, checked against each other.

    Raises
    ------
    WrongResult
        If logits differ by more than `TOLERANCE` times the largest.
    """
    minigpt = functools.partial(minigpt_candidate, threads=threads)
    makers, device = {"minigpt": minigpt}, timing.torch_device(torch, xp)
    if device is not None:
        makers["torch, no cache"] = torch_candidate
        if xp is not np:
            makers["torch, cache"] = functools.partial(torch_candidate, cached=True)
        if report.installed("transformers"):
            makers["transformers"] = transformers_candidate
    place = xp, dtype, device
    found = {name: make(config, params, ids, n, place) for name, make in makers.items()}
    ours = found["minigpt"][0]
    for name, (logits, _) in found.items():
        error = abs(ours - logits).max() / abs(logits).max()
        if not error <= TOLERANCE[dtype]:
            raise report.WrongResult(
                f"logits differ from those of {name} by {error:.1e} of the largest"
            )
    return {name: draw for name, (_, draw) in found.items()}


def bench(name, batch, dtype, args, torch, xp):
    """Check and time one model at one batch size; return a record per candidate."""
    print(f"{name}, batch {batch}, {dtype} ...", file=sys.stderr, flush=True)
    values = {k: v for k, v in PRESETS[name].items() if k != "dropout"}
    config, _ = resolve(values, {"vocab_size": CHARACTERS})
    prompt = args.prompt_tokens or config.block_size // 2
    n = args.new_tokens or config.block_size // 4
    params = init_params(config, 1337, np)
    ids = np.random.default_rng(7).integers(0, CHARACTERS, (batch, prompt), dtype=np.int32)
    found = candidates(config, params, ids, n, args.threads, torch, xp, dtype)
    times = timing.measure(found, args.seconds, xp=xp)
    read = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    read *= rates.dtype_of(dtype).itemsize
    if xp is np:
        bandwidth, copied = timing.read_bandwidth(read), timing.copy_bandwidth(read)
    else:
        bandwidth = copied = rates.copy_rate(xp)
    return [
        {
            "model": name,
            "dtype": dtype,
            "config": dataclasses.asdict(config),
            "batch": batch,
            "prompt_tokens": prompt,
            "new_tokens": n,
            "candidate": candidate,
            "time": measured.record(),
            "tokens_per_s": batch * n / measured.median,
            "ratio_to_minigpt": timing.ratio(measured, times["minigpt"]),
            "weight_bytes": read,
            "read_bytes_per_s": bandwidth,
            "copy_bytes_per_s": copied,
            "share_of_bound": n / measured.median * read / bandwidth,
        }
        for candidate, measured in times.items()
    ]


def table(records):
    """Print a row per model, batch and candidate."""
    headings = ["model", "dtype", "batch", "tokens", "candidate", "rounds", "ms", "tokens/s"]
    headings += ["x", "bound"]
    rows = [
        [
            r["model"],
            r["dtype"],
            str(r["batch"]),
            f"{r['prompt_tokens']}+{r['new_tokens']}",
            r["candidate"],
            str(r["time"]["rounds"]),
            report.milliseconds(r["time"]),
            f"{r['tokens_per_s']:,.0f}",
            f"{r['ratio_to_minigpt']['of_medians']:.2f}",
            f"{100 * r['share_of_bound']:.0f}%",
        ]
        for r in records
    ]
    report.print_table(headings, rows)
    print(NOTE)
    for (name, dtype), r in {(r["model"], r["dtype"]): r for r in records}.items():
        print(
            f"{name} in {dtype}: {r['weight_bytes'] / 1e6:.1f} MB of weights per step; they could "
            f"be read at {r['read_bytes_per_s'] / 1e9:.0f} GB/s, and copied at "
            f"{r['copy_bytes_per_s'] / 1e9:.0f} GB/s (read plus written; on a CPU by one thread)"
        )


def draw(path, records, env):
    """Draw tokens per second of each candidate for each model and batch size."""
    dtype = records[0]["dtype"]
    records = [r for r in records if r["dtype"] == dtype]
    groups = list(dict.fromkeys((r["model"], r["batch"]) for r in records))
    names = list(dict.fromkeys(r["candidate"] for r in records))
    with report.figure(path) as [axes]:
        for i, name in enumerate(names):
            mine = [r for r in records if r["candidate"] == name]
            positions = [groups.index((r["model"], r["batch"])) for r in mine]
            offset = 0.8 * (i + 0.5) / len(names) - 0.4
            rates = [r["tokens_per_s"] for r in mine]
            bars = axes.bar(np.add(positions, offset), rates, 0.75 / len(names), label=name)
            axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], fontsize=8, padding=2)
        report.log_y(axes)
        axes.margins(y=0.15)
        axes.set_xticks(range(len(groups)), [f"{model}\nbatch {batch}" for model, batch in groups])
        where = env.get("device", f"{env['threads']} threads")
        report.label(axes, "", "tokens per second", f"Sampling, {where}, {dtype}")


def main(argv=None):
    """Check and time every model and batch size; print, write and draw what was found."""
    parser = cli.parser("python bench/sample.py", __doc__.split("\n\n")[0])
    parser.add_argument(
        "--model", nargs="+", choices=MODELS, default=MODELS, help="presets (default: both)"
    )
    report.add_number(parser, "--batch", (1, 8), "sequences side by side")
    report.add_number(parser, "--prompt-tokens", None, "default: half of the context")
    report.add_number(parser, "--new-tokens", None, "default: a quarter of the context")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(TOLERANCE),
        default=["float32"],
        help="of weights and activations, in 16 bit on a GPU (default: float32)",
    )
    report.add_flags(parser, backend=True, seconds=10.0)
    args = parser.parse_args(argv)
    xp = load_backend(args.backend)
    for dtype in args.dtype:
        check_precision(dtype, xp)
        if dtype == "bfloat16" and xp.cuda.runtime.is_hip:
            raise UserError(
                "--dtype bfloat16: CuPy on ROCm has no product in it, which the head needs to "
                "sample; use float16"
            )
    torch = timing.torch_on(args.threads)
    env = report.environment(args.threads, xp)
    report.print_environment(env)
    with threadpoolctl.threadpool_limits(args.threads, user_api="blas"):
        cases = itertools.product(args.model, args.batch, args.dtype)
        records = [r for case in cases for r in bench(*case, args, torch, xp)]
    table(records)
    report.finish(args, "sample", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
