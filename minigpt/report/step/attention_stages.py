"""The stages of self-attention, for one head: from queries, keys and values to the projection."""

from minigpt.report.step.pictures import Pass, Picture, Stage, dot, number
from minigpt.report.step.view import numbers

ROW_BY_COLUMN = ("i", "all"), ("all", "j")  # a product: row i of the one, column j of the other
ROW_BY_ROW = ("i", "all"), ("j", "all")  # by a transposed one
COLUMN_BY_COLUMN = ("all", "i"), ("all", "j")  # a transposed one by the other


def product(first, second, how):
    """Return the origins of a product of two pictures."""
    return dict(zip((first, second), how, strict=True))


def attention_stages(view, i):
    """Return the stages of the self-attention of block `i`, in the order of the forward pass."""
    forward, backward = (call.the(f"self_attention_{way}") for call, way in both_ways(view, i))
    return [
        qkv_stage(view, i, forward, backward),
        scores_stage(view, i, forward, backward),
        mask_stage(view, i, forward, backward),
        softmax_stage(view, i, forward, backward),
        values_stage(view, i, forward, backward),
        projection_stage(view, i, forward, backward),
    ]


def both_ways(view, i):
    """Return the calls of the passes of block `i`, each with its way."""
    return zip(view.block(i), ("forward", "backward"), strict=True)


def of_head(view, x):
    """Return the head's matrix of an array (1, H, T, n)."""
    return x[0, view.head]


def qkv_stage(view, i, forward, backward):
    """Queries, keys and values: one linear layer for all heads, of which one is shown."""
    there, back = forward.the("linear_forward"), backward.the("linear_backward", 1)
    D, C, part, key = numbers(view.D), view.step.config.n_embd, view.part, view.key(i, "qkv")
    w, dqkv = there["w"][:, part], back["dy"][0, :, part]
    x, q = view.key(i, "ln_1.y"), of_head(view, forward["q"])
    heads = queries_keys_values(view, forward, x, key + ".w")
    return Stage(
        key,
        view.title(i, f"Queries, keys, values of head {view.head}"),
        Pass(
            there,
            ("y = x @ w + b",),
            "x (T, C) @ w (C, 3C) -> (T, 3C), cut into q, k, v of H heads, each (T, D)",
            (Picture("w", w, view.channels, D, f"columns {part.start}-{part.stop - 1}: q"), *heads),
            ("x is the y of the layernorm above. There is no bias b here.",),
            f"q[0, 0] = {dot(there['x'][0, 0], w[:, 0])} = {number(q[0, 0])}",
        ),
        Pass(
            back,
            ("dx = dy @ w^T", "dw = x^T @ dy"),
            "dy (T, 3C): dq, dk, dv of all heads side by side, as they were cut apart",
            (
                Picture("dx", back.result[0][0], view.tokens, view.channels, "to the layernorm"),
                Picture(
                    *("dw", back.result[1]["w"][:, part], view.channels, D, "of the q of the head"),
                    origins=product(x, view.key(i, "scores.dq"), COLUMN_BY_COLUMN),
                ),
            ),
            (f"dx has the sum over all {3 * C} columns of w: of q, k and v, and of all heads.",),
            f"dw[0, 0] = {dot(back['x'][0, :, 0], dqkv[:, 0])} = "
            f"{number(back.result[1]['w'][0, part.start])}",
        ),
    )


def queries_keys_values(view, forward, x, w):
    """Return the pictures of q, k and v; `x` and `w` are the keys of what q is the product of."""
    names = {"q": "asks", "k": "is found by", "v": "has to say"}
    return [
        Picture(
            *(name, of_head(view, forward[name]), view.tokens, numbers(view.D)),
            f"what a token {what}",
            product(x, w, ROW_BY_COLUMN) if name == "q" else {x: ("i", "all")},
        )
        for name, what in names.items()
    ]


