"""How a step ends: the optimizer changes the weights, and the loss of the sentence falls."""

import numpy as np

from minigpt.optim.adamw import AdamW
from minigpt.params import Params
from minigpt.report.step.pictures import Pass, Picture, Stage, number, term
from minigpt.report.step.view import View, numbers


def closing_stages(step, head=0):
    """Return the stages after both passes: the update of a weight, and the loss after it.

    Parameters
    ----------
    step : StepRecord
    head : int
        Whose weights are shown: those of its queries, in the first block.
    """
    view = View(step, head)
    return [update_stage(view), after_stage(view)]


def weights_of(view, flat):
    """Return the part of a flat buffer that the weights of the head's queries are: (C, D)."""
    params = Params(view.step.before.shapes, np, flat.dtype, flat)
    return params["h"][0]["attn"]["c_attn"]["w"][:, view.part]


def update_stage(view):
    """AdamW's step, of one weight matrix."""
    call, step = view.step.update.the("adamw_step"), view.step
    before, after = (weights_of(view, x) for x in (call.first("p"), call["p"]))
    g, m, v, mhat, vhat = (weights_of(view, call[x]) for x in ("g", "m", "v", "mhat", "vhat"))
    settings = AdamW(step.before)
    decay, last = settings.weight_decay, len(before) - 1
    old, slope = before[last, 0], mhat[last, 0]
    return Stage(
        "update",
        "The optimizer: every weight moves against its gradient",
        Pass(
            call,
            (
                "m = beta1 m + (1 - beta1) g",
                "mhat = m / (1 - beta1^step)",
                "v = beta2 v + (1 - beta2) g^2",
                "vhat = v / (1 - beta2^step)",
                "p = p - lr * weight_decay * p - lr * mhat / (sqrt(vhat) + eps)",
            ),
            f"all (C, D); lr = {step.lr}, weight_decay = {decay}, beta1 = {settings.beta1}, "
            f"beta2 = {settings.beta2}, eps = {settings.eps}, step = 1",
            updated(view, {"p": before, "g": g, "m": m, "v": v, "p'": after}),
            (
                "At the first step mhat is g and vhat is g^2, so that mhat / sqrt(vhat) is 1 or "
                "-1: every weight moves by about lr, whatever the size of its gradient.",
            ),
            f"p'[{last}, 0] = {number(old)} - {step.lr} * {decay} * {term(old)} - {step.lr} * "
            f"{term(slope)} / (sqrt({vhat[last, 0]:.4g}) + {settings.eps}) = "
            f"{number(after[last, 0])}",
        ),
    )


def updated(view, arrays):
    """Return the pictures of the update, of {name: (C, D) array}."""
    notes = {
        "p": "before: w of the head's q",
        "g": "its gradient, dw above",
        "m": "running mean of g",
        "v": "running mean of g^2",
        "p'": "after: p of the last line",
    }
    made_of = {"m": "g", "v": "g", "p'": "pmv"}
    labels = view.channels, numbers(view.D)
    return tuple(
        Picture(
            *(name, x, *labels, notes[name]),
            {f"update.{source}": ("i", "j") for source in made_of.get(name, "")},
        )
        for name, x in arrays.items()
    )


def after_stage(view):
    """The loss of the sentence before and after the step."""
    step = view.step
    before = step.both.the("cross_entropy_forward")["losses"]
    call = step.again.the("cross_entropy_forward")
    targets = step.targets[0]
    arrows = [f"{a}>{view.label(b)}" for a, b in zip(view.tokens, targets, strict=True)]
    fall = step.loss - step.loss_after
    return Stage(
        "after",
        "The loss after the step",
        Pass(
            call,
            ("loss = sum over tokens of (lse - logits_target) / count",),
            "(T, V) and targets (T) -> one number, by the new weights",
            (
                Picture("losses", before[:, None], arrows, [""], "before the step"),
                Picture("losses'", call["losses"][:, None], arrows, [""], "after the step"),
            ),
            (
                f"The loss was {step.loss:.4f} and is {step.loss_after:.4f} nats per token, "
                f"{abs(fall):.4f} {'less' if fall > 0 else 'more'}. "
                "Training does this again and again, each time with another piece of the text.",
            ),
        ),
    )
