"""Tokens per second, one sequence and eight: python bench/sample.py

minigpt with its KV cache; torch without one, recomputing the whole context for every token as
nanoGPT does; and GPT2LMHeadModel of transformers with its KV cache, where that is installed. All
have the same weights, prompt and number of tokens, and draw from the full distribution. Reading
the prompt is part of the time. Before anything is timed, the logits after a prompt are compared;
a difference ends with exit code 1.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import threadpoolctl

from bench.lib import report, timing
from minigpt import cli
from minigpt.model.init import init_params
from minigpt.params import leaves
from minigpt.sample.generate import generate, next_logits
from minigpt.sample.kv_cache import KVCache
from minigpt.train.config import resolve
from minigpt.train.presets import PRESETS

MODELS = ("nanogpt-cpu", "nanogpt-baby")
CHARACTERS = 65
TOLERANCE = 1e-4  # of the largest logit
NOTE = """
ms: median for all tokens of a run, +- half the distance of the quartiles. x: median over minigpt's,
above 1 minigpt is faster. bound: % of the rate at which the weights could be read once per
step, from the measured rate of a matrix-vector product as large as all weights."""


def minigpt_candidate(config, params, ids, n):
    """Return (logits after a prompt, function that draws n tokens)."""
    kv = KVCache(config, len(ids), np, np.float32)
    next_logits(ids[:, :-1], params.tree, config, kv)
    last = next_logits(ids[:, -1:], params.tree, config, kv)
    return last, lambda: list(generate(params.tree, config, ids, n))


def torch_candidate(config, params, ids, n):
    """The same for torch without a cache."""
    import torch

    from bench.lib import torch_models

    model = torch_models.GPT(config).eval()
    model.load(params.tree)
    prompt = torch.from_numpy(ids).long()
    with torch.no_grad():
        last = model(prompt).numpy()
    return last, lambda: model.generate(prompt, n)


def transformers_candidate(config, params, ids, n):
    """The same for transformers; its biases, which the presets do not have, are 0."""
    import torch
    import transformers

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
    prompt = torch.from_numpy(ids).long()
    settings = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": True, "top_k": 0}
    settings |= {"use_cache": True, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    with torch.no_grad():
        last = model(prompt).logits[:, -1].numpy()
    return last, lambda: model.generate(prompt, **settings)


def candidates(config, params, ids, n, torch):
    """Return {name: function that draws n tokens}, checked against each other.

    Raises
    ------
    WrongResult
        If logits differ by more than `TOLERANCE` times the largest.
    """
    makers = {"minigpt": minigpt_candidate}
    if torch is not None:
        makers["torch, no cache"] = torch_candidate
        if report.installed("transformers"):
            makers["transformers"] = transformers_candidate
    found = {name: make(config, params, ids, n) for name, make in makers.items()}
    ours = found["minigpt"][0]
    for name, (logits, _) in found.items():
        error = abs(ours - logits).max() / abs(logits).max()
        if not error <= TOLERANCE:
            raise report.WrongResult(
                f"logits differ from those of {name} by {error:.1e} of the largest"
            )
    return {name: draw for name, (_, draw) in found.items()}


def bench(name, batch, args, torch):
    """Check and time one model at one batch size; return a record per candidate."""
    print(f"{name}, batch {batch} ...", file=sys.stderr, flush=True)
    values = {k: v for k, v in PRESETS[name].items() if k != "dropout"}
    config, _ = resolve(values, {"vocab_size": CHARACTERS})
    prompt = args.prompt_tokens or config.block_size // 2
    n = args.new_tokens or config.block_size // 4
    params = init_params(config, 1337, np)
    ids = np.random.default_rng(7).integers(0, CHARACTERS, (batch, prompt), dtype=np.int32)
    times = timing.measure(candidates(config, params, ids, n, torch), args.seconds)
    read = 4 * (12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd)
    bandwidth = timing.read_bandwidth(read)
    return [
        {
            "model": name,
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
            "copy_bytes_per_s": timing.copy_bandwidth(read),
            "share_of_bound": n / measured.median * read / bandwidth,
        }
        for candidate, measured in times.items()
    ]


def table(records):
    """Print a row per model, batch and candidate."""
    headings = ["model", "batch", "tokens", "candidate", "rounds", "ms", "tokens/s", "x", "bound"]
    rows = [
        [
            r["model"],
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
    for name, r in {r["model"]: r for r in records}.items():
        print(
            f"{name}: {r['weight_bytes'] / 1e6:.1f} MB of weights per step; they could be read at "
            f"{r['read_bytes_per_s'] / 1e9:.0f} GB/s, and copied at "
            f"{r['copy_bytes_per_s'] / 1e9:.0f} GB/s (read plus written, one thread)"
        )


def draw(path, records, env):
    """Draw tokens per second of each candidate for each model and batch size."""
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
        report.label(axes, "", "tokens per second", f"Sampling, {env['threads']} threads, float32")


def main(argv=None):
    """Check and time every model and batch size; print, write and draw what was found."""
    parser = cli.parser("python bench/sample.py", __doc__.split("\n\n")[0])
    parser.add_argument(
        "--model", nargs="+", choices=MODELS, default=MODELS, help="presets (default: both)"
    )
    report.add_number(parser, "--batch", (1, 8), "sequences side by side")
    report.add_number(parser, "--prompt-tokens", None, "default: half of the context")
    report.add_number(parser, "--new-tokens", None, "default: a quarter of the context")
    report.add_flags(parser, seconds=10.0)
    args = parser.parse_args(argv)
    torch = timing.torch_on(args.threads)
    env = report.environment(args.threads)
    report.print_environment(env)
    with threadpoolctl.threadpool_limits(args.threads, user_api="blas"):
        pairs = [(name, batch) for name in args.model for batch in args.batch]
        records = [r for name, batch in pairs for r in bench(name, batch, args, torch)]
    table(records)
    report.finish(args, "sample", env, records, draw)
    return 0


if __name__ == "__main__":
    report.run(main)