def scores_stage(view, i, forward, backward):
    """Scores before the mask; backward, queries and keys get their gradients."""
    there, back = forward.the("scores"), backward.the("attention_backward")
    key, tokens, D = view.key(i, "scores"), view.tokens, numbers(view.D)
    s, q, k = (of_head(view, x) for x in (there.first("s"), there["q"], there["k"]))
    dq, dk, _ = (of_head(view, x) for x in back.result)
    ds = of_head(view, back.the("softmax_backward").result)
    of, last = view.key(i, "qkv"), view.T - 1
    return Stage(
        key,
        view.title(i, "Scores before the mask"),
        Pass(
            there,
            ("s = q @ k^T / sqrt(D)",),
            "q (T, D) @ k^T (D, T) -> (T, T): a row per query, a column per key",
            (
                Picture(
                    *("s", s, tokens, tokens, "how well each key fits each query"),
                    origins=product(f"{of}.q", f"{of}.k", ROW_BY_ROW),
                ),
            ),
            (),
            f"s[{last}, 0] = ({dot(q[last], k[0])}) / sqrt({view.D}) = {number(s[last, 0])}",
        ),
        Pass(
            back,
            ("dq = ds @ k / sqrt(D)", "dk = ds^T @ q / sqrt(D)"),
            "ds (T, T) @ k (T, D) -> dq; ds^T (T, T) @ q (T, D) -> dk",
            (
                Picture(
                    *("dq", dq, tokens, D, "of every query"),
                    origins=product(view.key(i, "softmax.ds"), f"{of}.k", ROW_BY_COLUMN),
                ),
                Picture(
                    *("dk", dk, tokens, D, "of every key"),
                    origins=product(view.key(i, "softmax.ds"), f"{of}.q", COLUMN_BY_COLUMN),
                ),
            ),
            (),
            f"dq[{last}, 0] = ({dot(ds[last], k[:, 0])}) / sqrt({view.D}) = {number(dq[last, 0])}",
        ),
    )


def mask_stage(view, i, forward, backward):
    """The tril mask: -inf in the future; backward no gradient comes from there."""
    there, back = forward.the("scores"), backward.the("attention_backward")
    ds, tokens = of_head(view, back.the("softmax_backward").result), view.tokens
    above = view.key(i, "scores.s")
    return Stage(
        view.key(i, "mask"),
        view.title(i, "Scores after the mask"),
        Pass(
            there,
            ("with -inf wherever q may not see k",),
            "(T, T), query i sees keys 0 .. i: the lower triangle (tril)",
            (
                Picture(
                    *("s", of_head(view, there["s"]), tokens, tokens, "-inf is the future"),
                    origins={above: ("i", "j")},
                ),
            ),
            ("exp(-inf) = 0, so that nothing of a later token can reach an earlier one.",),
        ),
        Pass(
            back,
            ("ds is 0 wherever w is 0, hence no gradient comes from the future",),
            "(T, T)",
            (
                Picture(
                    *("ds", ds, tokens, tokens, "the 0 in the future are exact"),
                    origins={view.key(i, "softmax.ds"): ("i", "j")},
                ),
            ),
            ("The mask needs no code of its own: the softmax's factor w is 0 there.",),
        ),
    )


def softmax_stage(view, i, forward, backward):
    """The softmax over the keys; backward, each row by itself."""
    there, back = forward.the("softmax_forward"), backward.the("softmax_backward")
    w, ds, dw = (of_head(view, x) for x in (there["y"], back.result, back["dy"]))
    s, tokens, last, row = of_head(view, there["x"]), view.tokens, view.T - 1, ("i", "all")
    masked, key = view.key(i, "mask.s"), view.key(i, "softmax")
    exps = " + ".join(f"exp({s[last, j]:.4g})" for j in range(view.T))
    weighted = dot(w[last], dw[last])
    return Stage(
        key,
        view.title(i, "Attention weights: the softmax"),
        Pass(
            there,
            ("y_i = exp(x_i) / sum_j exp(x_j)",),
            "(T, T) -> (T, T), over the last axis: every row sums to 1",
            (Picture(*("w", w, tokens, tokens, "whom a token listens to"), origins={masked: row}),),
            ("x is the s above; y is called w in attention_forward, and wei in the lecture.",),
            f"w[{last}, 0] = exp({s[last, 0]:.4g}) / ({exps}) = {number(w[last, 0])}",
        ),
        Pass(
            back,
            ("dx_i = y_i * (dy_i - sum_j y_j dy_j)",),
            "(T, T): a row of ds needs the same row of w and of dw, and sums to 0",
            (
                Picture(
                    *("ds", ds, tokens, tokens, "dx of the softmax"),
                    origins={key + ".w": row, view.key(i, "values.dw"): row},
                ),
            ),
            (),
            f"ds[{last}, 0] = {number(w[last, 0])} * ({number(dw[last, 0])} - ({weighted})) = "
            f"{number(ds[last, 0])}",
        ),
    )


