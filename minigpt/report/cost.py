"""What a run has cost, and where the time of a step goes.

What the run has recorded is its own: wall time, tokens per second. The time by op is measured when
the page is written, for about a second, on the machine that writes it.
"""

import statistics

import numpy as np

from minigpt.backend.blas import blas_threads, product_rate
from minigpt.backend.cores import processor, usable_cores
from minigpt.backend.devices import on_gpu
from minigpt.cli import plural
from minigpt.model import count_parameters
from minigpt.model.flops import count_flops
from minigpt.optim.adamw import AdamW
from minigpt.optim.muon import Muon
from minigpt.params import Params
from minigpt.report.op_times import REST, by_op
from minigpt.report.page import Section, chart, facts, note, paragraph, table
from minigpt.report.run_data import validation_batch
from minigpt.sample.tasks import task_of

FLOPS = 15e9  # of both passes of the batch that is timed, about
SECONDS, PEAK_S = 0.6, 0.15  # to measure the passes, and the rate of products
LARGEST = 30 * 10**6  # parameters of a model whose update is timed: it takes a copy of them
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
        values = [line[key] for line in lines if isinstance(line.get(key), int | float)]
        if values:
            found[name] = max(values)
    rates = [line.get("tokens_per_second") for line in lines]
    rates = [rate for rate in rates if isinstance(rate, int | float) and rate > 0]
    if rates:
        found["tokens_per_second"] = statistics.median(rates)
    return found


def flops_of(checkpoint, ids, targets):
    """Return the floating-point operations of both passes over a batch."""
    sources = None if task_of(checkpoint.config).name == "text" else ids.shape[1]
    return count_flops(checkpoint.config, *targets.shape, sources)


def time_ops(checkpoint, batch, seconds=SECONDS):
    """Time both passes over a batch by op, on one thread.

    Parameters
    ----------
    checkpoint : Checkpoint
    batch : (ids, targets)
    seconds : float
        About; two batches are the least.

    Returns
    -------
    records : list of dict
        As of op_times.by_op, of one batch.
    flops : int
        Of one batch.
    """
    tree, config, task = checkpoint.params.tree, checkpoint.config, task_of(checkpoint.config)
    records = by_op(lambda: task.loss_and_gradients(*batch, tree, config), seconds, least=1)
    return records, flops_of(checkpoint, *batch)


def time_update(params, options):
    """Return the seconds of an optimizer's update of all weights, on one thread.

    Parameters
    ----------
    params : Params
        They stay as they are.
    options : dict
        Of the run.
    """
    own = Params(params.shapes, np, "float32", params.flat.copy())
    settings = options["beta1"], options["beta2"], options["weight_decay"] or 0.0
    if options.get("optimizer") == "muon":
        optimizer = Muon(own, *settings, momentum=options["momentum"])
    else:
        optimizer = AdamW(own, *settings)
    gradients = own.zeros_like().flat
    gradients[...] = 1e-3
    (record,) = [
        record
        for record in by_op(lambda: optimizer.step(gradients, 1e-3), 0.1, least=1)
        if record["op"] == REST
    ]
    return record["seconds"]


def of_a_step(records, update_s, targets, options):
    """Return records of a step of the run: those of a batch for as many tokens, and the update.

    Parameters
    ----------
    records : list of dict
    update_s : float or None
    targets : (B, T) int
        Of the batch.
    options : dict
        Of the run.
    """
    rows = options.get("batch_size", 1) * options.get("gradient_accumulation_steps", 1)
    scale = rows / len(targets)
    if options.get("task", "text") == "text":
        scale *= options["block_size"] / targets.shape[1]
    found = [{"op": r["op"], "seconds": scale * r["seconds"]} for r in records]
    if update_s is not None:
        found.append({"op": UPDATE, "seconds": update_s})
    whole = sum(r["seconds"] for r in found)
    found = [r | {"share": r["seconds"] / whole} for r in found]
    return sorted(found, key=lambda r: -r["seconds"])


def cost_section(checkpoint, data, lines):
    """Return the Section of a run's cost.

    Parameters
    ----------
    checkpoint : Checkpoint
        As of load_plain, of the run: its state has the options.
    data : TextData or PairData, or None
        Without them, what needs a batch is left out.
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
    if data is None or on_gpu(checkpoint.params.flat):
        html += note("Time by op is left out: it takes the run's data, and a model on the CPU.")
    else:
        html += ops_html(checkpoint, data, options)
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


def ops_html(checkpoint, data, options):
    """Return the time by op as HTML: a chart, a table, and the share of the machine's peak."""
    batch = validation_batch(checkpoint, data, FLOPS)
    records, flops = time_ops(checkpoint, batch)
    with blas_threads(1):
        peak = product_rate(1, PEAK_S)
    passes_s = sum(r["seconds"] for r in records)
    small = count_parameters(checkpoint.config) <= LARGEST and checkpoint.adapter is None
    known = {"beta1", "beta2", "weight_decay", "momentum"} <= options.keys()
    update_s = time_update(checkpoint.params, options) if small and known else None
    block = {"block_size": checkpoint.config.block_size}
    step = of_a_step(records, update_s, batch[1], options | block)
    text = (
        f"Measured now on one thread of {processor()} ({plural(usable_cores(), 'core')}), over a "
        f"batch of {len(batch[1])} x {batch[1].shape[1]}, and scaled to the tokens of a step: "
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
        "both passes": f"{prefixed(flops / passes_s)}FLOP/s",
        "products alone (SGEMM)": f"{prefixed(peak)}FLOP/s",
        "share of the peak": f"{flops / passes_s / peak:.0%}",
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
