"""The stages of a training step, in the order of the forward pass: what is shown of each op."""

import math

import numpy as np

from minigpt.errors import UserError
from minigpt.report.step.attention_stages import (
    attention_stages,
)
from minigpt.report.step.pictures import Pass, Picture, Stage, add, dot, number, term
from minigpt.report.step.view import View, numbers


def stages_of(step, head=0):
    """Return the stages of a recorded step, in the order of the forward pass.

    Parameters
    ----------
    step : StepRecord
        Of a model as `record.TINY`, of any size.
    head : int
        Which head of each block is shown.

    Returns
    -------
    stages : list of Stage
        Read downwards they are the forward pass, read upwards the backward pass.

    Raises
    ------
    UserError
        If there is no such head.
    """
    if not 0 <= head < step.config.n_head:
        raise UserError(f"head is {head}, but the model has heads 0 to {step.config.n_head - 1}")
    view = View(step, head)
    stages = [embedding_stage(view)]
    for i in range(step.config.n_layer):
        stages += [add_stage(view, i, "1"), norm_stage(view, i, "1")]
        stages += attention_stages(view, i)
        stages += [add_stage(view, i, "2"), norm_stage(view, i, "2")]
        stages += [hidden_stage(view, i), mlp_stage(view, i)]
    stages += [add_stage(view, None, "f"), norm_stage(view, None, "f")]
    return [*stages, logits_stage(view), probabilities_stage(view), loss_stage(view)]


def embedding_stage(view):
    """Rows looked up, of token and of position; backward, rows added up where they were used."""
    title = "Embedding: a row per token, plus a row per position"
    return Stage("embedding", title, embedding_pass(view), embedding_gradient(view))


def embedding_pass(view):
    """Return the forward Pass of the embedding."""
    call, ids, C = view.step.both.the("embedding_forward"), view.step.ids[0], view.channels
    used, index = np.unique(ids, return_inverse=True)
    x, wte, wpe = call.result[0][0], call["wte"], call["wpe"][: view.T]
    names = [view.label(i) for i in used]
    origins = {"embedding.wte": ([[n] for n in index.tolist()], "j"), "embedding.wpe": ("i", "j")}
    return Pass(
        call,
        ("x[b, t] = wte[ids[b, t]] + wpe[start + t]",),
        "wte (V, C), wpe (block_size, C) -> x (T, C)",
        (
            Picture("wte", wte[used], names, C, "the rows of the tokens in the sentence"),
            Picture("wpe", wpe, numbers(view.T), C, "the rows of its positions"),
            Picture("x", x, view.tokens, C, "where the stream begins", origins),
        ),
        (),
        f"x[0, 0] = {add(wte[ids[0], 0], wpe[0, 0])} = {number(x[0, 0])}",
    )


def embedding_gradient(view):
    """Return the backward Pass of the embedding: the scatter-add."""
    call, ids, C = view.step.both.the("embedding_backward"), view.step.ids[0], view.channels
    used, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
    dwte, dwpe, dy = call["dwte"], call["dwpe"][: view.T], call["dy"][0]
    rows = [np.flatnonzero(index == n).tolist() for n in range(len(used))]
    most = int(counts.argmax())
    token, places = int(used[most]), rows[most]
    names = [view.label(i) for i in used]
    return Pass(
        call,
        (
            "dwte[v] = sum over (b, t) with ids[b, t] = v of dy[b, t]",
            "dwpe[start + t] = sum over b of dy[b, t]",
        ),
        "dy (T, C) -> dwte (V, C), dwpe (block_size, C); all other rows are 0",
        (
            Picture("dwpe", dwpe, numbers(view.T), C, "there is one b: dy itself"),
            Picture(
                *("dwte", dwte[used], names, C, "a token that comes twice has the sum"),
                origins={"embedding.dwpe": (rows, "j")},
            ),
        ),
        ("This is the scatter-add: each position adds its dy to the row of its token.",),
        f"dwte['{view.label(token)}', 0] = {add(*dy[places, 0])} = {number(dwte[token, 0])}",
    )


