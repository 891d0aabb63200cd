"""What a run has cost, and where the time of a step goes.

What the run has recorded is its own: wall time, tokens per second. The time by op is measured when
the page is written, for less than a second, on the machine that writes it.
"""

import statistics

import numpy as np

from minigpt.backend.blas import product_rate
from minigpt.backend.cores import processor, usable_cores
from minigpt.cli import plural
from minigpt.model.flops import count_flops
from minigpt.optim.adamw import AdamW
from minigpt.optim.muon import Muon
from minigpt.params import Params
from minigpt.report.op_times import by_op
from minigpt.report.page import Section, chart, facts, note, paragraph, table
from minigpt.sample.tasks import task_of

UPDATE_S, PEAK_S = 0.05, 0.1  # to measure a part of the update, and the rate of products
STEPPED = 4 * 10**6  # numbers that AdamW is timed on: too many for a cache
MULTIPLIED = 10**10  # multiplications of Muon for a block beyond which it is not timed
BARS = 12  # ops in the chart
UPDATE = "update of the weights"


def recorded(lines):
    """Return what the metrics of a run tell of its cost.

    Parameters
    ----------
    lines : list of dict

    Returns
    -------
    found : dict
        steps, tokens; seconds of the whole run; tokens_per_second, the median over the lines that
        have a rate. Each only where it is known.
    """
    found = {}
    for name, key in (("steps", "step"), ("tokens", "tokens"), ("seconds", "seconds")):
        values = [line[key] for line in lines if line.get(key) is not None]
        if values:
            found[name] = max(values)
    rates = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    if rates:
        found["tokens_per_second"] = statistics.median(rates)
    return found


def time_update(params, options):
    """Return the seconds of an optimizer's update of weights, on one thread; None if it is long.

    It is measured on arrays of the same shapes: Muon's on those of one block, since all are alike,
    and AdamW's, a pass over all other numbers, on at most STEPPED of them.

    Parameters
    ----------
    params : Params
    options : dict
        Of the run.
    """
    settings = options["beta1"], options["beta2"], options["weight_decay"] or 0.0
    rest, seconds = params.size, 0.0
    if options.get("optimizer") == "muon":
        block, layers = first_blocks(params.shapes), len(params.shapes["h"])
        own = Params(block, np, "float32")
        muon = Muon(own, *settings, momentum=options["momentum"])
        if sum(group.work for group in muon.groups) > MULTIPLIED:
            return None
        seconds, rest = layers * time_steps(muon), rest - layers * own.size
    if rest:
        some = Params({"some": (min(rest, STEPPED),)}, np, "float32")
        seconds += rest / some.size * time_steps(AdamW(some, *settings))
    return seconds


def first_blocks(shapes):
    """Return the first block of each stack in the shapes of a model."""
    inner = {"encoder": first_blocks(shapes["encoder"])} if "encoder" in shapes else {}
    return {**inner, "h": shapes["h"][:1]}


def time_steps(optimizer):
    """Return the seconds of a step of an optimizer."""
    gradients = optimizer.params.zeros_like().flat
    gradients[...] = 1e-3
    (record,) = by_op(lambda: optimizer.step(gradients, 1e-3), UPDATE_S, least=1)
    return record["seconds"]


def of_a_step(records, update_s, shape, options):
    """Return records of a step of the run: those of a batch for as many tokens, and the update.

    Parameters
    ----------
    records : list of dict
    update_s : float or None
    shape : (B, T)
        Of the batch.
    options : dict
        Of the run.
    """
    rows = options.get("batch_size", 1) * options.get("gradient_accumulation_steps", 1)
    scale = rows / shape[0]
    if options.get("task", "text") == "text":
        scale *= options["block_size"] / shape[1]
    found = [{"op": r["op"], "seconds": scale * r["seconds"]} for r in records]
    if update_s is not None:
        found.append({"op": UPDATE, "seconds": update_s})
    whole = sum(r["seconds"] for r in found)
    found = [r | {"share": r["seconds"] / whole} for r in found]
    return sorted(found, key=lambda r: -r["seconds"])