def values_stage(view, i, forward, backward):
    """The weighted mean of the values."""
    there, back = forward.the("attention_forward"), backward.the("attention_backward")
    tokens, D, last = view.tokens, numbers(view.D), view.T - 1
    y, w, v = (of_head(view, there[name]) for name in "ywv")
    dy, dw, dv = (of_head(view, x) for x in (back["dy"], back["dw"], back.result[2]))
    weights, values, key = view.key(i, "softmax.w"), view.key(i, "qkv.v"), view.key(i, "values")
    return Stage(
        key,
        view.title(i, "Attention's output: a mean of the values"),
        Pass(
            there,
            ("y = dropout(w) @ v",),
            "w (T, T) @ v (T, D) -> (T, D); there is no dropout here",
            (
                Picture(
                    *("y", y, tokens, D, "what the head has gathered"),
                    origins=product(weights, values, ROW_BY_COLUMN),
                ),
            ),
            ("The first token sees itself alone: its y is its v.",),
            f"y[{last}, 0] = {dot(w[last], v[:, 0])} = {number(y[last, 0])}",
        ),
        Pass(
            back,
            ("dw = dropout(dy @ v^T)", "dv = dropout(w)^T @ dy"),
            "dy (T, D) @ v^T (D, T) -> dw; w^T (T, T) @ dy (T, D) -> dv",
            (
                Picture("dy", dy, tokens, D, "the head's part of what comes back"),
                Picture(
                    *("dv", dv, tokens, D, "of every value"),
                    origins=product(weights, key + ".dy", COLUMN_BY_COLUMN),
                ),
                Picture(
                    *("dw", dw, tokens, tokens, "of every weight"),
                    origins=product(key + ".dy", values, ROW_BY_ROW),
                ),
            ),
            (),
            f"dv[0, 0] = {dot(w[:, 0], dy[:, 0])} = {number(dv[0, 0])}",
        ),
    )


def projection_stage(view, i, forward, backward):
    """All heads side by side, and the linear layer that ends attention."""
    there, back = forward.the("linear_forward", 1), backward.the("linear_backward")
    key, tokens, C, part = view.key(i, "c_proj"), view.tokens, view.channels, view.part
    x, w, y, dy, dw = there["x"][0], there["w"], there["y"][0], back["dy"][0], back.result[1]["w"]
    heads, above = f"head {view.head} is columns {part.start}-{part.stop - 1}", "add_2.dh"
    of_x = product(view.key(i, above), key + ".w", ROW_BY_ROW)
    of_w = product(key + ".x", view.key(i, above), COLUMN_BY_COLUMN)
    of_y = product(key + ".x", key + ".w", ROW_BY_COLUMN)
    return Stage(
        key,
        view.title(i, "All heads together: the projection"),
        Pass(
            there,
            ("y = x @ w + b",),
            "x (T, H D) = (T, C), the heads' outputs side by side; @ w (C, C) -> (T, C)",
            (
                Picture("x", x, tokens, C, heads),
                Picture("w", w, C, C),
                Picture("y", y, tokens, C, "what attention adds to the stream", of_y),
            ),
            (),
            f"y[0, 0] = {dot(x[0], w[:, 0])} = {number(y[0, 0])}",
        ),
        Pass(
            back,
            ("dx = dy @ w^T", "dw = x^T @ dy"),
            "dy (T, C) @ w^T (C, C) -> dx; x^T (C, T) @ dy (T, C) -> dw",
            (
                Picture("dx", back.result[0][0], tokens, C, heads, of_x),
                Picture("dw", dw, C, C, "of the projection", of_w),
            ),
            (),
            f"dw[0, 0] = {dot(x[:, 0], dy[:, 0])} = {number(dw[0, 0])}",
        ),
    )