def norm_calls(view, i, which):
    """Return the calls of an add_norm, forward and backward: of block `i`, or the last one."""
    if which == "f":
        return view.step.both.the("add_norm_forward", -1), view.step.both.the("add_norm_backward")
    forward, backward = view.block(i)
    n = int(which)
    return forward.the("add_norm_forward", n - 1), backward.the("add_norm_backward", 2 - n)


def stage_key(view, i, name):
    """Return the key of a stage of block `i`, or of none."""
    return name if i is None else view.key(i, name)


def add_stage(view, i, which):
    """The residual connection: the stream and what a layer adds to it."""
    there, back = norm_calls(view, i, which)
    key, begins = stage_key(view, i, f"add_{which}"), "x" not in there.values
    title = "The stream begins" if begins else "The residual connection"
    passes = add_pass(view, there, key), add_gradient(view, i, which, back, key)
    return Stage(key, title if i is None else view.title(i, title), *passes)


def add_pass(view, call, key):
    """Return the forward Pass of a residual connection: of one that has no x, the stream alone."""
    tokens, C, stream, h = view.tokens, view.channels, call["stream"][0], call["h"][0]
    formulas, shapes = ("x' = x + dropout(h + h_b)",), "(T, C) + (T, C) -> (T, C)"
    if "x" not in call.values:
        origins, note = {"embedding.x": ("i", "j")}, "There is no x yet: h is the embedding."
        picture = Picture("x'", stream, tokens, C, "the stream", origins)
        return Pass(call, formulas, shapes, (picture,), (note,))
    x, origins = call["x"][0], {f"{key}.x": ("i", "j"), f"{key}.h": ("i", "j")}
    pictures = (
        Picture("x", x, tokens, C, "the stream so far"),
        Picture("h", h, tokens, C, "what the layer has found"),
        Picture("x'", stream, tokens, C, "the stream", origins),
    )
    example = f"x'[0, 0] = {add(x[0, 0], h[0, 0])} = {number(stream[0, 0])}"
    return Pass(call, formulas, shapes, pictures, (), example)


def add_gradient(view, i, which, call, key):
    """Return the backward Pass of a residual connection."""
    tokens, C, dstream = view.tokens, view.channels, call["dstream"][0]
    formulas, shapes = ("dx' = dx + layernorm_backward(dy)",), "(T, C) + (T, C) -> (T, C)"
    origins = {stage_key(view, i, f"ln_{which}.dx"): ("i", "j")}
    if "dx" not in call.values:
        note = "After the last layernorm the stream ends: nothing comes back past it, dx is 0."
        picture = Picture("dh", dstream, tokens, C, "dx', for h and for x alike", origins)
        return Pass(call, formulas, shapes, (picture,), (note,))
    dx, of_norm = call["dx"][0], call.the("layernorm_backward").result[0][0]
    note = "A sum passes its gradient on to both of its terms: dx' goes to x and to h."
    if call.result[0] is None:
        note = "There is no x here: dx' goes to the embedding."
    origins |= {f"{key}.dx": ("i", "j")}
    pictures = (
        Picture("dx", dx, tokens, C, "along the stream, past y"),
        Picture("dh", dstream, tokens, C, "dx', for h and for x alike", origins),
    )
    example = f"dx'[0, 0] = {add(dx[0, 0], of_norm[0, 0])} = {number(dstream[0, 0])}"
    return Pass(call, formulas, shapes, pictures, (note,), example)


def norm_stage(view, i, which):
    """The layernorm of the stream."""
    there, back = norm_calls(view, i, which)
    key, title = stage_key(view, i, f"ln_{which}"), "Layernorm, of every token by itself"
    stream = stage_key(view, i, f"add_{which}.x'")
    passes = norm_pass(view, there, key, stream), norm_gradient(view, back, key, stream)
    return Stage(key, title if i is None else view.title(i, title), *passes)


