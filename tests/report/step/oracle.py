"""What every matrix of the walk has to be: a GPT and its gradients in plain NumPy, in float64."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x):
    """Return y, mu and rstd of a layernorm without bias whose gain is 1."""
    mu = x.mean(-1, keepdims=True)
    rstd = (((x - mu) ** 2).mean(-1, keepdims=True) + 1e-5) ** -0.5
    return (x - mu) * rstd, mu, rstd


def norm_gradient(dy, x):
    """Return dx by the Jacobian, which is written out."""
    y, _, rstd = norm(x)
    C = x.shape[-1]
    jacobian = rstd[:, :, None] * (np.eye(C) - 1 / C - y[:, :, None] * y[:, None, :] / C)
    return np.einsum("ti,tij->tj", dy, jacobian)


def softmax_gradient(dy, y):
    """Return dx by the Jacobian, which is written out."""
    jacobian = y[:, :, None] * (np.eye(y.shape[-1]) - y[:, None, :])
    return np.einsum("ti,tij->tj", dy, jacobian)


def matrices(step, head):
    """Return {(stage, way, name): matrix} for a model of one block.

    Parameters
    ----------
    step : StepRecord
        Whose weights, ids and targets alone are used, and of the loss after it what was recorded.
    head : int
    """
    p = {name: np.asarray(view, float) for name, view in step.before.leaves()}
    D = step.config.n_embd // step.config.n_head
    heads = [slice(i * D, (i + 1) * D) for i in range(step.config.n_head)]
    a = forward_arrays(p, step.ids[0], step.targets[0], heads)
    g = gradients(p, a, step.ids[0], step.targets[0], heads)
    after = np.asarray(step.again.the("cross_entropy_forward")["losses"])[:, None]
    named = {
        "forward": forward_matrices(p, a, step.ids[0], heads, head)
        | closing_matrices(p, a, g, heads[head], step.lr, after),
        "backward": backward_matrices(g, step.ids[0], step.targets[0], heads, head),
    }
    return {
        (stage, way, name): matrix
        for way, stages in named.items()
        for stage, group in stages.items()
        for name, matrix in group.items()
    }


def forward_arrays(p, ids, targets, heads):
    """Return the arrays of the forward pass by name; of attention a list, by head."""
    a, T = {"x0": p["wte"][ids] + p["wpe"][: len(ids)]}, len(ids)
    a["n1"] = norm(a["x0"])
    a["q"], a["k"], a["v"] = np.split(a["n1"][0] @ p["h.0.attn.c_attn.w"], 3, axis=1)
    D = heads[0].stop
    a["s"] = [a["q"][:, i] @ a["k"][:, i].T / np.sqrt(D) for i in heads]
    a["masked"] = [np.where(np.tril(np.ones((T, T), bool)), s, -np.inf) for s in a["s"]]
    a["w"] = [softmax(s) for s in a["masked"]]
    found = [w @ a["v"][:, i] for w, i in zip(a["w"], heads, strict=True)]
    a["merged"] = np.concatenate(found, axis=1)
    a["h1"] = a["merged"] @ p["h.0.attn.c_proj.w"]
    a["x1"] = a["x0"] + a["h1"]
    a["n2"] = norm(a["x1"])
    a["hidden"] = a["n2"][0] @ p["h.0.mlp.c_fc.w"]
    a["h2"] = np.maximum(a["hidden"], 0) @ p["h.0.mlp.c_proj.w"]
    a["x2"] = a["x1"] + a["h2"]
    a["n3"] = norm(a["x2"])
    a["logits"] = a["n3"][0] @ p["lm_head.w"].T
    a["lse"] = np.log(np.exp(a["logits"]).sum(-1, keepdims=True))
    a["chances"] = softmax(a["logits"])
    a["right"] = a["logits"][np.arange(T), targets][:, None]
    return a


def forward_matrices(p, a, ids, heads, head):
    """Return {stage: {name: matrix}} of the forward pass."""
    part, w_qkv = heads[head], p["h.0.attn.c_attn.w"]
    norms = [dict(zip(("y", "mu", "rstd"), a[name], strict=True)) for name in ("n1", "n2", "n3")]
    return {
        "embedding": {"wte": p["wte"][np.unique(ids)], "wpe": p["wpe"][: len(ids)], "x": a["x0"]},
        "add_1": {"x'": a["x0"]},
        "ln_1": norms[0],
        "qkv": {"w": w_qkv[:, part]} | {name: a[name][:, part] for name in "qkv"},
        "scores": {"s": a["s"][head]},
        "mask": {"s": a["masked"][head]},
        "softmax": {"w": a["w"][head]},
        "values": {"y": a["merged"][:, part]},
        "c_proj": {"x": a["merged"], "w": p["h.0.attn.c_proj.w"], "y": a["h1"]},
        "add_2": {"x": a["x0"], "h": a["h1"], "x'": a["x1"]},
        "ln_2": norms[1],
        "c_fc": {"h": a["hidden"], "y": np.maximum(a["hidden"], 0)},
        "mlp": {"y": a["h2"]},
        "add_f": {"x": a["x1"], "h": a["h2"], "x'": a["x2"]},
        "ln_f": norms[2],
        "logits": {"logits": a["logits"]},
        "probabilities": {"lse": a["lse"], "softmax": a["chances"]},
        "loss": {"right": a["right"], "losses": a["lse"] - a["right"]},
    }


def gradients(p, a, ids, targets, heads):
    """Return the gradients by name, the forward pass read upwards; of attention by head."""
    T, D, g = len(ids), heads[0].stop, {}
    g["logits"] = (a["chances"] - np.eye(len(p["wte"]))[targets]) / T
    g["y3"], g["head"] = g["logits"] @ p["lm_head.w"], g["logits"].T @ a["n3"][0]
    g["x2"] = norm_gradient(g["y3"], a["x2"])
    g["act"] = g["x2"] @ p["h.0.mlp.c_proj.w"].T
    g["hidden"] = g["act"] * (a["hidden"] > 0)
    g["y2"] = g["hidden"] @ p["h.0.mlp.c_fc.w"].T
    g["n2"] = norm_gradient(g["y2"], a["x1"])
    g["x1"] = g["x2"] + g["n2"]
    g["merged"] = g["x1"] @ p["h.0.attn.c_proj.w"].T
    g["c_proj"] = a["merged"].T @ g["x1"]
    g["w"] = [g["merged"][:, i] @ a["v"][:, i].T for i in heads]
    g["s"] = [softmax_gradient(dw, w) for dw, w in zip(g["w"], a["w"], strict=True)]
    of = [*zip(g["s"], a["w"], heads, strict=True)]
    g["q"] = np.concatenate([ds @ a["k"][:, i] for ds, _, i in of], 1) / np.sqrt(D)
    g["k"] = np.concatenate([ds.T @ a["q"][:, i] for ds, _, i in of], 1) / np.sqrt(D)
    g["v"] = np.concatenate([w.T @ g["merged"][:, i] for _, w, i in of], 1)
    qkv = np.concatenate([g["q"], g["k"], g["v"]], axis=1)
    g["y1"], g["c_attn"] = qkv @ p["h.0.attn.c_attn.w"].T, a["n1"][0].T @ qkv
    g["n1"] = norm_gradient(g["y1"], a["x0"])
    g["x0"] = g["x1"] + g["n1"]
    g["wte"] = np.zeros_like(p["wte"])
    np.add.at(g["wte"], ids, g["x0"])
    return g


def backward_matrices(g, ids, targets, heads, head):
    """Return {stage: {name: matrix}} of the backward pass."""
    part = heads[head]
    return {
        "embedding": {"dwpe": g["x0"], "dwte": g["wte"][np.unique(ids)]},
        "add_1": {"dx": g["x1"], "dh": g["x0"]},
        "ln_1": {"dxhat": g["y1"], "dx": g["n1"]},
        "qkv": {"dx": g["y1"], "dw": g["c_attn"][:, part]},
        "scores": {"dq": g["q"][:, part], "dk": g["k"][:, part]},
        "mask": {"ds": g["s"][head]},
        "softmax": {"ds": g["s"][head]},
        "values": {"dy": g["merged"][:, part], "dv": g["v"][:, part], "dw": g["w"][head]},
        "c_proj": {"dx": g["merged"], "dw": g["c_proj"]},
        "add_2": {"dx": g["x2"], "dh": g["x1"]},
        "ln_2": {"dxhat": g["y2"], "dx": g["n2"]},
        "c_fc": {"dh": g["hidden"], "dx": g["y2"]},
        "mlp": {"dx": g["act"]},
        "add_f": {"dh": g["x2"]},
        "ln_f": {"dxhat": g["y3"], "dx": g["x2"]},
        "logits": {"dx": g["y3"], "dw": g["head"][np.unique(targets)]},
        "loss": {"dlogits": g["logits"]},
    }


def closing_matrices(p, a, g, part, lr, after):
    """Return {stage: {name: matrix}} of the optimizer's first step and the losses around it."""
    w, dw = p["h.0.attn.c_attn.w"][:, part], g["c_attn"][:, part]
    moved = w * (1 - 0.1 * lr) - lr * dw / (np.abs(dw) + 1e-8)
    return {
        "update": {"p": w, "g": dw, "m": 0.1 * dw, "v": 0.05 * dw**2, "p'": moved},
        "after": {"losses": a["lse"] - a["right"], "losses'": after},
    }
