"""How large the gradients are, by layer and part: of a batch of validation data.

Where a network learns, and whether a part gets next to nothing (vanishing) or far too much
(exploding), is seen in the norms of its gradients.
"""

import math

from minigpt.backend import to_host
from minigpt.model.lora import ends_in
from minigpt.params import leaves
from minigpt.report.page import Section, chart, note, paragraph, table

PARTS = {"attn": "attention", "cross": "cross attention", "mlp": "MLP"}
NAMES = {"wte": "embedding", "wpe": "embedding", "wbe": "embedding", "lm_head": "head"}


def gradient_norms(checkpoint, gradients):
    """Return the norms of gradients by layer and part, in the order of the model.

    Of an adapter that is merged into the weights they are those of its factors, as it has been
    trained: all else is frozen.

    Parameters
    ----------
    checkpoint : Checkpoint
        As of load_plain.
    gradients : tree of arrays
        Of its weights.

    Returns
    -------
    rows : list of {"layer", "part", "norm", "parameters"}
    """
    named = leaves(gradients)
    if checkpoint.adapter is not None:
        named = adapter_gradients(checkpoint, gradients)
    squares, sizes = {}, {}
    for name, gradient in named:
        gradient = to_host(gradient).reshape(-1)
        place = place_of(name, checkpoint.config)
        squares[place] = squares.get(place, 0.0) + float(gradient @ gradient)
        sizes[place] = sizes.get(place, 0) + gradient.size
    return [
        {"layer": layer, "part": part, "norm": math.sqrt(square), "parameters": sizes[layer, part]}
        for (layer, part), square in sorted(squares.items(), key=lambda item: order_of(item[0][0]))
    ]


def adapter_gradients(checkpoint, grads):
    """Yield (name, gradient) of an adapter's factors, from those of the merged weights.

    With w' = w + s a b the chain rule gives da = s dw' b^T and db = s a^T dw'.
    """
    adapter = checkpoint.adapter
    of_weights, factors = dict(leaves(grads)), dict(adapter.params.leaves())
    for name, a in factors.items():
        if ends_in(name, "lora_a"):
            layer = name.removesuffix(".lora_a")
            b, dw = factors[f"{layer}.lora_b"], adapter.lora.scale * of_weights[f"{layer}.w"]
            yield name, dw @ b.T
            yield f"{layer}.lora_b", a.T @ dw


def place_of(name, config):
    """Return (layer, part) of a parameter by its dotted name."""
    side, keys = "", name.split(".")
    if hasattr(config, "source_vocab_size"):
        side = "encoder " if keys[0] == "encoder" else "decoder "
        keys = keys[1:] if keys[0] == "encoder" else keys
    if keys[0] == "h":
        return f"{side}layer {keys[1]}", PARTS.get(keys[2], "norms")
    if keys[0] == "wte" and side == "decoder " and config.share_embedding:
        return "embedding", "embedding"
    part = NAMES.get(keys[0], "norms")
    return ("head" if part == "head" else f"{side}{'end' if part == 'norms' else part}"), part


def order_of(layer):
    """Return where a layer stands in the model: embedding, layers, end; the encoder first."""
    side, _, last = layer.rpartition(" ")
    stage = {"embedding": -1, "end": 1 << 30, "head": 1 << 31}.get(last)
    return "decoder" in side or last == "head", int(last) if stage is None else stage


def gradients_section(checkpoint, passes):
    """Return the Section of gradient norms, or None where there are no data.

    Parameters
    ----------
    checkpoint : Checkpoint
        As of load_plain.
    passes : Passes or None
    """
    if passes is None:
        return None
    rows = gradient_norms(checkpoint, passes.gradients)
    text = paragraph(
        f"Norms of the gradient of the loss over {passes.count:,} tokens of the validation data, "
        "at this checkpoint: one backward pass, before any clipping."
    )
    if checkpoint.adapter is not None:
        targets = ", ".join(checkpoint.adapter.lora.targets)
        text += note(
            f"Trained are the adapters of {targets} alone; embeddings, norms, head and all other "
            "weights are frozen and get no gradient."
        )
    elif getattr(checkpoint.config, "tie_head", False):
        text += paragraph("The embedding is the head as well: its gradient is the sum of both.")
    return Section("gradients", "Gradient norms by layer", text + norms_html(rows))


def norms_html(rows):
    """Return the norms as a chart and as a table."""
    layers = [*dict.fromkeys(row["layer"] for row in rows)]
    parts = [*dict.fromkeys(row["part"] for row in rows)]
    tooltip = [{"field": name} for name in ("layer", "part")]
    tooltip += [{"field": "norm", "format": ".3~g"}, {"field": "parameters", "format": ","}]
    spec = {
        "height": max(22 * len(layers), 200),
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 80},
        "encoding": {
            "y": {"field": "layer", "type": "nominal", "sort": layers, "title": None},
            "x": {
                "field": "norm",
                "type": "quantitative",
                "scale": {"type": "log"} if all(row["norm"] > 0 for row in rows) else {},
                "title": "norm of the gradient",
            },
            "color": {"field": "part", "type": "nominal", "sort": parts, "title": None},
            "shape": {"field": "part", "type": "nominal", "sort": parts, "legend": None},
            "tooltip": tooltip,
        },
    }
    norms = {(row["layer"], row["part"]): row["norm"] for row in rows}
    lines = [[layer, *(norms.get((layer, part), "") for part in parts)] for layer in layers]
    caption = "Norm of the gradient of each part"
    return chart(spec, caption) + table(["layer", *parts], lines, "The same as numbers")
