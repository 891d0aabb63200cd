"""The GPT of nanoGPT, GPT-2 and the lecture in torch, in float64: the second opinion.

`python -m tests.torch_reference` records what torch makes of CASES in tests/data/reference.npz,
for machines without torch. Weights and tokens are made of exact fractions, so that they are the
same bits everywhere; a hash of them is recorded too.
"""

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.tools.options import gpt_config

try:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)  # for so little work more are slower
except ModuleNotFoundError:  # the recorded cases do without
    torch = None

FILE = Path(__file__).parents[1] / "data" / "reference.npz"
SIZES = {"vocab_size": 11, "block_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 8}
CASES = {
    "nanogpt": {**SIZES, "bias": False},
    "gpt2": {**SIZES, "activation": "gelu_tanh"},
    "lecture": {
        **SIZES,
        "activation": "relu",
        "qkv_bias": False,
        "tie_head": False,
        "head_bias": True,
        "init_scale": "plain",
    },
    "rotary": {**SIZES, "rotary": True, "bigram": True},
}
STEPS = 20
RECIPE = SimpleNamespace(
    learning_rate=3e-2,
    min_lr=3e-3,
    warmup_iters=4,
    lr_decay_iters=16,
    lr_schedule="cosine",
    lr_decay_fraction=0.0,
    beta1=0.9,
    beta2=0.99,
    weight_decay=0.1,
    grad_clip=0.35,
)


def problem(shapes, vocab_size, T, B=3, seed=0):
    """Return weights by name, and ids and targets (STEPS, B, T), some of them to be ignored.

    Each token is one or two above the one before, which the model can learn.

    Parameters
    ----------
    shapes : iterable of (dotted name, shape)
    """
    rng = np.random.default_rng(seed)
    weights = {name: rng.integers(-512, 513, shape) / 1024 for name, shape in shapes}
    start, steps = rng.integers(0, vocab_size, (STEPS, B, 1)), rng.integers(1, 3, (STEPS, B, T))
    tokens = np.concatenate([start, steps], axis=-1).cumsum(axis=-1) % vocab_size
    ids, targets = tokens[..., :-1], tokens[..., 1:].copy()
    targets[:, 0, 0] = -1
    return weights, ids, targets


def digest(weights, ids, targets):
    """Return the SHA-256 of a problem, as text."""
    sha = hashlib.sha256()
    for name, w in weights.items():
        sha.update(f"{name} {w.shape}".encode() + w.astype("<f8").tobytes())
    for x in (ids, targets):
        sha.update(f"{x.shape}".encode() + x.astype("<i8").tobytes())
    return sha.hexdigest()


def linear(x, p, name):
    """x @ w + b, or without b where there is none."""
    return F.linear(x, p[f"{name}.w"].T, p.get(f"{name}.b"))


def layernorm(x, p, name):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.w"], p.get(f"{name}.b"), 1e-5)


def turned(x):
    """x (B, H, T, D) with neighbouring channels turned: each pair of them by a matrix."""
    T, n = x.shape[2], x.shape[3] // 2
    speed = [1024 ** (-i / max(n - 1, 1)) for i in range(n)]
    a = torch.arange(T, dtype=x.dtype)[:, None] * torch.tensor(speed, dtype=x.dtype)
    matrix = torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], dim=-1).view(T, n, 2, 2)
    return torch.einsum("tnij,bhtnj->bhtni", matrix, x.unflatten(3, (n, 2))).flatten(3)