def norm_pass(view, call, key, stream):
    """Return the forward Pass of a layernorm; `stream` is the key of what it reads."""
    call, tokens, row = call.the("layernorm_forward"), view.tokens, ("i", "all")
    x, y, mu, rstd = (call[name][0] for name in ("x", "y", "mu", "rstd"))
    origins = {stream: ("i", "j"), f"{key}.mu": row, f"{key}.rstd": row}
    return Pass(
        call,
        (
            "mu = mean(x)",
            "rstd = 1 / sqrt(mean((x - mu)^2) + eps)",
            "y = w * xhat + b, where xhat = (x - mu) * rstd",
        ),
        "(T, C) -> (T, C); mu and rstd (T, 1)",
        (
            Picture("mu", mu, tokens, [""], "mean", {stream: row}),
            Picture("rstd", rstd, tokens, [""], "1 / deviation", {stream: row}),
            Picture("y", y, tokens, view.channels, "mean 0 and variance 1 in each row", origins),
        ),
        ("x is the stream x' above. The gain w is 1 at first; there is no bias b.",),
        f"y[0, 0] = ({number(x[0, 0])} - {term(mu[0, 0])}) * {number(rstd[0, 0])} = "
        f"{number(y[0, 0])}",
    )


def norm_gradient(view, call, key, stream):
    """Return the backward Pass of a layernorm."""
    call, tokens, C = call.the("layernorm_backward"), view.tokens, view.channels
    dx, dxhat, xhat, rstd = (call[name][0] for name in ("dx", "dxhat", "xhat", "rstd"))
    means = dxhat[0].mean(), (xhat * dxhat)[0].mean()
    origins = {f"{key}.dxhat": ("i", "all"), stream: ("i", "all")}
    return Pass(
        call,
        ("dx = rstd * (dxhat - mean(dxhat) - xhat * mean(xhat * dxhat))", "dw = sum(dy * xhat)"),
        "(T, C) -> (T, C); dxhat = w * dy",
        (
            Picture("dxhat", dxhat, tokens, C, "dy, the gain being 1"),
            Picture("dx", dx, tokens, C, "to the stream", origins),
        ),
        (),
        f"dx[0, 0] = {number(rstd[0, 0])} * ({number(dxhat[0, 0])} - {term(means[0])} - "
        f"{term(xhat[0, 0])} * {term(means[1])}) = {number(dx[0, 0])}",
    )


def hidden_stage(view, i):
    """The first half of the MLP: a linear layer and the activation."""
    forward, backward = view.block(i)
    there = forward.the("linear_activation_forward")
    back = backward.the("linear_activation_backward")
    key, tokens, hidden = view.key(i, "c_fc"), view.tokens, numbers(there["h"].shape[-1])
    h, y, x, w = there["h"][0], there["y"][0], there["x"][0], there["w"]
    dh, dy, slope = back["dh"][0], back["dy"][0], back["slope"][0]
    of_norm, cell = view.key(i, "ln_2.y"), ("i", "j")
    return Stage(
        key,
        view.title(i, "MLP: four times as wide, and the activation"),
        Pass(
            there,
            ("y = act(x @ w + b)",),
            "x (T, C) @ w (C, 4C) -> h (T, 4C) -> y (T, 4C)",
            (
                Picture("h", h, tokens, hidden, "x @ w", {of_norm: ("i", "all")}),
                Picture("y", y, tokens, hidden, "relu: max(h, 0)", {key + ".h": cell}),
            ),
            ("x is the y of the layernorm above; act is relu, y = max(h, 0).",),
            f"h[0, 0] = {dot(x[0], w[:, 0])} = {number(h[0, 0])}",
        ),
        Pass(
            back,
            ("dh = dy * act'(h), h = x @ w + b", "dx, dw, db = linear_backward(dh)"),
            "dy (T, 4C) * (T, 4C) -> dh; dh @ w^T (4C, C) -> dx (T, C)",
            (
                Picture(
                    *("dh", dh, tokens, hidden, "0 where h was below 0"),
                    origins={key + ".h": cell, view.key(i, "mlp.dx"): cell},
                ),
                Picture(
                    *("dx", back.result[0][0], tokens, view.channels, "to the layernorm"),
                    origins={key + ".dh": ("i", "all")},
                ),
            ),
            (),
            f"dh[0, 0] = {number(dy[0, 0])} * {slope[0, 0]:.0f} = {number(dh[0, 0])}",
        ),
    )