def cost_section(checkpoint, passes, lines):
    """Return the Section of a run's cost.

    Parameters
    ----------
    checkpoint : Checkpoint
        As of load_plain, of the run: its state has the options.
    passes : Passes or None
        Without them, the time by op is left out.
    lines : list of dict
        Of the metrics.
    """
    found, html = recorded(lines), ""
    options = checkpoint.state.get("train")
    options = options if isinstance(options, dict) else {}
    rows = {}
    if "seconds" in found:
        rows["wall time"] = f"{found['seconds']:,.1f} s, evaluations and saves included"
    if "tokens" in found:
        rows["trained on"] = f"{found['tokens']:,} {task_of(checkpoint.config).counted}"
    if "tokens_per_second" in found:
        rate = f"{found['tokens_per_second']:,.0f} {task_of(checkpoint.config).counted}/s"
        rows["the run's own rate"] = f"{rate} (median)"
    rows |= work_of(checkpoint, found, options)
    html = facts(rows)
    if passes is None:
        html += note("Time by op is left out: it takes the run's data.")
    else:
        html += ops_html(checkpoint, passes, options)
    return Section("cost", "Cost of the run", html)


def work_of(checkpoint, found, options):
    """Return facts on the floating-point operations of a run, of a text; none of pairs, whose
    lengths vary.
    """
    config = checkpoint.config
    if "tokens" not in found or task_of(config).name != "text":
        return {}
    lora = None if checkpoint.adapter is None else checkpoint.adapter.lora
    recompute = bool(options.get("recompute"))
    per_token = count_flops(config, 1, config.block_size, None, recompute, lora) / config.block_size
    rows = {"work of the run": f"{prefixed(per_token * found['tokens'])}FLOP in all"}
    if "tokens_per_second" in found:
        rows["at a rate of"] = f"{prefixed(per_token * found['tokens_per_second'])}FLOP/s"
    return rows


def prefixed(number):
    """Return a number with three digits and a prefix: 12.3 G, with a space behind."""
    for prefix, scale in {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}.items():
        if number >= scale:
            return f"{number / scale:.3g} {prefix}"
    return f"{number:.3g} "


def ops_html(checkpoint, passes, options):
    """Return the time by op as HTML: a chart, a table, and the share of the machine's peak."""
    peak = product_rate(1, PEAK_S)
    passes_s = sum(r["seconds"] for r in passes.records)
    known = {"beta1", "beta2", "weight_decay", "momentum"} <= options.keys()
    trained = (checkpoint.adapter or checkpoint).params
    update_s = time_update(trained, options) if known else None
    block = {"block_size": checkpoint.config.block_size}
    step = of_a_step(passes.records, update_s, passes.shape, options | block)
    text = (
        f"Measured now on one thread of {processor()} ({plural(usable_cores(), 'core')}), over a "
        f"batch of {passes.shape[0]} x {passes.shape[1]}, and scaled to the tokens of a step: "
        f"{time_text(sum(r['seconds'] for r in step))}."
    )
    if options.get("backend") == "cupy":
        text += " The run itself was on a GPU."
    if checkpoint.adapter is not None:
        text += " The run trained an adapter; what is timed has the gradients of all weights."
    had = {"dropout": checkpoint.config.dropout, "recompute": options.get("recompute")}
    unlike = [name for name, value in had.items() if value]
    if unlike:
        text += f" The run had --{' and --'.join(unlike)}; what is timed has not."
    if update_s is None:
        text += " The update of the weights is not among them."
    rates = {
        "both passes": f"{prefixed(passes.flops / passes_s)}FLOP/s",
        "products alone (SGEMM)": f"{prefixed(peak)}FLOP/s",
        "share of the peak": f"{passes.flops / passes_s / peak:.0%}",
    }
    return paragraph(text) + facts(rates) + step_html(step)


def time_text(seconds):
    """Return a time in s or ms, as text."""
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{1e3 * seconds:,.3g} ms"


def step_html(step):
    """Return the records of a step as a chart and a table."""
    unit, scale = ("s", 1) if step[0]["seconds"] >= 1 else ("ms", 1e3)
    step = [r | {"time": scale * r["seconds"]} for r in step]
    ops = [r["op"] for r in step[:BARS]]
    spec = {
        "height": 22 * len(ops),
        "data": {"values": [{k: r[k] for k in ("op", "time", "share")} for r in step[:BARS]]},
        "mark": "bar",
        "encoding": {
            "y": {"field": "op", "type": "nominal", "sort": ops, "title": None},
            "x": {
                "field": "time",
                "type": "quantitative",
                "title": f"{unit} of a step, one thread",
            },
            "tooltip": [
                {"field": "op"},
                {"field": "time", "format": ".3~g", "title": unit},
                {"field": "share", "format": ".1%"},
            ],
        },
    }
    rows = [[r["op"], float(r["time"]), f"{r['share']:.1%}"] for r in step]
    caption = "Time of a step by op"
    return chart(spec, caption) + table(["op", unit, "share"], rows, "The same as numbers")