def attention(x, p, name, n_head, rotary):
    B, T, C = x.shape
    q, k, v = linear(x, p, f"{name}.c_attn").split(C, dim=2)
    q, k, v = (z.view(B, T, n_head, C // n_head).transpose(1, 2) for z in (q, k, v))
    if rotary:
        q, k = turned(q), turned(k)
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.shape[-1])
    scores = scores.masked_fill(torch.ones(T, T).tril() == 0, -math.inf)
    y = F.softmax(scores, dim=-1) @ v
    return linear(y.transpose(1, 2).reshape(B, T, C), p, f"{name}.c_proj")


def mlp(x, p, name, activation):
    h = linear(x, p, f"{name}.c_fc")
    if activation == "relu":
        h = F.relu(h)
    else:
        h = F.gelu(h, approximate="tanh" if activation == "gelu_tanh" else "none")
    return linear(h, p, f"{name}.c_proj")


def gpt(ids, p, config):
    """Return logits (B, T, V); p maps dotted names to tensors."""
    x, V = F.embedding(ids, p["wte"]), config.vocab_size
    if not config.rotary:
        x = x + p["wpe"][: ids.shape[1]]
    if config.bigram:  # before the first token stands V
        before = F.pad(ids[:, :-1], (1, 0), value=V)
        x = x + p["wbe"].view(V + 1, V, -1)[before, ids]
    for i in range(config.n_layer):
        h = layernorm(x, p, f"h.{i}.ln_1")
        x = x + attention(h, p, f"h.{i}.attn", config.n_head, config.rotary)
        x = x + mlp(layernorm(x, p, f"h.{i}.ln_2"), p, f"h.{i}.mlp", config.activation)
    x = layernorm(x, p, "ln_f")
    return F.linear(x, p.get("lm_head.w", p["wte"]), p.get("lm_head.b"))


def loss_of(z, targets):
    return F.cross_entropy(z.view(-1, z.shape[-1]), targets.reshape(-1), ignore_index=-1)


def tensors(weights):
    return {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}


def first_step(weights, ids, targets, config):
    """Return logits, loss and the gradient of every weight, as NumPy arrays by name."""
    p = tensors(weights)
    z = gpt(torch.tensor(ids[0]), p, config)
    loss = loss_of(z, torch.tensor(targets[0]))
    loss.backward()
    result = {"logits": z.detach().numpy(), "loss": loss.detach().numpy()}
    return result | {f"grad.{name}": w.grad.numpy() for name, w in p.items()}


def rate(step):
    """nanoGPT's learning rate: warm-up, then a cosine."""
    r = RECIPE
    if step < r.warmup_iters:
        return r.learning_rate * (step + 1) / (r.warmup_iters + 1)
    if step > r.lr_decay_iters:
        return r.min_lr
    ratio = (step - r.warmup_iters) / (r.lr_decay_iters - r.warmup_iters)
    return r.min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (r.learning_rate - r.min_lr)


def train(weights, ids, targets, config):
    """Return the losses, gradient norms and last weights of STEPS steps of torch's AdamW."""
    p = tensors(weights)
    groups = [
        {"params": [w for w in p.values() if w.dim() >= 2], "weight_decay": RECIPE.weight_decay},
        {"params": [w for w in p.values() if w.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(RECIPE.beta1, RECIPE.beta2), eps=1e-8)
    losses, norms = [], []
    for step in range(STEPS):
        for group in adamw.param_groups:
            group["lr"] = rate(step)
        loss = loss_of(gpt(torch.tensor(ids[step]), p, config), torch.tensor(targets[step]))
        adamw.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), RECIPE.grad_clip).item())
        adamw.step()
        losses.append(loss.item())
    result = {"losses": np.array(losses), "norms": np.array(norms)}
    return result | {f"last.{name}": w.detach().numpy() for name, w in p.items()}


def record():
    """Write what torch makes of every case to FILE."""
    from minigpt.model.gpt import shapes
    from minigpt.params import leaves

    arrays = {}
    for case, options in CASES.items():
        config = gpt_config(**options)
        made = problem(leaves(shapes(config)), config.vocab_size, config.block_size)
        arrays[f"{case}/sha256"] = np.array(digest(*made))
        for name, x in {**first_step(*made, config), **train(*made, config)}.items():
            arrays[f"{case}/{name}"] = x
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
    print(f"{FILE}: {len(arrays)} arrays, {FILE.stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    record()
