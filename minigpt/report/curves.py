"""Curves of a run over its steps, as charts of a page: losses, learning rate."""

from minigpt.report.page import Section, chart, note, paragraph

LOSSES = {"train_loss": "training", "val_loss": "validation"}
HINT = "Values under the pointer; drag to move, Ctrl + wheel to zoom, double click to see all."


def curve_section(run):
    """Return the Section of the curves of a Shown run, or None if there are none."""
    losses, notes = points(run.lines, LOSSES), "".join(map(note, run.notes))
    if not losses:
        return Section("curves", "Curves", notes) if notes else None
    parts = [chart(curve(losses, "loss (nats per token)"), "Training and validation loss by step")]
    rates = points(run.lines, {"learning_rate": "learning rate"})
    if rates:
        parts.append(chart(curve(rates, "learning rate", 160), "Learning rate by step"))
    return Section("curves", "Curves", "".join([*parts, notes, paragraph(HINT)]))


def points(lines, names):
    """Return what metrics say of some keys: a list of {"step", "value", "series"}.

    Parameters
    ----------
    lines : list of dict
    names : dict
        From keys of the metrics to names of series.
    """
    return [
        {"step": line["step"], "value": line[key], "series": name}
        for key, name in names.items()
        for line in lines
        if line.get(key) is not None
    ]


def curve(values, title, height=260):
    """Return the Vega-Lite spec of lines over steps that can be zoomed.

    Parameters
    ----------
    values : list of {"step", "value", "series"}
    title : str
        Of the vertical axis.
    height : int
        In pixels.
    """
    steps = [value["step"] for value in values]
    names = list(dict.fromkeys(value["series"] for value in values))
    first, last = min(steps), max(max(steps), min(steps) + 1)
    x = {
        "field": "step",
        "type": "quantitative",
        "scale": {"domainMin": {"expr": "from"}, "domainMax": {"expr": "to"}, "nice": False},
        "axis": {"format": ",~r", "labelOverlap": True, "tickCount": 8},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, "nice": True},
        "axis": {"tickCount": 6, "format": ".4~g"},
    }
    colour = {"field": "series", "type": "nominal", "scale": {"domain": names}}
    if len(names) == 1:
        colour["legend"] = None
    return {
        "height": height,
        "params": [{"name": "from", "value": first}, {"name": "to", "value": last}],
        "data": {"values": values},
        "transform": [{"filter": "datum.step >= from && datum.step <= to"}],
        "encoding": {"x": x},
        "layer": [
            {"mark": "line", "encoding": {"y": y, "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 30}}
            | {"transform": [sparse(values, names)], "encoding": {"y": y, "color": colour}},
            pointer(names),
        ],
    }


def sparse(values, names):
    """Return a filter that leaves the series of which each value gets a dot: those of few."""
    few = [name for name in names if sum(v["series"] == name for v in values) <= 60]
    return {"filter": {"field": "series", "oneOf": few}}


def pointer(names):
    """Return the layer that shows the values of all series at the step under the pointer."""
    tips = [{"field": "step", "type": "quantitative", "format": ",d"}]
    tips += [{"field": name, "type": "quantitative", "format": ".5~g"} for name in names]
    near = {"type": "point", "fields": ["step"], "nearest": True, "on": "pointermove"}
    return {
        "transform": [{"pivot": "series", "value": "value", "groupby": ["step"]}],
        "mark": {"type": "rule", "tooltip": True},
        "params": [{"name": "near", "select": {**near, "clear": "pointerout"}}],
        "encoding": {
            "opacity": {"condition": {"param": "near", "empty": False, "value": 0.7}, "value": 0},
            "tooltip": tips,
        },
    }