def mlp_stage(view, i):
    """The second half of the MLP: back to the width of the stream."""
    forward, backward = (c.the(f"mlp_{way}") for c, way in zip(view.block(i), WAYS, strict=True))
    there, back = forward.the("linear_forward", -1), backward.the("linear_backward")
    key, tokens, hidden = view.key(i, "mlp"), view.tokens, numbers(there["x"].shape[-1])
    x, y, dy, dx, w = there["x"][0], there["y"][0], back["dy"][0], back.result[0][0], there["w"]
    seen = np.flatnonzero(x[0])
    terms = dot(x[0, seen[:8]], w[seen[:8], 0]) + " + ..." * (len(seen) > 8)
    return Stage(
        key,
        view.title(i, "MLP: back to the width of the stream"),
        Pass(
            there,
            ("y = x @ w + b",),
            "x (T, 4C) @ w (4C, C) -> (T, C)",
            (
                Picture(
                    *("y", y, tokens, view.channels, "what the MLP adds to the stream"),
                    origins={view.key(i, "c_fc.y"): ("i", "all")},
                ),
            ),
            ("x is the y above.",),
            f"y[0, 0] = {terms} = {number(y[0, 0])}" if len(seen) <= 8 else "",
        ),
        Pass(
            back,
            ("dx = dy @ w^T", "dw = x^T @ dy"),
            "dy (T, C) @ w^T (C, 4C) -> (T, 4C)",
            (Picture("dx", dx, tokens, hidden, "to the activation"),),
            (),
            f"dx[0, 0] = {dot(dy[0], w[0])} = {number(dx[0, 0])}",
        ),
    )


WAYS = "forward", "backward"


def token_columns(view):
    """Return the labels of the vocabulary's columns, and which to keep where room is short.

    The first are the targets and the tokens of the sentence, then those with the best chances.
    """
    p = view.step.both.the("logits_gradient").first("dlogits")
    best = np.argsort(-p.max(axis=0), kind="stable").tolist()
    order = dict.fromkeys([*view.step.targets[0].tolist(), *view.step.ids[0].tolist(), *best])
    return [view.label(i) for i in range(p.shape[1])], tuple(order)


def logits_stage(view):
    """The LM head: a score for every token of the vocabulary."""
    title = "Logits: the LM head scores every token"
    return Stage("logits", title, logits_pass(view), logits_gradient(view))


def logits_pass(view):
    """Return the forward Pass of the LM head."""
    call, t = view.step.both.the("head"), int(view.step.targets[0, 0])
    x, w, logits = call["x"], call["w"], call["logits"]
    labels, keep = token_columns(view)
    return Pass(
        call,
        ("logits (..., V) = x @ w^T + b",),
        "x (T, C) @ w^T (C, V) -> (T, V): a row per position, a column per token",
        (
            Picture(
                *("logits", logits, view.tokens, labels, "the scores of what comes next"),
                origins={"ln_f.y": ("i", "all")},
                keep=keep,
            ),
        ),
        ("x is the y of the last layernorm. There is no bias b here.",),
        f"logits[0, '{view.label(t)}'] = {dot(x[0], w[t])} = {number(logits[0, t])}",
    )


def logits_gradient(view):
    """Return the backward Pass of the LM head."""
    call, t = view.step.both.the("cross_entropy_backward"), int(view.step.targets[0, 0])
    dlogits, dw, x, C = call["dlogits"], call.result[1]["w"], call["x2"], view.channels
    hit = sorted({*view.step.tokens[1:]})
    of, columns = "loss.dlogits", [[i] for i in hit]
    rows = [view.label(i) for i in hit]
    return Pass(
        call,
        ("dx = dlogits @ w", "dw = dlogits^T @ x"),
        "dlogits (T, V) @ w (V, C) -> dx (T, C); dlogits^T (V, T) @ x (T, C) -> dw (V, C)",
        (
            Picture(
                *("dx", call.result[0][0], view.tokens, C, "to the last layernorm"),
                origins={of: ("i", "all")},
            ),
            Picture(
                *("dw", dw[hit], rows, C, "the rows of the targets"),
                origins={of: ("all", columns), "ln_f.y": ("all", "j")},
            ),
        ),
        (),
        f"dw['{view.label(t)}', 0] = {dot(dlogits[:, t], x[:, 0])} = {number(dw[t, 0])}",
    )


def probabilities_stage(view):
    """The softmax of the logits, by their log sum exp."""
    there = view.step.both.the("cross_entropy_forward")
    back = view.step.both.the("logits_gradient")
    p, logits, lse = back.first("dlogits"), there["logits"], there["lse"]
    labels, keep = token_columns(view)
    t = int(view.step.targets[0, 0])
    return Stage(
        "probabilities",
        "Probabilities: the softmax of the logits",
        Pass(
            back,
            ("exp(logits_j - lse) = softmax(logits)_j",),
            "(T, V) -> (T, V), every row sums to 1; lse = log sum_j exp(logits_j), (T, 1)",
            (
                Picture(
                    "lse", lse, view.tokens, [""], "log sum exp", {"logits.logits": ("i", "all")}
                ),
                Picture(
                    *("softmax", p, view.tokens, labels, "the chance of every next token"),
                    origins={"logits.logits": ("i", "j"), "probabilities.lse": ("i", "all")},
                    keep=keep,
                ),
            ),
            ("Forward, lse is all that is kept; the backward pass makes the softmax of it.",),
            f"softmax[0, '{view.label(t)}'] = exp({number(logits[0, t])} - {term(lse[0, 0])}) = "
            f"{number(p[0, t])}",
        ),
    )


def loss_stage(view):
    """The loss of each position and their mean; backward, softmax minus one-hot, over N."""
    title = "The loss: how surprised the model is"
    return Stage("loss", title, loss_pass(view), loss_gradient(view))


def loss_pass(view):
    """Return the forward Pass of the loss."""
    call, n, V = view.step.both.the("cross_entropy_forward"), view.T, view.step.config.vocab_size
    lse, right, losses = call["lse"], call["right"], call["losses"]
    targets = view.step.targets[0]
    arrows = [f"{a}>{view.label(b)}" for a, b in zip(view.tokens, targets, strict=True)]
    mean = " + ".join(f"{x:.4f}" for x in losses)
    origins = {"probabilities.lse": ("i", "all"), "loss.right": ("i", "all")}
    return Pass(
        call,
        (
            "lse = log sum_j exp(logits_j)",
            "loss = sum over tokens of (lse - logits_target) / count",
        ),
        "(T, V) and targets (T) -> one number; count = T",
        (
            Picture("right", right[:, None], arrows, [""], "logits_target"),
            Picture("losses", losses[:, None], arrows, [""], "lse - logits_target", origins),
        ),
        (
            f"The mean: ({mean}) / {n} = {view.step.loss:.4f} nats per token. A uniform guess "
            f"among {V:,} tokens has ln {V:,} = {math.log(V):.4f}.",
        ),
        f"losses[0] = {number(lse[0, 0])} - {term(right[0])} = {number(losses[0])}",
    )


def loss_gradient(view):
    """Return the backward Pass of the loss."""
    call, n = view.step.both.the("logits_gradient"), view.T
    dlogits, p = call["dlogits"], call.first("dlogits")
    (labels, keep), t = token_columns(view), int(view.step.targets[0, 0])
    return Pass(
        call,
        ("dlogits = (softmax(logits) - onehot(target)) * dloss / count",),
        f"(T, V); dloss = 1, count = {n}; every row sums to 0",
        (
            Picture(
                *("dlogits", dlogits, view.tokens, labels, "below 0 at the target alone"),
                origins={"probabilities.softmax": ("i", "j")},
                keep=keep,
            ),
        ),
        ("Down with every token's score, by its chance; up with the target's.",),
        f"dlogits[0, '{view.label(t)}'] = ({number(p[0, t])} - 1) / {n} = {number(dlogits[0, t])}",
    )
